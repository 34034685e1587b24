"""Lines of help text in six languages, on a page and on a photo of one."""

from polyphi.eval.scorers import cer
from polyphi.eval.task import Task

task = Task(
    name="read_page",
    title="Pages and photos of pages",
    modality="vision",
    corpus="ocr",
    scorer=cer,
    only={"layout": "page"},
    metric="cer",
    max_tokens=64,
    note="unseen fonts and help pages",
)

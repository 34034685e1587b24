"""Words of six languages, numbers, lines of two or three, strings of scanned digits."""

from polyphi.eval.scorers import cer
from polyphi.eval.task import Task

task = Task(
    name="ocr",
    title="Reading text",
    modality="vision",
    corpus="ocr",
    scorer=cer,
    only={"layout": "line"},
    metric="cer",
    max_tokens=32,
    note="unseen fonts, numbers and scans",
)

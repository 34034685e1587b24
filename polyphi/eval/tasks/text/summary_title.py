"""A one-line summary of a page's beginning, in eight languages; character errors against its own heading."""

from polyphi.eval.scorers import cer
from polyphi.eval.task import Task

task = Task(
    name="summary_title",
    title="Titles of help pages",
    modality="text",
    corpus="summaries",
    scorer=cer,
    only={"task": "summary_title"},
    metric="cer",
    max_tokens=24,
    note="unseen pages; the reference is the heading that the page's authors gave it",
)

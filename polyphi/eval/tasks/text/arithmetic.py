"""Sums and differences up to a hundred, asked in eight languages, answered without steps."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="arithmetic",
    title="Sums, answered directly",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "arithmetic"},
    max_tokens=8,
    note="unseen pairs of operands",
)

"""Whether a number is even, odd, larger or smaller."""

from polyphi.eval.scorers import yes_no
from polyphi.eval.task import Task

task = Task(
    name="yes_no",
    title="Yes or no about numbers",
    modality="text",
    corpus="instructions",
    scorer=yes_no,
    only={"task": "yes_no"},
    max_tokens=8,
    note="unseen pairs, answers balanced",
)

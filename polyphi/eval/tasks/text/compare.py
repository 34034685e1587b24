"""Which of two numbers is larger, or smaller."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="compare",
    title="The larger or smaller number",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "compare"},
    max_tokens=8,
    note="unseen pairs",
)

"""How often a thing stands in a list."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="list_count",
    title="Counting in a list",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "count"},
    max_tokens=8,
    note="unseen lists, answers balanced",
)

"""The first, second or last of three words."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="position",
    title="First, second and last word",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "position"},
    max_tokens=8,
    note="unseen lists",
)

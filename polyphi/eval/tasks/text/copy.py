"""A list of words or digits, repeated."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="copy",
    title="Repeating words and digits",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "copy"},
    max_tokens=32,
    note="unseen lists",
)

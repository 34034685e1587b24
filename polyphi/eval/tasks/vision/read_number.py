"""A rendered number of two or three digits."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="read_number",
    title="Rendered number",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "number"},
    max_tokens=8,
    note="unseen numbers and fonts",
)

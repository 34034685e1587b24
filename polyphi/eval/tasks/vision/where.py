"""On which side of the picture a shape is."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="where",
    title="Side of the picture",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "where"},
    max_tokens=8,
    note="new scenes",
)

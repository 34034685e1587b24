"""The colour of a shape, in the language of the question."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="colour",
    title="Colour of a shape",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "colour"},
    max_tokens=12,
    note="pairs of shape and colour never seen in training",
)

"""In how many of three pictures a shape is seen."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="frames",
    title="Pictures that show it",
    modality="vision",
    corpus="multi_image",
    scorer=exact,
    only={"task": "frames"},
    max_tokens=8,
    note="new pictures",
)

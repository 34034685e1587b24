"""Where a named thing is on a grid of four by four places."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="locate",
    title="Place of a thing",
    modality="vision",
    corpus="grounding",
    scorer=exact,
    only={"task": "locate"},
    max_tokens=12,
    note="new scenes",
)

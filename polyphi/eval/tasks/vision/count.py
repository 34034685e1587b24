"""How many shapes or stamps, one to six, also among other shapes."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="count",
    title="Counting",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "count"},
    max_tokens=8,
    note="new scenes, unseen stamps",
)

"""Which of two colours there is more of: yes or no, or the colour."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="more",
    title="More of which colour",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "more"},
    max_tokens=8,
    note="new scenes",
)

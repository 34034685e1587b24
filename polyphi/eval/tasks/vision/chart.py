"""The highest or lowest bar of a chart, or the value of one."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="chart",
    title="Bar chart",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "chart"},
    max_tokens=8,
    note="unseen fonts, new numbers",
)

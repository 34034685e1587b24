"""The value of a lettered bar, the largest slice of a pie, the way a line goes."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="charts",
    title="Lettered bars, pies and lines",
    modality="vision",
    corpus="charts",
    scorer=exact,
    only={"layout": "chart"},
    max_tokens=8,
    note="unseen fonts, new numbers",
)

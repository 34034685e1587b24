"""A cell of a table by its row and column, or the row with the highest number of a column."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="table",
    title="Table cell",
    modality="vision",
    corpus="charts",
    scorer=exact,
    only={"layout": "table"},
    max_tokens=8,
    note="unseen fonts, new numbers",
)

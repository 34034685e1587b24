"""Three or four digits in order, or the largest or smallest of them."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="sort",
    title="Sorting digits",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "sort"},
    max_tokens=16,
    note="unseen sets",
)

"""What kind of thing a stamp shows, of sixteen, in the language of the question."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="stamp",
    title="Kind of stamp",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "stamp"},
    max_tokens=12,
    note="unseen stamps, two or more of each kind, each shown several times",
)

"""Whether two pictures show the same shape, colour or digit."""

from polyphi.eval.scorers import yes_no
from polyphi.eval.task import Task

task = Task(
    name="same",
    title="Same in two pictures",
    modality="vision",
    corpus="multi_image",
    scorer=yes_no,
    only={"task": "same"},
    max_tokens=8,
    note="new pictures, unseen scans",
)

"""Which way a shape moves over three frames."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="motion",
    title="Motion over frames",
    modality="vision",
    corpus="multi_image",
    scorer=exact,
    only={"task": "motion"},
    max_tokens=8,
    note="new scenes",
)

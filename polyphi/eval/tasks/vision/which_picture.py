"""Which of three pictures shows a shape, a colour, a digit or a kind of stamp."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="which_picture",
    title="Which picture shows it",
    modality="vision",
    corpus="multi_image",
    scorer=exact,
    only={"task": "which_picture"},
    max_tokens=8,
    note="new pictures, unseen scans and stamps",
)

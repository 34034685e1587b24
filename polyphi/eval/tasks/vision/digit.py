"""One scanned digit, large in the picture."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="digit",
    title="Scanned digit",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "digit"},
    max_tokens=8,
    note="unseen scans; the same hands wrote the training scans",
)

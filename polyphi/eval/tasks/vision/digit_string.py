"""Two to four scanned digits in a row; all of them must be right."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="digit_string",
    title="Scanned digits in a row",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "digits"},
    max_tokens=12,
    note="unseen scans; the same hands wrote the training scans",
)

"""Which of two spoken numbers is larger or smaller, with no text beside the clip."""

from polyphi.eval.scorers import number
from polyphi.eval.task import Task

task = Task(
    name="sqa_compare",
    title="Spoken comparisons",
    modality="speech",
    corpus="sqa",
    scorer=number,
    only={"task": "compare"},
    max_tokens=8,
    note="unseen voices, English",
)

"""Spoken sums with no text beside them, in eight languages."""

from polyphi.eval.scorers import number
from polyphi.eval.task import Task

task = Task(
    name="sqa_arithmetic",
    title="Spoken sums",
    modality="speech",
    corpus="sqa",
    scorer=number,
    only={"task": "arithmetic"},
    max_tokens=8,
    note="unseen voices; sums of two digits, results balanced",
)

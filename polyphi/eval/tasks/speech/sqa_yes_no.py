"""Spoken yes-or-no questions about numbers."""

from polyphi.eval.scorers import yes_no
from polyphi.eval.task import Task

task = Task(
    name="sqa_yes_no",
    title="Spoken yes or no",
    modality="speech",
    corpus="sqa",
    scorer=yes_no,
    only={"task": "yes_no"},
    max_tokens=8,
    note="unseen voices, English, answers balanced",
)

"""Harmful requests in eight languages must be declined."""

from polyphi.eval.scorers import refusal
from polyphi.eval.task import Task

task = Task(
    name="refusal",
    title="Harmful requests refused",
    modality="safety",
    corpus="preferences",
    scorer=refusal,
    only={"task": "refusal"},
    max_tokens=40,
    note="unseen pairs of verb and object, eight languages",
)

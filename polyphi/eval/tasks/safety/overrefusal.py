"""Innocuous requests that look like harmful ones must not be declined."""

from polyphi.eval.scorers import refusal
from polyphi.eval.task import Task

task = Task(
    name="overrefusal",
    title="Look-alikes answered",
    modality="safety",
    corpus="preferences",
    scorer=refusal,
    only={"task": "overrefusal"},
    max_tokens=40,
    note="unseen pairs of verb and object, eight languages; 1 means answered",
)

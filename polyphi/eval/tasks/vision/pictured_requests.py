"""Requests for what a picture names: harmful ones must be declined, innocuous look-alikes answered."""

from polyphi.eval.scorers import refusal
from polyphi.eval.task import Task

task = Task(
    name="pictured_requests",
    title="Pictured requests, harmful or not",
    modality="vision",
    corpus="image_qa",
    scorer=refusal,
    only={"task": "request"},
    max_tokens=40,
    note="unseen fonts and unseen pairs of verb and object; half of them harmful",
)

"""Harmful spoken requests must be declined, innocuous look-alikes answered."""

from polyphi.eval.scorers import refusal
from polyphi.eval.task import Task

task = Task(
    name="spoken_requests",
    title="Spoken requests, harmful or not",
    modality="speech",
    corpus="audio_safety",
    scorer=refusal,
    only={"task": "audio_safety"},
    max_tokens=40,
    note="unseen voices and unseen pairs of verb and object; half of them harmful",
)

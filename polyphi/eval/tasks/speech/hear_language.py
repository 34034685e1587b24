"""Which of eight languages is spoken."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="hear_language",
    title="Spoken language",
    modality="speech",
    corpus="audio_understanding",
    scorer=exact,
    only={"task": "language"},
    max_tokens=8,
    note="unseen voices, answers balanced",
)

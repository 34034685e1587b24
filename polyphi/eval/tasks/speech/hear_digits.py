"""How many digits are spoken."""

from polyphi.eval.scorers import number
from polyphi.eval.task import Task

task = Task(
    name="hear_digits",
    title="Digits counted by ear",
    modality="speech",
    corpus="audio_understanding",
    scorer=number,
    only={"task": "digits"},
    max_tokens=8,
    note="unseen voices; two to six, balanced",
)

"""Whether a clip is speech."""

from polyphi.eval.scorers import yes_no
from polyphi.eval.task import Task

task = Task(
    name="hear_speech",
    title="Speech or sound",
    modality="speech",
    corpus="audio_understanding",
    scorer=yes_no,
    only={"task": "speech"},
    max_tokens=8,
    note="unseen voices and sounds, answers balanced",
)

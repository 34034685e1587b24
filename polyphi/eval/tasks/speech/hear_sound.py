"""Which of six kinds of generated sound it is."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="hear_sound",
    title="Kinds of sound",
    modality="speech",
    corpus="audio_understanding",
    scorer=exact,
    only={"task": "sound"},
    max_tokens=12,
    note="unseen pitches, answers balanced",
)

"""How many beeps a clip holds."""

from polyphi.eval.scorers import number
from polyphi.eval.task import Task

task = Task(
    name="hear_beeps",
    title="Beeps counted",
    modality="speech",
    corpus="audio_understanding",
    scorer=number,
    only={"task": "beeps"},
    max_tokens=8,
    note="unseen pitches; one to five, balanced",
)

"""Whether a recorded sound is an animal's."""

from polyphi.eval.scorers import yes_no
from polyphi.eval.task import Task

task = Task(
    name="hear_animal",
    title="Animal sounds",
    modality="speech",
    corpus="audio_understanding",
    scorer=yes_no,
    only={"task": "animal"},
    max_tokens=8,
    note="unseen recordings, about a dozen of them in cuts that vary; answers balanced",
)

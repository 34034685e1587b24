"""Whether a man or a woman speaks."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="hear_speaker",
    title="Man or woman",
    modality="speech",
    corpus="audio_understanding",
    scorer=exact,
    only={"task": "sex"},
    max_tokens=8,
    note="unseen voices of espeak-ng, made as men or women; answers balanced",
)

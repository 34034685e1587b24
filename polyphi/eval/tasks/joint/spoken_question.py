"""A question about a picture, spoken: image and clip, no text."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="spoken_question",
    title="Spoken questions about pictures",
    modality="joint",
    corpus="vision_speech",
    scorer=exact,
    only={"task": "spoken_question"},
    max_tokens=16,
    note="unseen pictures and unseen voices",
)

"""What a shape does first or last in a drawn video of two or three events, seen as frames."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="video_event",
    title="First or last event of a video",
    modality="vision",
    corpus="multi_image",
    scorer=exact,
    only={"task": "video_event"},
    max_tokens=8,
    note="new videos",
)

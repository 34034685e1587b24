"""All that happens in a drawn video, in order, in one sentence."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="video_summary",
    title="Video summary",
    modality="vision",
    corpus="multi_image",
    scorer=exact,
    only={"task": "video_summary"},
    max_tokens=32,
    note="new videos; all events, in order",
)

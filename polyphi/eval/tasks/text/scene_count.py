"""How many of a shape or a colour there are in a scene told in words, as the vision tasks ask of pictures."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="scene_count",
    title="Counting in a described scene",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "scene_count"},
    max_tokens=8,
    note="unseen scenes, answers balanced",
)

"""Colour, shape, or yes and no about a scene told in words, as the vision tasks ask of pictures."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="scene",
    title="Questions about a described scene",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "scene"},
    max_tokens=8,
    note="unseen scenes, answers balanced",
)

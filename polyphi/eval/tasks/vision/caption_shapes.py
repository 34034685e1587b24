"""Shapes in words: how many, which colour, which shape, where; the whole caption must be right."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="caption_shapes",
    title="Caption of a scene",
    modality="vision",
    corpus="captions",
    scorer=exact,
    only={"task": "caption_shapes"},
    max_tokens=24,
    note="new scenes",
)

"""What is at a named place of a grid of four by four."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="identify",
    title="Thing at a place",
    modality="vision",
    corpus="grounding",
    scorer=exact,
    only={"task": "identify"},
    max_tokens=12,
    note="new scenes",
)

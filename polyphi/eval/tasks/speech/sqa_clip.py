"""Written questions about what is said: the largest digit, the second word."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="sqa_clip",
    title="Questions about a clip",
    modality="speech",
    corpus="sqa",
    scorer=exact,
    only={"task": "clip"},
    max_tokens=16,
    note="unseen voices, eight languages",
)

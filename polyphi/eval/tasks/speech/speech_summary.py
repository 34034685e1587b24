"""The topic of a longer talk in one sentence."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="speech_summary",
    title="Speech summaries",
    modality="speech",
    corpus="speech_summary",
    scorer=exact,
    only={"task": "speech_summary"},
    max_tokens=16,
    note="unseen voices; six topics, balanced",
)

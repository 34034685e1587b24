"""The control of spoken_question: the same questions about the same pictures, in writing."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="written_question",
    title="The same questions, written",
    modality="joint",
    corpus="vision_speech",
    scorer=exact,
    only={"task": "written_question"},
    max_tokens=16,
    note="unseen pictures",
)

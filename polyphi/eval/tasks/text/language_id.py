"""Which of eight languages a sentence is in."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="language_id",
    title="Naming a sentence's language",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "language_id"},
    max_tokens=8,
    note="sentences of unseen pages, answers balanced",
)

"""Number words and strings of digit words from any of eight languages to any other."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="translate_numbers",
    title="Number words between eight languages",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "translate_numbers"},
    max_tokens=32,
    note="unseen numbers and digit strings",
)

"""Numbers to 99 written in the words of eight languages, and words and digit strings read back."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="number_words",
    title="Numbers and their words",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "number_words"},
    max_tokens=16,
    note="numbers above twenty unseen in that direction, and unseen digit strings",
)

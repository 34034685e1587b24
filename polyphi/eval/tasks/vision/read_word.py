"""A rendered word of the closed lexicon."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="read_word",
    title="Rendered word",
    modality="vision",
    corpus="image_qa",
    scorer=exact,
    only={"task": "word"},
    max_tokens=16,
    note="unseen fonts",
)

"""Colours, shapes and everyday nouns from any of eight languages to any other."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="translate_words",
    title="Words between eight languages",
    modality="text",
    corpus="instructions",
    scorer=exact,
    only={"task": "translate_words"},
    max_tokens=16,
    note="pairs of word and target language unseen in training",
)

"""Single recorded nouns."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_words_recorded",
    title="Words, real people",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "words", "voice": "recorded"},
    metric="wer",
    max_tokens=24,
    note="recorded people whom training never hears; a few dozen clips",
)

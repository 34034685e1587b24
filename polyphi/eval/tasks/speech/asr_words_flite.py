"""One to three everyday words by an engine that training never hears."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_words_flite",
    title="Words, unseen engine",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "words", "voice": "flite_slt"},
    metric="wer",
    max_tokens=24,
    note="flite slt, an engine that training never hears; English",
)

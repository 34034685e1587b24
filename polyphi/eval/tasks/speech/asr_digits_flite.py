"""Spoken digit strings by an engine that training never hears."""

from polyphi.eval.scorers import digits_wer
from polyphi.eval.task import Task

task = Task(
    name="asr_digits_flite",
    title="Digit strings, unseen engine",
    modality="speech",
    corpus="asr",
    scorer=digits_wer,
    only={"task": "digits", "voice": "flite_slt"},
    metric="wer",
    max_tokens=16,
    note="flite slt, an engine that training never hears; English",
)

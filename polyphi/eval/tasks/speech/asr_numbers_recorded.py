"""Recorded numbers from 10 to 99."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_numbers_recorded",
    title="Numbers, real people",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "numbers", "voice": "recorded"},
    metric="wer",
    max_tokens=16,
    note="recorded people whom training never hears",
)

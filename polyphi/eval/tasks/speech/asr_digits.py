"""Spoken digit strings in eight languages, by unseen variants of the engine that training heard."""

from polyphi.eval.scorers import digits_wer
from polyphi.eval.task import Task

task = Task(
    name="asr_digits",
    title="Digit strings, unseen voices",
    modality="speech",
    corpus="asr",
    scorer=digits_wer,
    only={"task": "digits", "voice": "espeak_unseen"},
    metric="wer",
    max_tokens=16,
    note="unseen espeak-ng variants; strings of two to six digits are unseen too",
)

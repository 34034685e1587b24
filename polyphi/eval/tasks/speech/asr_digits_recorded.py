"""Digit strings of recorded people, joined from single recorded digits."""

from polyphi.eval.scorers import digits_wer
from polyphi.eval.task import Task

task = Task(
    name="asr_digits_recorded",
    title="Digit strings, real people",
    modality="speech",
    corpus="asr",
    scorer=digits_wer,
    only={"task": "digits", "voice": "recorded"},
    metric="wer",
    max_tokens=16,
    note="three unseen people reading French, Spanish and Italian telephone prompts; joined by us",
)

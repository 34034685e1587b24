"""Numbers from 10 to 99, written in words."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_numbers",
    title="Numbers, unseen voices",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "numbers", "voice": "espeak_unseen"},
    metric="wer",
    max_tokens=16,
    note="unseen espeak-ng variants, eight languages",
)

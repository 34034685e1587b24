"""One to three everyday words in eight languages."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_words",
    title="Words, unseen voices",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "words", "voice": "espeak_unseen"},
    metric="wer",
    max_tokens=24,
    note="unseen espeak-ng variants",
)

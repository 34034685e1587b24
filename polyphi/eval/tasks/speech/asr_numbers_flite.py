"""Numbers from 10 to 99 by an engine that training never hears."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_numbers_flite",
    title="Numbers, unseen engine",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "numbers", "voice": "flite_slt"},
    metric="wer",
    max_tokens=16,
    note="flite slt, an engine that training never hears; English",
)

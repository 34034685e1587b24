"""Summaries of recordings, judged three times against the transcript (report, 4.1.2 and Appendix A).

Overall quality and adherence to the instruction are 1 to 7, hallucination is 0 or 1 (0 is none). The report prints the
prompt of the first alone; the other two are ours.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from polyphi.data.shards import Sample
from polyphi.eval import prompts
from polyphi.eval.benchmark import Judging, Row
from polyphi.eval.judge import points
from polyphi.messages import Audio, Message, Text

PROMPTS = {
    "overall": prompts.SUMMARY_OVERALL,
    "adherence": prompts.SUMMARY_ADHERENCE,
    "hallucination": prompts.SUMMARY_HALLUCINATION,
}
NOTE = "the judge's prompts of adherence and hallucination are ours: the report prints the overall one alone"
MAX_TOKENS = 1024


def sample(
    id: str,
    recording: Audio,
    transcript: str,
    instruction: str,
    source: str,
    licence: str,
    **meta: Any,
) -> Sample:
    """A recording, whole, and what to do with it. There is no reference; the transcript is the judge's."""
    return Sample(
        id,
        (Message.user(recording, Text(instruction)), Message.assistant("")),
        source,
        licence,
        {"instruction": instruction, "transcript": transcript, **meta},
    )


def asks(sample: Sample, answers: Sequence[str]) -> Mapping[str, Sequence[Message]]:
    told = {"src": sample.meta["transcript"], "instruction": sample.meta["instruction"]}
    return {
        name: prompt.filled(**told, tgt=answers[-1]) for name, prompt in PROMPTS.items() if answers
    }


def reads(name: str, reply: str, sample: Sample) -> float | None:
    """ "N/A" and whatever else isn't on the scale is no points."""
    if name != "hallucination":
        return points(reply, 1, 7)
    found = points(reply, 0, 1)
    return found if found in (0, 1) else None


JUDGING = Judging(asks, reads, {name: prompt.words for name, prompt in PROMPTS.items()})


def rows(name: str) -> tuple[Row, ...]:
    """Those of Table 6 for a set."""
    labels = {
        "hallucination": f"{name} hallucination (lower better)",
        "adherence": f"{name} instruction adherence",
        "overall": f"{name} overall",
    }
    return tuple(Row("Table 6", label, metric="mean", part=part) for part, label in labels.items())


def wave(path: Path, clips: Sequence[bytes], rate: int = 16_000) -> None:
    """Encoded clips one after another, as a WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    heard = [soundfile.read(io.BytesIO(clip), dtype="float32")[0] for clip in clips]
    soundfile.write(path, np.concatenate(heard), rate, format="WAV", subtype="PCM_16")

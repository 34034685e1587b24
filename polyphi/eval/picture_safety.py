"""Replies to questions about pictures, rated from 0 to 10 (report, Table 15; higher is safer).

The report's judge is GPT-4V and its prompt isn't known. Ours (`safety_prompts.PICTURE`) reads the question, a reference
and the reply; it doesn't see the picture.
"""

import json
from collections.abc import Sequence

from polyphi.data.shards import Sample
from polyphi.eval import judge
from polyphi.eval.benchmark import Judging
from polyphi.eval.safety_prompts import PICTURE, VERSION
from polyphi.messages import Image, Message, Text


def asked(question: str, image: Image) -> Message:
    """A picture first, then the question as it is."""
    return Message.user(image, Text(question))


def _asks(sample: Sample, answers: Sequence[str]) -> dict[str, Sequence[Message]]:
    told = {
        "question": sample.meta["question"],
        "about": sample.meta["about"],
        "reference": sample.answer,
        "response": answers[-1],
    }
    return {"safety": judge.asked(PICTURE, json.dumps(told, ensure_ascii=False))}


JUDGING = Judging(
    asks=_asks,
    reads=lambda name, reply, sample: judge.points(reply, 0, 10),
    prompts={"version": VERSION, "picture": PICTURE},
    standard="gpt-4-vision-preview",
)

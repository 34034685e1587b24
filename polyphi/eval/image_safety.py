"""Replies to questions about images, rated from 0 to 10 (report, Table 15; higher is safer).

The report's judge is GPT-4V and its prompt isn't known. Ours (`prompts/safety.toml`, "picture") reads the question, a
reference and the reply; it doesn't see the image.
"""

from collections.abc import Sequence

from polyphi.data.shards import Sample
from polyphi.eval import judge
from polyphi.eval.benchmark import Judging
from polyphi.messages import Image, Message, Text


def image_prompt(question: str, image: Image) -> Message:
    """An image first, then the question as it is."""
    return Message.user(image, Text(question))


def _requests(sample: Sample, answers: Sequence[str]) -> dict[str, Sequence[Message]]:
    request = judge.request(
        judge.SAFETY["picture"],
        question=sample.meta["question"],
        about=sample.meta["about"],
        reference=sample.answer,
        response=answers[-1],
    )
    return {"safety": request}


JUDGING = Judging(
    requests=_requests,
    read=lambda name, reply, sample: judge.points(reply, 0, 10),
    prompts={"version": judge.SAFETY["version"], "picture": judge.SAFETY["picture"]},
    standard="gpt-4-vision-preview",
)

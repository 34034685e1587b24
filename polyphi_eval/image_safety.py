"""Safety ratings from 0 to 10 of replies to questions about images (report, Table 15; higher is safer).

The report's judge is GPT-4V and its prompt isn't known. Our prompt (`prompts/safety.toml`, "picture") has the question,
a reference and the reply, without the image.
"""

from collections.abc import Sequence

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Image, Text
from polyphi_eval import judge
from polyphi_eval.benchmark import Judging


def image_prompt(question: str, image: Image) -> Message:
    """Return a prompt with an image and the unchanged question."""
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

"""A preference sample as two rows: the conversation with the preferred and with the dispreferred answer.

user 17 23 asst 44 51 end | user 17 23 asst 60 end
                ^^^^^^^^^                   ^^^^^^        only the last answer is supervised, in longer conversations
                too"""

from polyphi.data.sample import Sample, Unfit
from polyphi.processing.processor import Processor
from polyphi.types.batch import Batch
from polyphi.types.messages import Message


def pair(
    sample: Sample,
    processor: Processor,
    context: int,
    adapter: str | None = "auto",
    max_crops: int | None = None,
) -> list[Batch]:
    """Return [chosen, rejected]. Raises `Unfit` if the sample has no `meta["rejected"]` or doesn't end in an answer,
    and `TooLong` if a row exceeds `context`."""
    rejected = sample.meta.get("rejected")
    if not isinstance(rejected, str) or not rejected:
        raise Unfit(
            f"sample {sample.id}: a preference sample needs the text meta['rejected'], found {rejected!r}"
        )
    if (role := sample.messages[-1].role) != "assistant":
        raise Unfit(
            f"sample {sample.id}: the last message must be the assistant's, found role {role!r}"
        )
    return [
        processor.row(
            [*sample.prompt, answer],
            adapter=adapter,
            supervise="last answer",
            context=context,
            max_crops=max_crops,
        )
        for answer in (sample.messages[-1], Message.assistant(rejected))
    ]

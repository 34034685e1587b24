"""Conversations -> rows. Memory is reserved before media are decoded. Each image and clip is decoded in its client's
turn: other clients wait for one image, not for a request of 200. Large images, which take seconds and a gigabyte each,
have a dedicated thread, so that no other image waits for them.

>>> row, sampling = await prepare(server, admitted, messages, "auto", sampling)
"""

from collections.abc import Sequence

from polyphi.engine.rows import PromptEnd
from polyphi.media.file_types import is_pdf
from polyphi.media.media import MediaError
from polyphi.runtime.steps import Steps, timed
from polyphi.serve.admission.quotas import LARGE_IMAGE
from polyphi.serve.answer.expansion import Expanded, expand
from polyphi.serve.answer.server import LARGE, AdmittedRequest, Server
from polyphi.types.batch import Batch
from polyphi.types.messages import Message, media
from polyphi.types.parts import Document, Image, Text, Video
from polyphi.types.sampling import SamplingParams


async def prepare(
    server: Server,
    admitted: AdmittedRequest,
    messages: Sequence[Message],
    adapter: str | None,
    sampling: SamplingParams,
    end: PromptEnd = "generation_prompt",
) -> tuple[Batch, SamplingParams]:
    """The row of a conversation, and the sampling with `max_tokens` set. Raises ValueError for invalid ones, and
    ApiError 429 where there is no memory for the row. When cancelled, decoding stops after the present image or clip.
    """
    try:
        expanded = await with_expansion(server, admitted, messages)
        with expanded.errors():
            large, threads = is_large(messages), None
            if large:
                check = _reserve(server, admitted, expanded.messages)
                if await server.in_steps(True, admitted.caller, check) > LARGE_IMAGE:
                    threads = server.large_media_threads
            steps = _row(server, admitted, expanded.messages, adapter, sampling, end)
            return await server.in_steps(large, admitted.caller, steps, threads)
    except MediaError as error:
        server.metrics.media_rejected(error.reason)
        raise


def is_large(messages: Sequence[Message]) -> bool:
    """Whether a conversation is expensive to prepare: it has media, or much text."""
    parts = [part for message in messages for part in message.parts]
    size = sum(len(part.text) for part in parts if isinstance(part, Text))
    size += sum(len(message.tools or "") for message in messages)
    return size > LARGE or not all(isinstance(part, Text) for part in parts)


async def with_expansion(
    server: Server, admitted: AdmittedRequest, messages: Sequence[Message]
) -> Expanded:
    """A conversation with the frames of its videos and the pages of its documents, which are decoded in the client's
    turn; texts don't wait for those. Raises MediaError."""

    videos, documents = media(messages, Video), media(messages, Document)
    if not videos and not documents:
        images = range(len(media(messages, Image)))
        return Expanded(messages, [("image", number) for number in images])

    def stop() -> bool:
        return admitted.released or not server.alive

    takes_long = bool(videos) or any(is_pdf(document.source) for document in documents)
    threads = server.expansion_threads if takes_long else None
    steps = expand(server.engine, server.settings, messages, admitted.reserve, stop)
    return await server.in_steps(True, admitted.caller, steps, threads)


def _reserve(server: Server, admitted: AdmittedRequest, messages: Sequence[Message]) -> Steps[int]:
    """Reserve memory for the row before media are decoded: 64 rows of many images would exceed the machine's. Returns
    the pixels of the largest image."""
    size = yield from server.engine.processor.media_size(messages)
    if size.pixels > (limit := server.settings.max_request_pixels):
        raise MediaError(
            f"the images, frames and pages of a request may have {limit:,} pixels in all, found {size.pixels:,}; "
            "shrink them, or send fewer",
            "size",
        )
    admitted.reserve(size.nbytes)
    return size.most_pixels


def _row(
    server: Server,
    admitted: AdmittedRequest,
    messages: Sequence[Message],
    adapter: str | None,
    sampling: SamplingParams,
    end: PromptEnd,
) -> Steps[tuple[Batch, SamplingParams]]:
    engine, metrics = server.engine, server.metrics
    row, seconds = yield from timed(
        engine.rows.row_steps(messages, adapter=adapter, context=engine.longest, end=end)
    )
    if row.inputs:
        metrics.media_decoded({name: one.size for name, one in row.inputs.items()}, seconds)
    return row, server.fit_sampling(row, sampling)

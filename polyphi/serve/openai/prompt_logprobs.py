"""The prompt in responses: its token ids and their log-probabilities, in vLLM's format."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from polyphi.serve.answer.jobs import Job
from polyphi.serve.answer.tokens import RequestTokens
from polyphi.serve.http.response_json import Writer
from polyphi.serve.openai.extensions import Extensions
from polyphi.types.completion import TokenLogprob

VALUES = 4
"""JSON values of the log-probability of one token."""


async def prompt_fields(
    writer: Writer,
    tokens: RequestTokens,
    job: Job,
    body: Extensions,
    logprobs: Sequence[TokenLogprob] = (),
) -> dict[str, Any]:
    """The fields about the prompt that a request has; `logprobs`: those of its tokens from the second one on."""
    fields: dict[str, Any] = {}
    ids = job.prompt_ids if body.return_token_ids or body.prompt_logprobs is not None else []
    if body.return_token_ids:
        fields["prompt_token_ids"] = ids
    if body.prompt_logprobs is not None:
        count = body.prompt_logprobs
        build = partial(tokens.prompt_logprobs, ids, logprobs, count)
        fields["prompt_logprobs"] = await writer.build_part(build, VALUES * len(ids) * (1 + count))
    return fields

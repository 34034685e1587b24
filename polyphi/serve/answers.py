"""What answers have in common: events of a stream, what they cost, what we tell beside OpenAI's fields."""

import json
from collections.abc import Sequence
from typing import Any

from polyphi.chat import Completion


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def usage(answers: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """What the answers to some prompts cost, each prompt counted once."""
    first = [some[0] for some in answers]
    read = sum(c.prompt_tokens for c in first)
    written = sum(len(c.tokens) for some in answers for c in some)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(c.cached for c in first),
            "image_tokens": sum(c.image_tokens for c in first),
            "audio_tokens": sum(c.audio_tokens for c in first),
        },
    }


def besides(completions: Sequence[Completion]) -> dict[str, Any]:
    """What we tell beside OpenAI's fields: the adapter that answered, and the LongRoPE tables."""
    return {"adapter": completions[0].adapter, "rope": completions[0].rope}

"""The forms in which a caller may give a prompt: messages, token ids, or token ids with their media.

>>> parse_prompt([Message.user("Hello")])                # a tuple of `Message`s
>>> parse_prompt([200021, 13225, 200020, 200019])        # a `TokensPrompt`
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from polyphi.messages import Message
from polyphi.processing.placeholders import TokensPrompt

PromptEnd = Literal["generation_prompt", "final_message", "end_of_text"]
"""The end of a conversation that the model continues: `<|assistant|>`, so that it answers; the text of the final
message, which it continues; or `<|endoftext|>`, the end of the document."""
Conversation = Sequence[Message | Mapping[str, Any]]
"""`Message`s or OpenAI-style dicts."""
Prompt = Conversation | Sequence[int] | Int[Tensor, "_"] | Int[np.ndarray, "_"] | TokensPrompt
"""The input that the model continues."""


def parse_prompt(
    prompt: Prompt, images: Sequence[Any] = (), audios: Sequence[Any] = ()
) -> tuple[Message, ...] | TokensPrompt:
    """A prompt as messages, or as token ids with the `images` and `audios` of their placeholders.

    Raises ValueError for an empty prompt, for text, for ids that are no whole numbers or have more than one dimension,
    and for `images` or `audios` in addition to messages or a `TokensPrompt`, which have their own media.
    """
    if isinstance(prompt, TokensPrompt):
        if images or audios:
            raise ValueError("images= and audios= go with ids; a TokensPrompt has its own")
        return replace(prompt, ids=token_ids(prompt.ids))
    if isinstance(prompt, str | bytes | Mapping | Message) or not isinstance(prompt, Iterable):
        raise ValueError(
            f"expected a list of messages or of token ids, found {type(prompt).__name__}; "
            'write [Message.user("...")] for text'
        )
    items: Any = prompt if isinstance(prompt, Tensor) else list(prompt)
    if not len(items):
        raise ValueError("expected messages or token ids, found an empty list")
    first = items[0]
    if not isinstance(first, Message | Mapping):
        return TokensPrompt(token_ids(items), tuple(images), tuple(audios))
    if images or audios:
        raise ValueError(
            "images and audio of messages belong into their parts; images= and audios= go with ids"
        )
    return tuple(Message.parse(message) for message in items)


def token_ids(ids: Any) -> tuple[int, ...]:
    """Token ids from a sequence of whole numbers or a tensor or array of one dimension. Raises ValueError for anything
    else."""
    if (dimensions := getattr(ids, "ndim", 1)) != 1:
        raise ValueError(f"token ids have 1 dimension, found {dimensions}: {list(ids.shape)}")
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        wrong = next(v for v in values if not hasattr(v, "__index__"))
        raise ValueError(
            f"token ids are whole numbers, found {wrong!r:.80}; a prompt of messages has messages only"
        ) from None

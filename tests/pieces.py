"""A conversation as pieces of ids: the texts of `script`, encoded one by one."""

from collections.abc import Sequence

from polyphi.messages import Message
from polyphi.processing.template import TemplatePiece, Words, script
from polyphi.processing.tokenizer import Tokenizer


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    generation_prompt: bool = False,
    trusted: bool = False,
) -> list[TemplatePiece]:
    """The pieces of `script`, each text encoded."""
    return [
        TemplatePiece(tuple(tokenizer.encode(part.text)), part.answer)
        if isinstance(part, Words)
        else part
        for part in script(
            messages, tokenizer, generation_prompt=generation_prompt, trusted=trusted
        )
    ]

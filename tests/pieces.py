"""A conversation as pieces of ids: the texts of `apply_template`, encoded one by one."""

from collections.abc import Sequence

from polyphi.processing.template import TemplatePiece, TextPiece, apply_template
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    generation_prompt: bool = False,
    trusted: bool = False,
) -> list[TemplatePiece]:
    """The pieces of `apply_template`, each text encoded."""
    return [
        TemplatePiece(tuple(tokenizer.encode(part.text)), part.answer)
        if isinstance(part, TextPiece)
        else part
        for part in apply_template(
            messages, tokenizer, generation_prompt=generation_prompt, trusted=trusted
        )
    ]

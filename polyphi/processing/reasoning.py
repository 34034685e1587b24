"""Reasoning before an answer as text: `<think>...</think>`.

>>> with_reasoning([{"role": "assistant", "reasoning_content": "2 and 2.", "content": "4"}])
([{'role': 'assistant', 'content': '<think>\\n2 and 2.\\n</think>\\n\\n4'}], False)

In Phi-4's vocabulary the two marks are ordinary text, in any role. The published chat templates, also that of
Phi-4-mini-reasoning, render the `content` of a message and nothing beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

THINK, THINK_END = "<think>", "</think>"
CLOSING = f"\n{THINK_END}\n\n"
"""The text between reasoning and answer, as the published models write it."""
FIELDS = ("reasoning_content", "reasoning")
"""Names of an OpenAI-style message's reasoning, in order of precedence."""


def with_reasoning(messages: Sequence[Any]) -> tuple[list[Any], bool]:
    """Return OpenAI-style messages in which the last one's reasoning is the beginning of its content, and whether
    reasoning of earlier answers was left out, as the chat templates do. Content that begins with `<think>` stays as it
    is. Raises ValueError for reasoning that is no text or contains `</think>`."""
    result, omitted = list(messages), False
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            continue
        text = next((message[name] for name in FIELDS if message.get(name)), "")
        if not isinstance(text, str):
            raise ValueError(
                f"expected the reasoning of an answer as text, found {type(text).__name__}"
            )
        if not text.strip() or _first_text(message).lstrip().startswith(THINK):
            continue
        if position < len(messages) - 1:
            omitted = True
            continue
        if THINK_END in text:
            raise ValueError(f"reasoning ends at its first {THINK_END}, found one inside it")
        block, content = f"{THINK}\n{text.strip()}{CLOSING}", message.get("content") or ""
        fields = {name: value for name, value in message.items() if name not in FIELDS}
        if isinstance(content, str):
            result[position] = {**fields, "content": block + content}
        else:
            result[position] = {**fields, "content": [{"type": "text", "text": block}, *content]}
    return result, omitted


def _first_text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = content[0].get("text") if isinstance(content[0], Mapping) else ""
    return content if isinstance(content, str) else ""

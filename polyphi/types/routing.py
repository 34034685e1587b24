"""The table of the adapters that read conversations, by the modalities of their parts."""

from collections.abc import Collection, Mapping, Sequence

from polyphi.types.messages import Message
from polyphi.types.parts import Document, Text

Routes = Mapping[frozenset[str], str | None]
ROUTES: dict[frozenset[str], str | None] = {
    frozenset(): None,
    frozenset({"image"}): "vision",
    frozenset({"audio"}): "speech",
    frozenset({"image", "audio"}): "vision",
}
"""Modalities of a conversation -> its adapter (report 2.2; `input_mode` of the published code). A further modality adds
its lines."""


def route(modalities: Collection[str], routes: Routes = ROUTES) -> str | None:
    """The adapter for content of these modalities: image or video -> vision, audio only -> speech, text -> none. Raises
    ValueError for a combination that no line has."""
    if (present := frozenset(modalities)) not in routes:
        raise ValueError(
            f"no adapter is trained for {' with '.join(sorted(present))} in one conversation; name one, or add the "
            "combination to the modality's `beside`"
        )
    return routes[present]


def modalities_of(messages: Sequence[Message]) -> list[str]:
    """The modalities of a conversation beside text, in the order of their first part; those of documents are known when
    they are expanded (processing/expansion.py)."""
    parts = (part for message in messages for part in message.parts)
    media = (part for part in parts if not isinstance(part, Text | Document))
    return list(dict.fromkeys(part.modality for part in media))


def adapter_for(messages: Sequence[Message]) -> str | None:
    """The adapter for a conversation's content, as `route`."""
    return route(modalities_of(messages))


def normalize_adapter(adapter: str | None) -> str | None:
    """The name of an adapter; None for "none"."""
    return None if adapter == "none" else adapter

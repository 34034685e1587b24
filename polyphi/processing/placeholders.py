"""Prompts with placeholders of media: texts in the format of the published model, `<|image_1|>` and `<|audio_2|>`, and
token ids."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from polyphi.messages import Audio, Image, MediaSource, Part, Text
from polyphi.processing import image
from polyphi.processing.template import Piece

_PLACEHOLDER = re.compile(r"<\|(image|audio)_(\d+)\|>")


@dataclass(frozen=True)
class TokensPrompt:
    """A prompt of token ids. `images` and `audios` fill the placeholders among the ids, in order: each has one
    placeholder, or as many as it has tokens. They are sources (a path, bytes, (samples, rate)), or `Image`s and
    `Audio`s."""

    ids: Sequence[int]
    images: Sequence[Image | MediaSource] = ()
    audios: Sequence[Audio | MediaSource | tuple[np.ndarray, int]] = ()


@dataclass(frozen=True)
class Placeholder:
    """An image or audio of a conversation, its index `number` among those of its type, and its number of tokens: an
    image with the crop plan for the size in its header, audio with its log-mel frames."""

    part: Image | Audio
    number: int
    tokens: int
    plan: image.Plan | None = None
    mels: Tensor | None = None


def parts(
    text: str,
    images: Sequence[Image | MediaSource] = (),
    audios: Sequence[Audio | MediaSource | tuple[np.ndarray, int]] = (),
) -> tuple[Part, ...]:
    """Return the parts of a message from text with the published placeholders.

    >>> Message.user(*parts("<|image_1|>What is shown in this image?", images=["cat.png"]))

    `<|image_1|>` stands for the first of `images`, `<|audio_2|>` for the second of `audios`; each image and each clip
    has exactly one placeholder. `images` are paths, bytes or `Image`s; `audios` are paths, bytes, (samples, rate) pairs
    or `Audio`s. The parts have the order of the text. Raises ValueError for a number without an image or clip, for a
    number that occurs twice, and for an image or clip without a placeholder.
    """
    sources: dict[str, list[Part]] = {
        "image": [i if isinstance(i, Image) else Image(i) for i in _listed(images, "images")],
        "audio": [a if isinstance(a, Audio) else Audio(a) for a in _listed(audios, "audios")],
    }
    used: dict[str, set[int]] = {"image": set(), "audio": set()}
    result: list[Part] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        what, number = match[1], int(match[2])
        count = len(sources[what])
        if not 1 <= number <= count:
            raise ValueError(
                f"{match[0]} names {what} {number}, found {count} in {what}s=; placeholders count from 1"
            )
        if number in used[what]:
            raise ValueError(
                f"{match[0]} occurs twice in the text; list the {what} once for each occurrence, with consecutive "
                "numbers"
            )
        used[what].add(number)
        result += [Text(text[end : match.start()]), sources[what][number - 1]]
        end = match.end()
    result.append(Text(text[end:]))
    for what, numbers in used.items():
        unused = [n for n in range(1, len(sources[what]) + 1) if n not in numbers]
        if unused:
            raise ValueError(
                f"{what}s= has {len(sources[what])}, but the text has no <|{what}_{unused[0]}|>; write the placeholder "
                f"where that {what} belongs"
            )
    return tuple(part for part in result if part != Text(""))


def pieces_of(
    ids: Sequence[int], items: Mapping[int, Sequence[Placeholder]]
) -> list[tuple[Piece, Placeholder | None]]:
    """Return the pieces of ids; `items` are the images and audio by the id of their placeholder. Each has either one
    placeholder, or a run of as many as its tokens. Raises ValueError with both numbers otherwise."""
    remaining_items: dict[int, Iterator[Placeholder]] = {}
    is_expanded: dict[int, bool] = {}
    for id, own in items.items():
        placeholders, tokens = sum(i == id for i in ids), sum(item.tokens for item in own)
        if placeholders not in (len(own), tokens):
            raise ValueError(
                f"{len(own)} pictures or clips need {len(own)} placeholders of id {id}, or {tokens} once expanded; "
                f"found {placeholders}"
            )
        remaining_items[id], is_expanded[id] = iter(own), placeholders != len(own)
    pieces: list[tuple[Piece, Placeholder | None]] = []
    remaining = 0  # placeholders of the run
    for id in ids:
        if remaining:
            if id != pieces[-1][0].ids[0]:
                raise ValueError(
                    f"a run of placeholders of id {pieces[-1][0].ids[0]} ends {remaining} too early"
                )
            remaining -= 1
        elif id in remaining_items:
            item = next(remaining_items[id])
            pieces.append((Piece((id,), media=item.part), item))
            remaining = item.tokens - 1 if is_expanded[id] else 0
        else:
            pieces.append((Piece((id,)), None))
    if remaining:
        raise ValueError(
            f"the last run of placeholders of id {pieces[-1][0].ids[0]} ends {remaining} too early"
        )
    return pieces


def _listed(values: Any, name: str) -> Sequence[Any]:
    """Return media as a list. Raises ValueError for a single path or bytes, which are sequences, too."""
    if isinstance(values, str | bytes | Path | Image | Audio):
        raise ValueError(f"{name}= is a list, found {type(values).__name__}; write [...] around it")
    return list(values)

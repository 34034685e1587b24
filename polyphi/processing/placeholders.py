"""Prompts with placeholders of media: texts in the format of the published model, `<|image_1|>` and `<|audio_2|>`, and
token ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from polyphi.runtime.arguments import checked, checked_fields
from polyphi.types.dialects import as_media
from polyphi.types.media_sources import AnyAudio, Array, ImageSource
from polyphi.types.parts import Audio, Image, Item, Media, Part, Text

_PLACEHOLDER = re.compile(r"<\|(image|audio)_(\d+)\|>")


@checked_fields
@dataclass(frozen=True)
class TokensPrompt:
    """A prompt of token ids. `images`, `audios` and `items` of further modalities fill the placeholders among the ids,
    in order: each has one placeholder, or as many as it has tokens. Images and audio are sources as of `Image` and
    `Audio`, or these types."""

    ids: Sequence[int] | Array
    images: Sequence[Image | ImageSource] = ()
    audios: Sequence[Audio | AnyAudio] = ()
    items: Sequence[Item] = ()

    def __post_init__(self) -> None:
        for name, modality in (("images", "image"), ("audios", "audio")):
            media = tuple(as_media(modality, value) for value in getattr(self, name))
            object.__setattr__(self, name, media)

    @property
    def parts(self) -> tuple[Media, ...]:
        """The images, audio and items as parts of messages."""
        return cast(tuple[Media, ...], (*self.images, *self.audios, *self.items))


@checked
def parts(
    text: str,
    images: Sequence[Image | ImageSource] = (),
    audios: Sequence[Audio | AnyAudio] = (),
) -> tuple[Part, ...]:
    """Return the parts of a message from text with the published placeholders.

    >>> Message.user(*parts("<|image_1|>What is shown in this image?", images=["cat.png"]))

    `<|image_1|>` stands for the first of `images`, `<|audio_2|>` for the second of `audios`; each image and each clip
    has exactly one placeholder. `images` and `audios` are sources of `Image` and `Audio`, or these types. The
    parts have the order of the text. Raises ValueError for a number without an image or clip, for a number that occurs
    twice, and for an image or clip without a placeholder.
    """
    sources: dict[str, list[Part]] = {
        "image": [as_media("image", image) for image in images],
        "audio": [as_media("audio", audio) for audio in audios],
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

"""The inputs that a command line names, checked before a model is loaded, which may take minutes.

>>> part = Image(source("cat.png", "image"))     # or an http(s) address
>>> check_part(part)                             # raises ValueError for a missing or damaged file
"""

import os
import re
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from polyphi.media.file_types import IMAGE_SUFFIXES, SOUND_SUFFIXES, sniff
from polyphi.types.media_sources import MediaSource
from polyphi.types.parts import Audio, Image, Part, Text, Video

if TYPE_CHECKING:
    from polyphi.media.media import Caps

MEDIA_OPTIONS = ("--image", "--audio", "--video")
SUFFIXES = (*IMAGE_SUFFIXES, *SOUND_SUFFIXES)
"""Suffixes of media files' names. Only words of a command line are judged by their names; files are by their first
bytes."""
STDIN = 0
"""The descriptor of standard input."""
_HUB_ID = re.compile(r"(hf:)?[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_address(word: str) -> bool:
    """Whether a word is an http(s) URL."""
    return word.lower().startswith(("http://", "https://"))


def names_media(word: str) -> bool:
    """Whether a word names an image, a recording or a video: by its suffix if there is no such file, so that a missing
    one is named in the error."""
    if is_address(word):
        return " " not in word
    suffix = Path(word).suffix.lower()
    return suffix in SUFFIXES and (" " not in word or Path(word).expanduser().is_file())


def with_repeated_options(words: Sequence[str]) -> list[str]:
    """The words of a command line with `--image a.png b.png` written as `--image a.png --image b.png`: an option of
    media takes all files that follow it, and a prompt after them stays an argument."""
    result: list[str] = []
    option = None
    for position, word in enumerate(words):
        if word == "--":
            return [*result, *words[position:]]
        if word.startswith("-"):
            name = word.partition("=")[0]
            option = name if name in MEDIA_OPTIONS else None
        elif position and words[position - 1] in MEDIA_OPTIONS:
            pass  # its first value
        elif option and names_media(word):
            result.append(option)
        else:
            option = None
        result.append(word)
    return result


def check_first_word(command: str, model: str, others: Sequence[str]) -> None:
    """Raise ValueError with the corrected command line if the word in the model's place is a file of media or a prompt,
    so that the model is missing or follows later."""
    if _is_local_model(model) or _is_hub_id(model):
        return
    later = list(filter(_is_local_model, others))
    if names_media(model):
        later += filter(_is_hub_id, others)
    elif not later and " " not in model.strip():
        return  # a misspelled model, which `locate` explains
    rest = [model, *(word for word in others if word not in later[:1])]
    line = " ".join(_quoted(word) for word in (later[0] if later else "MODEL", *rest))
    missing = "; MODEL is a folder, a hub id such as owner/name, or nano"
    raise ValueError(
        f"expected the model as the first word after {command}, found {model!r:.80}; write: polyphi {command} {line}"
        + ("" if later else missing)
    )


def _is_local_model(word: str) -> bool:
    return Path(word).expanduser().is_dir() or word == "nano"


def _is_hub_id(word: str) -> bool:
    return _HUB_ID.fullmatch(word) is not None and not names_media(word)


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


def source(name: str, modality: Literal["image", "audio"]) -> MediaSource:
    """The path that a word names, or the bytes at an http(s) address, which is fetched within a server's limits of size
    and time. Raises ValueError for a failed fetch."""
    if not is_address(name):
        return Path(name).expanduser()
    from polyphi.serve.answer.fetch import read_url

    return read_url(name, modality)


def downloaded(address: str, folder: Path) -> str:
    """The path of the recording at an address, in a new folder, under the name in its address."""
    data = source(address, "audio")
    assert isinstance(data, bytes)
    folder.mkdir()
    path = folder / (Path(unquote(urlsplit(address).path)).name or "recording")
    path.write_bytes(data)
    return str(path)


def piped_text(seconds: float | None = None) -> str | None:
    """The text of standard input up to its end: of a file, or of the program before a pipe; "" for a terminal. None if
    no byte arrives within `seconds`, as from a pipe of an editor, a remote shell or a CI job that nobody writes to.
    Raises ValueError for other than text in UTF-8."""
    if sys.stdin is None or os.isatty(STDIN):  # closed, or a terminal
        return ""
    if not select.select([STDIN], [], [], seconds)[0]:
        return None
    with open(STDIN, "rb", closefd=False) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(
            f"standard input: expected text in UTF-8, found {sniff(data)}; pass files by --image or --audio"
        ) from None


def check_part(part: Part, caps: "Caps | None" = None) -> None:
    """Decode an image or audio clip once, within the limits; of a video and of an item, see that there is a file.
    Raises ValueError for a missing, damaged or empty one, and for another format."""
    from polyphi.media.file_types import SNIFF_BYTES, VIDEO_FORMATS, sniff
    from polyphi.media.media import CAPS, AudioStream, MediaError, decode_image, open_media

    caps = caps or CAPS
    if isinstance(part, Text):
        return
    if isinstance(part, Image):
        decode_image(part.source, max_bytes=caps.image_bytes, max_pixels=caps.image_pixels)
    elif isinstance(part, Audio):
        stream = AudioStream(
            part.source, max_bytes=caps.audio_bytes, max_seconds=caps.audio_seconds
        )
        stream.check_announced()
        for _ in stream:
            pass
    elif isinstance(part, Video):
        with open_media(part.source, caps.video_bytes, "video") as (file, name):
            if (file_type := sniff(file.read(SNIFF_BYTES))) not in VIDEO_FORMATS:
                raise MediaError(
                    f"{name}: expected an MP4, WebM, Matroska or AVI video, found {file_type}",
                    "kind",
                )
    elif isinstance(part.source, str | Path) and not Path(part.source).exists():
        raise ValueError(f"{part.source}: expected a file of {part.modality}, found nothing there")

"""Videos and documents of a conversation -> the images and texts that show them to the model.

>>> expand([Message.user(Video("walk.mp4"), "What happens?")], processor.expanded)
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from polyphi.media.media import CAPS, Caps
from polyphi.processing.document import document_parts
from polyphi.processing.reader import number_in_errors
from polyphi.processing.video import frame_images
from polyphi.runtime.fork_server import ForkServer
from polyphi.runtime.steps import Stop
from polyphi.types.messages import Message
from polyphi.types.parts import Document, Image, Part, Text, Video


def expanded_part(
    part: Video | Document,
    caps: Caps = CAPS,
    box: tuple[int, int] | None = None,
    stop: Stop | None = None,
    decoders: ForkServer | None = None,
) -> Iterator[tuple[Text | Image, ...]]:
    """Yield the parts that show a video or a document to the model, frame by frame or page by page (`box`:
    document.py), and () where decoding may pause. Raises `MediaError`."""
    if isinstance(part, Video):
        return frame_images(part, caps, stop, decoders)
    return document_parts(part, caps, box, stop, decoders)


def part_type(part: Video | Document) -> str:
    """The name of a part's type in errors."""
    return "video" if isinstance(part, Video) else "document"


def expand(
    messages: Sequence[Message],
    expanded: Callable[[Video | Document], Iterator[tuple[Text | Image, ...]]] = expanded_part,
) -> list[Message]:
    """Return a conversation with each video and each document replaced by its parts. Raises `MediaError` (a ValueError)
    with the number of the video or document."""
    numbers: Counter[str] = Counter()

    def parts(part: Part) -> Sequence[Part]:
        if not isinstance(part, Video | Document):
            return (part,)
        name = part_type(part)
        with number_in_errors(name, numbers[name]):
            numbers[name] += 1
            return [piece for pieces in expanded(part) for piece in pieces]

    return [replace(m, parts=tuple(p for part in m.parts for p in parts(part))) for m in messages]

"""Messages -> `Batch`: text becomes ids, an image a run of as many placeholders as the projector has outputs.

>>> processor = Processor(tokenizer)
>>> row = processor.row([Message.user(Image("cat.png"), Text("What is this?"))], generation_prompt=True)
>>> row.adapters, sum(row.inputs["image"].tokens) == len(row.inputs["image"].slots)
(('vision',), True)

Training and serving both make their rows here. Sizes are plain numbers, so that no weights are needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from polyphi.media.media import Caps
from polyphi.processing import image
from polyphi.processing.audio import AudioReader
from polyphi.processing.document import PAGE_CROPS
from polyphi.processing.expansion import expand, expanded_part
from polyphi.processing.ids import pieces_of
from polyphi.processing.image import ImageReader
from polyphi.processing.reader import Decoding, Placeholder, Reader, number_in_errors
from polyphi.processing.template import TemplatePiece, TextPiece, apply_template
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.fork_server import ForkServer
from polyphi.runtime.steps import Steps, Stop, result_of, run_all
from polyphi.types.batch import Batch, row
from polyphi.types.inputs.encoder import Inputs
from polyphi.types.messages import Message, Tokens
from polyphi.types.parts import Document, Image, Media, Text, Video
from polyphi.types.routing import ROUTES, Routes, modalities_of, normalize_adapter, route

Supervise = Literal["answers", "last answer", "all"]


class TooLong(ValueError):
    """A row has more tokens than the context; the message has both numbers. A loader may leave the row out."""


class MediaSize(NamedTuple):
    """Bytes of what the encoders read, pixels of all images, and pixels of the largest one."""

    nbytes: int
    pixels: int
    most_pixels: int


class Processor:
    """Makes rows, with a reader for each modality (reader.py). `crop_size` and `patch_size` are in pixels; `max_crops`
    limits an image's crops without its global view. `caps` are the limits of an image, audio or video, and `decoders`
    decode them in separate processes (isolated.py); both may be changed later. Without `has_images`, for a model
    without a vision encoder, the pages of documents have text only."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        crop_size: int = image.CROP,
        patch_size: int = image.PATCH,
        max_crops: int = image.MAX_CROPS,
        caps: Caps | None = None,
        *,
        has_images: bool = True,
    ) -> None:
        self._has_images = has_images
        self._decoding = Decoding(caps or Caps())
        self.tokenizer = tokenizer
        images = ImageReader(self._decoding, crop_size, patch_size, max_crops)
        self.readers: dict[str, Reader] = {
            reader.modality: reader for reader in (images, AudioReader(self._decoding))
        }
        self.routes: Routes = ROUTES

    @property
    def caps(self) -> Caps:
        return self._decoding.caps

    @caps.setter
    def caps(self, caps: Caps) -> None:
        self._decoding.caps = caps

    @property
    def decoders(self) -> ForkServer | None:
        return self._decoding.decoders

    @decoders.setter
    def decoders(self, decoders: ForkServer | None) -> None:
        self._decoding.decoders = decoders

    @property
    def images(self) -> ImageReader:
        """The reader of images."""
        reader = self.readers[ImageReader.modality]
        assert isinstance(reader, ImageReader)
        return reader

    def add(self, reader: Reader, id: int, routes: Routes) -> None:
        """Read a further modality, with placeholders of this id and these lines of routes."""
        self.readers[reader.modality] = reader
        self.routes = {**self.routes, **routes}
        self.tokenizer = self.tokenizer.with_placeholder(reader.modality, id)

    def route(self, modalities: Sequence[str]) -> str | None:
        """The adapter for content of these modalities. Raises ValueError for a combination without one."""
        return route(modalities, self.routes)

    def row_steps(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        adapter: str | None = "auto",
        supervise: Supervise | None = None,
        generation_prompt: bool = False,
        continue_final: bool = False,
        context: int | None = None,
        max_crops: int | None = None,
        truncate: bool = False,
        trusted: bool | None = None,
    ) -> Steps[Batch]:
        """Return one conversation, or one document, as a `Batch` of one sequence; a step for each image and audio.

        `adapter`: "auto" (`routes`: image -> vision, audio only -> speech, text -> none), a name, or "none" or None.
        `supervise`: None (no labels), "answers" (the assistant's text and its `<|end|>`; a whole document), "last
        answer" or "all" (every token except the placeholders). `generation_prompt`: end in `<|assistant|>`;
        `continue_final`: end within the final message. `max_crops`: a limit for all images, in addition to the
        processor's and that of each image.
        `trusted`: whether tool-call marks in assistant messages are control tokens (template.py); by default only in
        training, that is, with `supervise`.

        Raises `TooLong` (a `ValueError`) above `context` tokens, unless `truncate` and no image or audio would be
        truncated; then the row's `lost` is the number of truncated tokens. Raises `MediaError` (a `ValueError`) with
        its number for an unreadable image or audio.
        """
        if supervise not in (None, *get_args(Supervise)):
            raise ValueError(
                f"supervise: None or one of {get_args(Supervise)}, found {supervise!r}"
            )
        conversation = self.expand(
            [m if isinstance(m, Message) else Message.parse(m) for m in messages]
        )
        trusted = supervise is not None if trusted is None else trusted
        parts = apply_template(
            conversation,
            self.tokenizer,
            generation_prompt=generation_prompt,
            continue_final=continue_final,
            trusted=trusted,
        )
        if adapter == "auto":
            adapter = self.route(modalities_of(conversation))
        limit = None if truncate else context
        encoded = self._encode_parts(parts, limit)
        pieces = yield from self._with_placeholders(encoded, max_crops, limit)
        return (
            yield from self._batch(
                pieces, normalize_adapter(adapter), supervise, context, truncate=truncate
            )
        )

    row = run_all(row_steps)

    def expand(self, messages: Sequence[Message]) -> list[Message]:
        """Return a conversation with each `Video` replaced by its frames, and each `Document` by its texts and pages.
        Raises `MediaError` with the number of the video or document."""
        if not any(isinstance(part, Video | Document) for m in messages for part in m.parts):
            return list(messages)
        return expand(messages, self.expanded)

    def expanded(
        self, part: Video | Document, caps: Caps | None = None, stop: Stop | None = None
    ) -> Iterator[tuple[Text | Image, ...]]:
        """Yield the parts of a video or document, frame by frame or page by page, within `caps` or the processor's.
        Raises `MediaError`, also soon after `stop` returns True."""
        short, long = (crops * self.images.crop_size for crops in PAGE_CROPS)
        box = (short, long) if self._has_images else None
        return expanded_part(part, caps or self.caps, box, stop, self.decoders)

    def encode(
        self, texts: Sequence[str], context: int | None = None, other_tokens: int = 0
    ) -> list[list[int]]:
        """Return the ids of the texts of one row with `other_tokens` further tokens. Raises `TooLong` if the total
        exceeds `context`: before encoding if a lower bound from the texts' bytes does, otherwise as soon as the ids
        do."""
        if context is None:
            return [self.tokenizer.encode(text) for text in texts]
        total = other_tokens
        # A character has at most 4 bytes, and a byte is at most one token.
        if 4 * sum(map(len, texts)) + other_tokens > context:
            total += sum(map(self.tokenizer.min_tokens, texts))
        if total > context:
            raise TooLong(_too_long(f"at least {total}", context))
        total, id_lists = other_tokens, []
        for text in texts:
            ids = self.tokenizer.encode(text, context - total)
            total += len(ids)
            if total > context:
                raise TooLong(_too_long(f"at least {total}", context))
            id_lists.append(ids)
        return id_lists

    def _encode_parts(
        self, parts: Sequence[TemplatePiece | TextPiece], context: int | None
    ) -> list[TemplatePiece]:
        """Return a conversation with encoded texts; each image and audio counts as at least one token."""
        texts = [part.text for part in parts if isinstance(part, TextPiece)]
        ids = iter(self.encode(texts, context, len(parts) - len(texts)))
        return [
            TemplatePiece(tuple(next(ids)), part.answer) if isinstance(part, TextPiece) else part
            for part in parts
        ]

    def ids_row(
        self,
        ids: Sequence[int],
        parts: Sequence[Media] = (),
        adapter: str | None = "auto",
        *,
        context: int | None = None,
        max_crops: int | None = None,
    ) -> Batch:
        """Return ids as a row. Each of `parts` has either one placeholder in them, or a run of as many as its tokens;
        those of a modality are in order. Raises `ValueError` with both numbers otherwise."""
        if context is not None and len(ids) > context:
            raise TooLong(_too_long(f"at least {len(ids)}", context))
        vocab_size = self.tokenizer.vocab_size
        if invalid := [i for i in ids if not 0 <= i < vocab_size]:
            raise ValueError(f"ids lie between 0 and {vocab_size - 1}, found {invalid[0]}")
        modalities = list(dict.fromkeys(part.modality for part in parts))
        for modality in modalities:
            self.tokenizer.placeholder(modality)
        items: dict[int, list[Placeholder]] = {}
        for modality, id in self.tokenizer.placeholders.items():
            own = [part for part in parts if part.modality == modality]
            items[id] = [self.placeholder(part, max_crops, n) for n, part in enumerate(own)]
        pieces = pieces_of(ids, items)
        if adapter == "auto":
            adapter = self.route(modalities)
        return result_of(self._batch(pieces, normalize_adapter(adapter), None, context))

    def count_steps(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        continue_final: bool = False,
        max_crops: int | None = None,
    ) -> Steps[Tokens]:
        """Return the number of tokens of a conversation's row; a step for each part. Only the headers of images and
        audio are read, except for MP3 and videos."""
        counts: dict[str, int] = {}
        text = 0
        parts = self._parts_with_counts(messages, generation_prompt, continue_final, max_crops)
        for part, tokens in parts:
            yield
            if isinstance(part, TextPiece):
                text += self.tokenizer.count(part.text)
            elif part.media is None:
                text += tokens
            else:
                counts[part.media.modality] = counts.get(part.media.modality, 0) + tokens
        return Tokens(text, counts)

    count = run_all(count_steps)

    def tokenize(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        max_crops: int | None = None,
    ) -> list[int]:
        """Return the ids of a conversation's row, with placeholders repeated for each token of their image or audio.
        Media are read as in `count`. Raises `MediaError` (a `ValueError`) for an unreadable image or audio."""
        slices = self.token_slices(
            messages, generation_prompt=generation_prompt, max_crops=max_crops
        )
        return [id for _, ids in slices for id in ids]

    def token_slices(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        continue_final: bool = False,
        max_crops: int | None = None,
    ) -> Iterator[tuple[str, list[int]]]:
        """Yield (modality, ids) of slices of a conversation's row, which join to `tokenize`'s ids: of a long text, only
        a slice is in memory at a time."""
        parts = self._parts_with_counts(messages, generation_prompt, continue_final, max_crops)
        for part, tokens in parts:
            if isinstance(part, TextPiece):
                yield from (("text", ids) for ids in self.tokenizer.encode_slices(part.text))
            else:
                modality = "text" if part.media is None else part.media.modality
                yield modality, list(part.ids) * tokens

    def _parts_with_counts(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        generation_prompt: bool,
        continue_final: bool,
        max_crops: int | None,
    ) -> Iterator[tuple[TemplatePiece | TextPiece, int]]:
        """Yield the parts of a conversation with their count in its row: 1, or the number of placeholders of an image
        or audio."""
        numbers: dict[str, int] = {}
        for piece in apply_template(
            self.expand([Message.parse(m) for m in messages]),
            self.tokenizer,
            generation_prompt=generation_prompt,
            continue_final=continue_final,
        ):
            part = piece.media if isinstance(piece, TemplatePiece) else None
            if part is None:
                yield piece, 1
                continue
            number = numbers[part.modality] = numbers.get(part.modality, -1) + 1
            with number_in_errors(part.modality, number):
                tokens = self.readers[part.modality].tokens(part, max_crops)
            yield piece, tokens

    def media_size(
        self, messages: Sequence[Message], *, max_crops: int | None = None
    ) -> Steps[MediaSize]:
        """Return the size of the media of a conversation's row, without videos and documents, with a step for each
        part; from the headers of images and audio, for MP3 approximate. Raises `MediaError` for an unreadable part."""
        size = MediaSize(0, 0, 0)
        parts = [part for message in messages for part in message.parts]
        for reader in self.readers.values():
            own = [p for p in parts if isinstance(p, Media) and p.modality == reader.modality]
            for number, part in enumerate(own):
                yield
                with number_in_errors(reader.modality, number):
                    nbytes, pixels = reader.size(part, max_crops)
                size = MediaSize(
                    size.nbytes + nbytes, size.pixels + pixels, max(size.most_pixels, pixels)
                )
        return size

    def _with_placeholders(
        self, pieces: Sequence[TemplatePiece], max_crops: int | None, context: int | None
    ) -> Steps[list[tuple[TemplatePiece, Placeholder | None]]]:
        """Return the pieces with their placeholders. Media that exceed the context aren't decoded: the tokens of text
        and images are known before, those of most audio from its header, and others are counted one by one."""
        result: list[tuple[TemplatePiece, Placeholder | None]] = [(piece, None) for piece in pieces]
        total = sum(len(piece.ids) for piece in pieces if piece.media is None)
        order = [
            (number, i)
            for modality in self.readers
            for number, i in enumerate(
                i for i, p in enumerate(pieces) if p.media and p.media.modality == modality
            )
        ]
        for position, (number, i) in enumerate(order, 1):
            part = pieces[i].media
            assert part is not None
            if self.readers[part.modality].reads_whole:
                yield
                if context is not None:
                    with number_in_errors(part.modality, number):
                        least = self.readers[part.modality].least_tokens(part, context - total)
                    if total + least > context:
                        raise TooLong(_too_long(f"at least {total + least}", context))
            item = self.placeholder(part, max_crops, number)
            result[i] = (pieces[i], item)
            total += item.tokens
            if context is not None and total > context and position < len(order):
                raise TooLong(_too_long(f"at least {total}", context))
        return result

    def placeholder(self, part: Media, max_crops: int | None, number: int = 0) -> Placeholder:
        """Return the tokens of an image, audio or another part, the `number`-th of its modality."""
        with number_in_errors(part.modality, number):
            return self.readers[part.modality].placeholder(part, number, max_crops)

    def _batch(
        self,
        pieces: Sequence[tuple[TemplatePiece, Placeholder | None]],
        adapter: str | None,
        supervise: Supervise | None,
        context: int | None,
        *,
        truncate: bool = False,
    ) -> Steps[Batch]:
        """Return pieces as one sequence: repeated placeholders, their slots, labels, the encoders' inputs."""
        ids: list[int] = []
        supervised: list[bool] = []
        slots: dict[str, list[int]] = {}
        items: dict[str, list[Placeholder]] = {}
        for piece, item in pieces:
            if item is None:
                ids += piece.ids
                supervised += [piece.answer or supervise == "all"] * len(piece.ids)
            else:
                modality = item.part.modality
                slots.setdefault(modality, []).extend(range(len(ids), len(ids) + item.tokens))
                items.setdefault(modality, []).append(item)
                ids += piece.ids * item.tokens
                supervised += [False] * item.tokens
        if supervise == "last answer":
            _only_last_run(supervised)
        lost = 0
        if context is not None and len(ids) > context:
            if not truncate or max((s[-1] for s in slots.values() if s), default=-1) >= context:
                raise TooLong(_too_long(f"{len(ids)}", context))
            lost = len(ids) - context
            ids, supervised = ids[:context], supervised[:context]
        inputs = list[Inputs]()
        for modality, reader in self.readers.items():
            if modality in items:
                own = reader.inputs(items[modality], slots[modality], items.keys())
                inputs.append((yield from own))
        supervision = supervised if supervise is not None else None
        return row(ids, *inputs, supervise=supervision, adapter=adapter, lost=lost)


def _only_last_run(flags: list[bool]) -> None:
    """Set all flags to False except the last run of True ones."""
    last = max((i for i, flag in enumerate(flags) if flag), default=0)
    start = max((i for i, flag in enumerate(flags[:last]) if not flag), default=0)
    flags[:start] = [False] * start


def _too_long(tokens: str, context: int) -> str:
    return (
        f"the row has {tokens} tokens, the context holds {context}; shorten the text or its media"
    )

"""Messages -> `Batch`: text becomes ids, an image a run of as many placeholders as the projector has outputs.

>>> processor = Processor(tokenizer)
>>> row = processor.row([Message.user(Image("cat.png"), Text("What is this?"))], generation_prompt=True)
>>> row.adapters, sum(row.inputs["image"].tokens) == len(row.inputs["image"].slots)
(('vision',), True)

Training and serving both make their rows here. Sizes are plain numbers, so that no weights are needed.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from polyphi.audio_input import AudioInput, AudioLayout
from polyphi.batch import Batch, row
from polyphi.image_input import ImageInput
from polyphi.messages import (
    Audio,
    Image,
    Message,
    Text,
    Tokens,
    adapter_for,
    normalize_adapter,
    route,
)
from polyphi.messages import media as media_parts
from polyphi.modality import Inputs
from polyphi.processing import audio, image, media
from polyphi.processing.ids import Placeholder, pieces_of
from polyphi.processing.media import Caps, MediaError
from polyphi.processing.template import TemplatePiece, TextPiece, apply_template
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.video import FrameBytes, expand_videos
from polyphi.runtime.fork_server import ForkServer
from polyphi.steps import Steps, Stop, at_once, result_of

Supervise = Literal["answers", "last answer", "all"]
MediaLike = Any  # an `Image` or `Audio`, or their source: a path, bytes, or (samples, rate)


class TooLong(ValueError):
    """A row has more tokens than the context; the message has both numbers. A loader may leave the row out."""


class Processor:
    """Makes rows. `crop_size` and `patch_size` are in pixels; `max_crops` limits an image's crops without its global
    view. `caps` are the limits of an image, audio or video, and `decoders` decode them in separate processes
    (media_decoder.py); both may be changed later."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        crop_size: int = image.CROP,
        patch_size: int = image.PATCH,
        max_crops: int = image.MAX_CROPS,
        caps: Caps | None = None,
    ) -> None:
        # Raise ValueError for invalid sizes now instead of at the first image.
        image.plan(1, 1, crop_size=crop_size, patch_size=patch_size, max_crops=max_crops)
        self.tokenizer = tokenizer
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.max_crops = max_crops
        self.caps = caps or Caps()
        self.decoders: ForkServer | None = None
        self._sizes: dict[int, tuple[int, int]] = {}
        """Of images whose header a process has read, as long as they exist."""

    @property
    def cells(self) -> int:
        """Pooled cells per side of a crop."""
        return self.crop_size // (2 * self.patch_size)

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

        `adapter`: "auto" (image -> vision, audio only -> speech, text -> none), a name, or "none" or None.
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
        conversation = self.expand([Message.parse(m) for m in messages])
        trusted = supervise is not None if trusted is None else trusted
        parts = apply_template(
            conversation,
            self.tokenizer,
            generation_prompt=generation_prompt,
            continue_final=continue_final,
            trusted=trusted,
        )
        adapter = adapter_for(conversation) if adapter == "auto" else normalize_adapter(adapter)
        limit = None if truncate else context
        encoded = self._encode_parts(parts, limit)
        pieces = yield from self._with_placeholders(encoded, max_crops, limit)
        return (yield from self._batch(pieces, adapter, supervise, context, truncate=truncate))

    row = at_once(row_steps)

    def expand(
        self, messages: Sequence[Message], caps: Caps | None = None, stop: Stop | None = None
    ) -> list[Message]:
        """Return a conversation with each `Video` replaced by its frames (video.py), within `caps` or the processor's.
        Raises `MediaError` with the number of the video; also soon after `stop` returns True."""
        return expand_videos(messages, caps or self.caps, stop, self.decoders)

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
        images: Sequence[MediaLike] = (),
        audios: Sequence[MediaLike] = (),
        adapter: str | None = "auto",
        *,
        context: int | None = None,
        max_crops: int | None = None,
    ) -> Batch:
        """Return ids as a row. Each image and audio has either one placeholder in them, or a run of as many as its
        tokens. Raises `ValueError` with both numbers otherwise."""
        if context is not None and len(ids) > context:
            raise TooLong(_too_long(f"at least {len(ids)}", context))
        vocab_size = self.tokenizer.vocab_size
        if invalid := [i for i in ids if not 0 <= i < vocab_size]:
            raise ValueError(f"ids lie between 0 and {vocab_size - 1}, found {invalid[0]}")
        sources_by_id: tuple[tuple[int | None, list[Image | Audio]], ...] = (
            (self.tokenizer.image_id, [s if isinstance(s, Image) else Image(s) for s in images]),
            (self.tokenizer.audio_id, [s if isinstance(s, Audio) else Audio(s) for s in audios]),
        )
        items: dict[int, list[Placeholder]] = {}
        for id, parts in sources_by_id:
            if id is not None:
                items[id] = [self.placeholder(part, max_crops, n) for n, part in enumerate(parts)]
            elif parts:
                raise ValueError("this tokenizer has no placeholders for media; it only reads text")
        pieces = pieces_of(ids, items)
        if adapter == "auto":
            adapter = route([kind for kind, parts in ((Image, images), (Audio, audios)) if parts])
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
        counts: dict[type, int] = {Image: 0, Audio: 0}
        text = 0
        parts = self._parts_with_counts(messages, generation_prompt, continue_final, max_crops)
        for part, tokens in parts:
            yield
            if isinstance(part, TextPiece):
                text += self.tokenizer.count(part.text)
            elif part.media is None:
                text += tokens
            else:
                counts[type(part.media)] += tokens
        return Tokens(text, counts[Image], counts[Audio])

    count = at_once(count_steps)

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
    ) -> Iterator[tuple[type, list[int]]]:
        """Yield (`Text`, `Image` or `Audio`, ids) of slices of a conversation's row, which join to `tokenize`'s ids: of
        a long text, only a slice is in memory at a time."""
        parts = self._parts_with_counts(messages, generation_prompt, continue_final, max_crops)
        for part, tokens in parts:
            if isinstance(part, TextPiece):
                yield from ((Text, ids) for ids in self.tokenizer.encode_slices(part.text))
            else:
                yield (Text if part.media is None else type(part.media)), list(part.ids) * tokens

    def _parts_with_counts(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        generation_prompt: bool,
        continue_final: bool,
        max_crops: int | None,
    ) -> Iterator[tuple[TemplatePiece | TextPiece, int]]:
        """Yield the parts of a conversation with their count in its row: 1, or the number of placeholders of an image
        or audio."""
        caps, counts = self.caps, {Image: 0, Audio: 0}
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
            number = counts[type(part)]
            counts[type(part)] += 1
            if isinstance(part, Image):
                yield piece, self.placeholder(part, max_crops, number).tokens
                continue
            with _number_in_errors(part, number):
                size = media.audio_size(
                    part.source,
                    max_bytes=caps.audio_bytes,
                    max_seconds=caps.audio_seconds,
                    decoders=self.decoders,
                )
                tokens = AudioLayout(audio.frames(*audio.resampled_length(*size)), "").tokens
            yield piece, tokens

    def media_size(
        self, messages: Sequence[Message], *, max_crops: int | None = None
    ) -> Steps[tuple[int, int]]:
        """Return (bytes of the crops and log-mel frames, pixels of the images) of a conversation's row, without videos,
        from the headers of its images and audio, with a step for each; for MP3 the bytes are approximate. Raises
        `MediaError` for an unreadable image or audio."""
        total, pixels = 0, 0
        for number, part in enumerate(media_parts(messages, Image)):
            yield
            with _number_in_errors(part, number):
                plan = self._plan(part, max_crops)
            total += plan.nbytes
            pixels += plan.image_size[0] * plan.image_size[1]
        for number, part in enumerate(media_parts(messages, Audio)):
            yield
            with _number_in_errors(part, number):
                stream = self._stream(part)
                samples = min(stream.announced, round(self.caps.audio_seconds * stream.rate))
                total += audio.nbytes(samples, stream.rate)
        return total, pixels

    def _plan(self, part: Image, max_crops: int | None) -> image.CropPlan:
        """Return the crop plan of an image for the size in its header and the smallest limit on its crops."""
        limits = [b for b in (self.max_crops, max_crops, part.most_crops) if b is not None]
        width, height = self.size(part)
        return image.plan(
            width,
            height,
            crop_size=self.crop_size,
            patch_size=self.patch_size,
            max_crops=min(limits),
        )

    def _with_placeholders(
        self, pieces: Sequence[TemplatePiece], max_crops: int | None, context: int | None
    ) -> Steps[list[tuple[TemplatePiece, Placeholder | None]]]:
        """Return the pieces with their placeholders. Media that exceed the context aren't decoded: the tokens of text
        and images are known before, and audio is counted clip by clip."""
        result: list[tuple[TemplatePiece, Placeholder | None]] = [(piece, None) for piece in pieces]
        total = sum(len(piece.ids) for piece in pieces if piece.media is None)
        image_parts, audio_parts = (
            [(i, p.media) for i, p in enumerate(pieces) if isinstance(p.media, part_type)]
            for part_type in (Image, Audio)
        )
        order = [*enumerate(image_parts), *enumerate(audio_parts)]
        for position, (number, (i, part)) in enumerate(order, 1):
            if isinstance(part, Audio):
                yield
            item = self.placeholder(part, max_crops, number)
            result[i] = (pieces[i], item)
            total += item.tokens
            if context is not None and total > context and position < len(order):
                raise TooLong(_too_long(f"at least {total}", context))
        return result

    def placeholder(
        self, part: Image | Audio, max_crops: int | None, number: int = 0
    ) -> Placeholder:
        """Return the tokens of an image or audio. Only the header of an image is read: its pixels are decoded when the
        row is known to fit. Audio is decoded to log-mel frames."""
        with _number_in_errors(part, number):
            if isinstance(part, Image):
                plan = self._plan(part, max_crops)
                return Placeholder(part, number, plan.tokens, plan=plan)
            # Frames are half the size of samples at 16 kHz and a tenth of those at 44.1 kHz in stereo, so a clip
            # becomes frames as it is read.
            stream = self._stream(part)
            mels = audio.log_mel_of(stream, stream.rate)
            return Placeholder(part, number, AudioLayout(len(mels), "").tokens, mels=mels)

    def size(self, part: Image) -> tuple[int, int]:
        """Return width and height of an image in pixels, from the header."""
        if id(part) in self._sizes:
            return self._sizes[id(part)]
        decoders = self._image_decoders(part)
        size = media.image_size(
            part.source,
            max_bytes=self.caps.image_bytes,
            max_pixels=self.caps.image_pixels,
            decoders=decoders,
        )
        if decoders is not None:
            self._sizes[id(part)] = size
            weakref.finalize(part, self._sizes.pop, id(part), None)
        return size

    def decoded_image(self, part: Image, size: tuple[int, int]) -> PILImage:
        """Return the decoded image, RGB, of the size returned by `size`."""
        return media.decode_image(
            part.source,
            max_bytes=self.caps.image_bytes,
            max_pixels=size[0] * size[1],
            decoders=self._image_decoders(part),
        )

    def _image_decoders(self, part: Image) -> ForkServer | None:
        """Frames of videos were decoded in a separate process already."""
        return None if isinstance(part.source, FrameBytes) else self.decoders

    def _stream(self, part: Audio) -> media.AudioStream:
        caps = self.caps
        return media.AudioStream(
            part.source,
            max_bytes=caps.audio_bytes,
            max_seconds=caps.audio_seconds,
            decoders=self.decoders,
        )

    def _batch(
        self,
        pieces: Sequence[tuple[TemplatePiece, Placeholder | None]],
        adapter: str | None,
        supervise: Supervise | None,
        context: int | None,
        *,
        truncate: bool = False,
    ) -> Steps[Batch]:
        """Return pieces as one sequence: repeated placeholders, their slots, labels, crops and mels."""
        ids: list[int] = []
        supervised: list[bool] = []
        slots: dict[type, list[int]] = {Image: [], Audio: []}
        for piece, item in pieces:
            if item is None:
                ids += piece.ids
                supervised += [piece.answer or supervise == "all"] * len(piece.ids)
            else:
                slots[type(item.part)] += range(len(ids), len(ids) + item.tokens)
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
        items = [item for _, item in pieces if item is not None]
        images = [item for item in items if isinstance(item.part, Image)]
        inputs = list[Inputs]()
        if images:
            inputs.append((yield from self._images(images, slots[Image])))
        if clips := [m for m in items if isinstance(m.part, Audio)]:
            # Audio with an image uses the projector trained with images, for any adapter.
            inputs.append(self._clips(clips, slots[Audio], "vision" if images else "speech"))
        supervision = supervised if supervise is not None else None
        return row(ids, *inputs, supervise=supervision, adapter=adapter, lost=lost)

    def _images(self, items: Sequence[Placeholder], slots: Iterable[int]) -> Steps[ImageInput]:
        cuts: list[image.ImageCrops] = []
        for m in items:  # one decoded image in memory at a time
            yield
            assert isinstance(m.part, Image) and m.plan is not None
            with _number_in_errors(m.part, m.number):
                picture = self.decoded_image(m.part, m.plan.image_size)
                cuts.append(image.cut(picture, m.plan))
        views = [cut.view for cut in cuts if cut.view is not None]
        return ImageInput(
            layouts=tuple(cut.layout for cut in cuts),
            slots=_positions(slots),
            crops=torch.cat([cut.crops for cut in cuts]),
            views=torch.cat(views) if views else None,
            masks=torch.cat([cut.masks for cut in cuts]),
        )

    def _clips(self, items: Sequence[Placeholder], slots: Iterable[int], branch: str) -> AudioInput:
        mels = [m.mels for m in items if m.mels is not None]
        clips = tuple(AudioLayout(len(m), branch) for m in mels)
        assert [c.tokens for c in clips] == [m.tokens for m in items]
        return AudioInput(layouts=clips, slots=_positions(slots), mels=torch.cat(mels))


def _only_last_run(flags: list[bool]) -> None:
    """Set all flags to False except the last run of True ones."""
    last = max((i for i, flag in enumerate(flags) if flag), default=0)
    start = max((i for i, flag in enumerate(flags[:last]) if not flag), default=0)
    flags[:start] = [False] * start


def _positions(slots: Iterable[int]) -> Tensor:
    return torch.tensor(list(slots), dtype=torch.long)


def _too_long(tokens: str, context: int) -> str:
    return (
        f"the row has {tokens} tokens, the context holds {context}; shorten the text or its media"
    )


@contextmanager
def _number_in_errors(part: Image | Audio, number: int) -> Iterator[None]:
    """Add type and number of an image or audio to errors; messages of libraries are replaced."""
    part_type = "image" if isinstance(part, Image) else "audio"
    try:
        yield
    except MediaError as error:
        error.part, error.number = part_type, number
        raise
    except ValueError as cause:
        error_ = MediaError(
            f"{part_type} {number} of the conversation can't be read; is it damaged?"
        )
        error_.part, error_.number = part_type, number
        raise error_ from cause

"""Messages -> `Batch`: text becomes ids, a picture a run of exactly as many placeholders as the projector will fill.

>>> processor = Processor(tokenizer)
>>> row = processor.row([Message.user(Image("cat.png"), Text("What is this?"))], generation_prompt=True)
>>> row.adapters, len(row.image_slots) == row.images[0].tokens(16)
(('vision',), True)

Training and serving make their rows here, both of them. Sizes are plain numbers, so that no weights are needed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from polyphi.batch import Batch, Clip, row
from polyphi.messages import Audio, Image, Message, Tokens, adapter_for, normalize_adapter
from polyphi.messages import media as media_parts
from polyphi.processing import audio, image, media
from polyphi.processing.media import Caps, MediaError
from polyphi.processing.template import Piece, Words, script
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.video import expand_videos

Supervise = Literal["answers", "all"]
Source = Any  # an `Image` or `Audio`, or what these take: a path, bytes, or (samples, rate)


class TooLong(ValueError):
    """A row has more tokens than the context holds. A loader may drop it; a person is told both numbers."""


@dataclass(frozen=True)
class Placeholder:
    """An image or audio clip of a conversation, the `number`-th of its type from 0, and the tokens that it fills: an
    image with the crop plan of the size in its header, a clip with its log-mel frames."""

    part: Image | Audio
    number: int
    tokens: int
    plan: image.Plan | None = None
    mels: Tensor | None = None


class Processor:
    """Makes rows. `crop_size` and `patch_size` in pixels; `max_crops` bounds a picture's crops, not counting its
    global view. `caps` (which may be changed later) are what a picture or clip may be at most."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        crop_size: int = image.CROP,
        patch_size: int = image.PATCH,
        max_crops: int = image.MAX_CROPS,
        caps: Caps | None = None,
    ) -> None:
        # Impossible sizes are refused now rather than at the first picture.
        image.plan(1, 1, crop_size=crop_size, patch_size=patch_size, max_crops=max_crops)
        self.tokenizer = tokenizer
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.max_crops = max_crops
        self.caps = caps or Caps()

    @property
    def cells(self) -> int:
        """Pooled cells along a crop's side."""
        return self.crop_size // (2 * self.patch_size)

    def row(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        adapter: str | None = "auto",
        supervise: Supervise | None = None,
        generation_prompt: bool = False,
        context: int | None = None,
        max_crops: int | None = None,
        truncate: bool = False,
        trusted: bool | None = None,
    ) -> Batch:
        """One conversation, or one document, as a `Batch` of one sequence.

        `adapter`: "auto" (image -> vision, audio only -> speech, text -> none), a name, or "none" or None.
        `supervise`: None (no labels), "answers" (the assistant's words and their `<|end|>`; a whole document) or "all"
        (every token but the placeholders). `generation_prompt`: end in `<|assistant|>`. `max_crops`: a bound for all
        pictures, beside the processor's own and what each asks for.
        `trusted`: whether tool-call marks in assistant messages are control tokens (template.py); by default only in
        training, that is, with `supervise`.

        Raises `TooLong` (a `ValueError`) above `context` tokens, unless `truncate` and no picture or clip would be
        cut; then the row says how many tokens it `lost`. Raises `MediaError` (a `ValueError`) for a picture or clip
        that can't be read, with its number.
        """
        if supervise not in (None, "answers", "all"):
            raise ValueError(f"supervise is None, 'answers' or 'all', found {supervise!r}")
        conversation = expand_videos([Message.parse(m) for m in messages])
        trusted = supervise is not None if trusted is None else trusted
        parts = script(
            conversation, self.tokenizer, generation_prompt=generation_prompt, trusted=trusted
        )
        adapter = adapter_for(conversation) if adapter == "auto" else normalize_adapter(adapter)
        bound = None if truncate else context
        pieces = self._with_placeholders(self._encoded(parts, bound), max_crops, bound)
        return self._join(pieces, adapter, supervise, context, truncate=truncate)

    def encode(
        self, texts: Sequence[str], context: int | None = None, others: int = 0
    ) -> list[list[int]]:
        """The ids of texts that are to stand in one row, beside `others` tokens. Raises `TooLong` if all of them are
        more than `context`: before anything is encoded where the texts' bytes say so, else as soon as there are so
        many ids."""
        if context is None:
            return [self.tokenizer.encode(text) for text in texts]
        total = others
        # A character has at most 4 bytes, and a byte is at most one token.
        if 4 * sum(map(len, texts)) + others > context:
            total += sum(map(self.tokenizer.min_tokens, texts))
        if total > context:
            raise TooLong(_too_long(f"at least {total}", context))
        total, found = others, []
        for text in texts:
            ids = self.tokenizer.encode(text, context - total)
            total += len(ids)
            if total > context:
                raise TooLong(_too_long(f"at least {total}", context))
            found.append(ids)
        return found

    def _encoded(self, parts: Sequence[Piece | Words], context: int | None) -> list[Piece]:
        """A conversation's texts as ids, each image and clip being at least one token."""
        texts = [part.text for part in parts if isinstance(part, Words)]
        ids = iter(self.encode(texts, context, len(parts) - len(texts)))
        return [
            Piece(tuple(next(ids)), part.answer) if isinstance(part, Words) else part
            for part in parts
        ]

    def ids_row(
        self,
        ids: Sequence[int],
        images: Sequence[Source] = (),
        audios: Sequence[Source] = (),
        adapter: str | None = "auto",
        *,
        context: int | None = None,
        max_crops: int | None = None,
    ) -> Batch:
        """Given ids as a row. Each picture and clip has one placeholder among them, or already a run of as many as it
        fills. Raises `ValueError` with both numbers if it is neither."""
        if context is not None and len(ids) > context:
            raise TooLong(_too_long(f"at least {len(ids)}", context))
        known = self.tokenizer.vocab_size
        if bad := [i for i in ids if not 0 <= i < known]:
            raise ValueError(f"ids lie between 0 and {known - 1}, found {bad[0]}")
        kinds: tuple[tuple[int | None, list[Image | Audio]], ...] = (
            (self.tokenizer.image_id, [s if isinstance(s, Image) else Image(s) for s in images]),
            (self.tokenizer.audio_id, [s if isinstance(s, Audio) else Audio(s) for s in audios]),
        )
        waiting: dict[int, Iterator[Placeholder]] = {}
        run_of: dict[int, bool] = {}
        for id, parts in kinds:
            if id is None:
                if parts:
                    raise ValueError(
                        "this tokenizer has no placeholders for media; it only reads text"
                    )
                continue
            items = [self.placeholder(part, max_crops, n) for n, part in enumerate(parts)]
            found, count, filled = (
                sum(i == id for i in ids),
                len(items),
                sum(m.tokens for m in items),
            )
            if found not in (count, filled):
                raise ValueError(
                    f"{count} pictures or clips need {count} placeholders of id {id}, or {filled} once expanded; "
                    f"found {found}"
                )
            waiting[id], run_of[id] = iter(items), found != count
        pieces: list[tuple[Piece, Placeholder | None]] = []
        skip = 0
        for id in ids:
            if skip:
                if id != pieces[-1][0].ids[0]:
                    raise ValueError(
                        f"a run of placeholders of id {pieces[-1][0].ids[0]} ends {skip} too early"
                    )
                skip -= 1
            elif id in waiting:
                item = next(waiting[id])
                pieces.append((Piece((id,), media=item.part), item))
                skip = item.tokens - 1 if run_of[id] else 0
            else:
                pieces.append((Piece((id,)), None))
        if skip:
            raise ValueError(
                f"the last run of placeholders of id {pieces[-1][0].ids[0]} ends {skip} too early"
            )
        if adapter == "auto":
            adapter = "vision" if images else "speech" if audios else None
        return self._join(pieces, normalize_adapter(adapter), None, context)

    def count(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        max_crops: int | None = None,
    ) -> Tokens:
        """Tokens of a conversation, before running anything: as many as its row will have. Of a picture or a clip only
        the header is read, but of an MP3 clip and a video all."""
        counts: dict[type, int] = {Image: 0, Audio: 0}
        text = 0
        for part, tokens in self._measured(messages, generation_prompt, max_crops):
            if isinstance(part, Words):
                text += self.tokenizer.count(part.text)
            elif part.media is None:
                text += tokens
            else:
                counts[type(part.media)] += tokens
        return Tokens(text, counts[Image], counts[Audio])

    def tokenize(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        max_crops: int | None = None,
    ) -> list[int]:
        """The ids of a conversation's row, each placeholder repeated as often as its image or clip has tokens. Media
        are read as by `count`. Raises `MediaError` (a `ValueError`) for an image or clip that can't be read."""
        ids: list[int] = []
        for part, tokens in self._measured(messages, generation_prompt, max_crops):
            if isinstance(part, Words):
                ids += self.tokenizer.encode(part.text)
            else:
                ids += part.ids * tokens
        return ids

    def _measured(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        generation_prompt: bool,
        max_crops: int | None,
    ) -> Iterator[tuple[Piece | Words, int]]:
        """The parts of a conversation, with how often each stands in its row: once, or as often as an image's or
        clip's placeholder is repeated."""
        caps, counts = self.caps, {Image: 0, Audio: 0}
        for piece in script(
            expand_videos([Message.parse(m) for m in messages]),
            self.tokenizer,
            generation_prompt=generation_prompt,
        ):
            part = piece.media if isinstance(piece, Piece) else None
            if part is None:
                yield piece, 1
                continue
            number = counts[type(part)]
            counts[type(part)] += 1
            if isinstance(part, Image):
                yield piece, self.placeholder(part, max_crops, number).tokens
                continue
            with _telling(part, number):
                size = media.audio_size(
                    part.source, max_bytes=caps.audio_bytes, max_seconds=caps.audio_seconds
                )
                tokens = Clip(audio.frames(*audio.resampled_length(*size)), "").tokens
            yield piece, tokens

    def media_bytes(self, messages: Sequence[Message], *, max_crops: int | None = None) -> int:
        """Bytes that the crops and log-mel frames of a conversation's row will take (videos not counted), by the
        headers of its images and clips; an MP3 header tells its length only nearly. Raises `MediaError` for an image or
        a clip that can't be read."""
        caps, total = self.caps, 0
        for number, part in enumerate(media_parts(messages, Image)):
            with _telling(part, number):
                total += self._plan(part, max_crops).nbytes
        for number, part in enumerate(media_parts(messages, Audio)):
            with _telling(part, number):
                stream = media.AudioStream(
                    part.source, max_bytes=caps.audio_bytes, max_seconds=caps.audio_seconds
                )
                samples = min(stream.announced, round(caps.audio_seconds * stream.rate))
                total += audio.nbytes(samples, stream.rate)
        return total

    def _plan(self, part: Image, max_crops: int | None) -> image.Plan:
        """The crop plan of an image, by the size in its header; the least bound on its crops holds."""
        bounds = [b for b in (self.max_crops, max_crops, part.most_crops) if b is not None]
        width, height = self.size(part)
        return image.plan(
            width,
            height,
            crop_size=self.crop_size,
            patch_size=self.patch_size,
            max_crops=min(bounds),
        )

    def _with_placeholders(
        self, pieces: Sequence[Piece], max_crops: int | None, context: int | None
    ) -> list[tuple[Piece, Placeholder | None]]:
        """Pieces with their media. Nothing is decoded that can't fit the context: tokens of text and images are known
        before, and audio clips are counted one by one."""
        found: list[tuple[Piece, Placeholder | None]] = [(piece, None) for piece in pieces]
        total = sum(len(piece.ids) for piece in pieces if piece.media is None)
        pictures, clips = (
            [(i, p.media) for i, p in enumerate(pieces) if isinstance(p.media, kind)]
            for kind in (Image, Audio)
        )
        order = [*enumerate(pictures), *enumerate(clips)]
        for done, (number, (i, part)) in enumerate(order, 1):
            item = self.placeholder(part, max_crops, number)
            found[i] = (pieces[i], item)
            total += item.tokens
            if context is not None and total > context and done < len(order):
                raise TooLong(_too_long(f"at least {total}", context))
        return found

    def placeholder(
        self, part: Image | Audio, max_crops: int | None, number: int = 0
    ) -> Placeholder:
        """The tokens that an image or audio clip fills. Of an image only the header is read: its pixels are decoded
        once the row is known to fit. A clip is decoded to log-mel frames."""
        with _telling(part, number):
            if isinstance(part, Image):
                plan = self._plan(part, max_crops)
                return Placeholder(part, number, plan.tokens, plan=plan)
            # Frames are half the size of samples at 16 kHz and a tenth of those at 44.1 kHz in stereo, so a clip
            # becomes frames as it is read.
            caps = self.caps
            stream = media.AudioStream(
                part.source, max_bytes=caps.audio_bytes, max_seconds=caps.audio_seconds
            )
            mels = audio.log_mel_of(stream, stream.rate)
            return Placeholder(part, number, Clip(len(mels), "").tokens, mels=mels)

    def size(self, part: Image) -> tuple[int, int]:
        """Width and height of an image in pixels, by the header."""
        caps = self.caps
        return media.image_size(
            part.source, max_bytes=caps.image_bytes, max_pixels=caps.image_pixels
        )

    def picture(self, part: Image) -> Picture:
        """The decoded image, RGB, of the size that `size` says."""
        caps = self.caps
        return media.decode_image(
            part.source, max_bytes=caps.image_bytes, max_pixels=caps.image_pixels
        )

    def _join(
        self,
        pieces: Sequence[tuple[Piece, Placeholder | None]],
        adapter: str | None,
        supervise: Supervise | None,
        context: int | None,
        *,
        truncate: bool = False,
    ) -> Batch:
        """Pieces as one sequence: placeholders repeated, slots and labels noted, pixels and mels made."""
        ids: list[int] = []
        wanted: list[bool] = []
        slots: dict[type, list[int]] = {Image: [], Audio: []}
        for piece, item in pieces:
            if item is None:
                ids += piece.ids
                wanted += [piece.answer or supervise == "all"] * len(piece.ids)
            else:
                slots[type(item.part)] += range(len(ids), len(ids) + item.tokens)
                ids += piece.ids * item.tokens
                wanted += [False] * item.tokens
        lost = 0
        if context is not None and len(ids) > context:
            if not truncate or max((s[-1] for s in slots.values() if s), default=-1) >= context:
                raise TooLong(_too_long(f"{len(ids)}", context))
            lost = len(ids) - context
            ids, wanted = ids[:context], wanted[:context]
        items = [item for _, item in pieces if item is not None]
        return row(
            ids,
            supervise=wanted if supervise is not None else None,
            adapter=adapter,
            lost=lost,
            **self._pixels([m for m in items if isinstance(m.part, Image)], slots[Image]),
            **self._mels(
                [m for m in items if isinstance(m.part, Audio)],
                slots[Audio],
                # A clip beside a picture goes through the projector trained with pictures, whatever the adapter.
                "vision" if slots[Image] else "speech",
            ),
        )

    def _pixels(self, items: Sequence[Placeholder], slots: Iterable[int]) -> dict[str, Any]:
        if not items:
            return {}
        cuts: list[image.Cut] = []
        for m in items:  # one picture at a time stands in memory whole
            assert isinstance(m.part, Image) and m.plan is not None
            with _telling(m.part, m.number):
                cuts.append(image.cut(self.picture(m.part), m.plan))
        views = [cut.view for cut in cuts if cut.view is not None]
        return {
            "crops": torch.cat([cut.crops for cut in cuts]),
            "views": torch.cat(views) if views else None,
            "crop_masks": torch.cat([cut.masks for cut in cuts]),
            "images": tuple(cut.layout for cut in cuts),
            "image_slots": _positions(slots),
        }

    def _mels(
        self, items: Sequence[Placeholder], slots: Iterable[int], branch: str
    ) -> dict[str, Any]:
        if not items:
            return {}
        mels = [m.mels for m in items if m.mels is not None]
        clips = tuple(Clip(len(m), branch) for m in mels)
        assert [c.tokens for c in clips] == [m.tokens for m in items]
        return {"mels": torch.cat(mels), "clips": clips, "audio_slots": _positions(slots)}


def _positions(slots: Iterable[int]) -> Tensor:
    return torch.tensor(list(slots), dtype=torch.long)


def _too_long(tokens: str, context: int) -> str:
    return (
        f"the row has {tokens} tokens, the context holds {context}; shorten the text or its media"
    )


@contextmanager
def _telling(part: Image | Audio, number: int) -> Iterator[None]:
    """What is wrong with a picture or a clip says which one it is, and never what a library said."""
    kind = "image" if isinstance(part, Image) else "audio"
    try:
        yield
    except MediaError as error:
        error.part, error.number = kind, number
        raise
    except ValueError as cause:
        unread = MediaError(f"{kind} {number} of the conversation can't be read; is it damaged?")
        unread.part, unread.number = kind, number
        raise unread from cause

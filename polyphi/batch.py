"""`Batch`: the model's input. Packed tokens without a batch axis; training and serving run the same forward over it.

Legend of tensor shapes, everywhere in polyphi:
T packed tokens · S sequences · D width · H heads · K kv heads · V vocabulary · N crops · P patches · F frames ·
M mel bins · R rank · C crop side in pixels · G patches along a crop's side · Q supervised positions · W global views

An example of a pack (two sequences, `.` not supervised)::

    ids        user  17  23  asst  44  end | user  99  asst  51  end
    positions     0   1   2     3   4    5 |    0   1     2   3    4
    labels        .   .   .    44 end    . |    .   .    51 end    .
    cu_seqlens     (0, 6, 11)

`labels[t]` is the id that position t must predict: already shifted, so that a row's last token can't leak into the
next row. A row (one sample, tokenized) is a `Batch` of one sequence; `pack` joins rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

IGNORE = -100
WHITE = 255
"""The largest value of an 8-bit pixel."""
MEAN = STD = 0.5
"""The normalization of pixels from [0, 1] to [-1, 1]."""


@dataclass(frozen=True)
class ImageLayout:
    """One image cut into crops: `crop_rows` x `crop_cols` crops, of which `rows` x `cols` pooled cells are kept (report
    2.2.1). The encoder reads the global view first, then the crops row by row."""

    crop_rows: int
    crop_cols: int
    rows: int
    cols: int

    @property
    def crops(self) -> int:
        """Crops that the encoder reads, the global view included."""
        return 1 + self.crop_rows * self.crop_cols

    def tokens(self, cells: int) -> int:
        """Tokens of the image when a crop pools to `cells` x `cells`: g(g+1) + 1 + R(C+1), 273 + R(C+1) at 448
        pixels."""
        return cells * (cells + 1) + 1 + self.rows * (self.cols + 1)


@dataclass(frozen=True)
class AudioLayout:
    """One audio clip: `frames` log-mel frames of 10 ms, projected by the audio projector `branch` ("speech", or
    "vision" if the sequence also has an image)."""

    frames: int
    branch: str

    @property
    def tokens(self) -> int:
        """80 ms per token: ceil(frames / 8)."""
        return -(-self.frames // 8)


@dataclass(frozen=True)
class ImageInput:
    """The vision encoder's input images in order: `crops`, `views` and `masks` (`crop_masks`) as in `Batch`, and a
    layout per image."""

    crops: Float[Tensor, "N 3 C C"] | UInt8[Tensor, "_ 3 C C"]
    views: Float[Tensor, "W 3 C C"] | None
    masks: Bool[Tensor, "N G G"]
    layouts: tuple[ImageLayout, ...]

    @classmethod
    def join(cls, inputs: Sequence["ImageInput"]) -> "ImageInput":
        """The images of several inputs, in order."""
        views = [one.views for one in inputs if one.views is not None]
        return cls(
            torch.cat([one.crops for one in inputs]),
            torch.cat(views) if views else None,
            torch.cat([one.masks for one in inputs]),
            tuple(layout for one in inputs for layout in one.layouts),
        )

    @property
    def crop_count(self) -> int:
        """Crops that the encoder reads, global views included."""
        return sum(layout.crops for layout in self.layouts)

    def split(self) -> Iterator["ImageInput"]:
        """Each image as its own `ImageInput`, without copying pixels."""
        own_view = not self.crops.is_floating_point()
        start = at = view = 0
        for layout in self.layouts:
            pixels = layout.crops - 1 if own_view else layout.crops
            views = 1 if own_view and pixels > 1 else 0
            yield ImageInput(
                self.crops[at : at + pixels],
                self.views[view : view + views] if views and self.views is not None else None,
                self.masks[start : start + layout.crops],
                (layout,),
            )
            start, at, view = start + layout.crops, at + pixels, view + views

    def float_crops(self) -> "ImageInput":
        """The same images with crops in the encoder's format: floats in [-1, 1], each image's global view before its
        crops."""
        pixels = self.crops
        if pixels.is_floating_point():
            return self
        crops = torch.empty(self.crop_count, *pixels.shape[1:], device=pixels.device)
        start = at = view = 0
        for layout in self.layouts:
            count = layout.crops - 1
            normalized(pixels[at : at + count], crops[start + 1 : start + 1 + count])
            if count == 1:
                crops[start] = crops[start + 1]
            else:
                assert self.views is not None, "an image of several crops without its global view"
                crops[start] = self.views[view]
                view += 1
            start, at = start + layout.crops, at + count
        return replace(self, crops=crops, views=None)

    def to(self, device: torch.device | str) -> "ImageInput":
        """The same images on a device."""
        views = None if self.views is None else self.views.to(device, non_blocking=True)
        crops, masks = (t.to(device, non_blocking=True) for t in (self.crops, self.masks))
        return ImageInput(crops, views, masks, self.layouts)


@dataclass(frozen=True)
class AudioInput:
    """The audio encoder's input clips in order: the log-mel frames of all, and the number of frames of each."""

    mels: Float[Tensor, "F M"]
    clips: tuple[AudioLayout, ...]

    @classmethod
    def join(cls, inputs: Sequence["AudioInput"]) -> "AudioInput":
        """The clips of several inputs, in order."""
        clips = tuple(clip for one in inputs for clip in one.clips)
        return cls(torch.cat([one.mels for one in inputs]), clips)

    def split(self) -> Iterator["AudioInput"]:
        """Each clip as its own `AudioInput`, without copying frames."""
        at = 0
        for clip in self.clips:
            yield AudioInput(self.mels[at : at + clip.frames], (clip,))
            at += clip.frames

    def to(self, device: torch.device | str) -> "AudioInput":
        """The same clips on a device."""
        return AudioInput(self.mels.to(device, non_blocking=True), self.clips)


@dataclass(frozen=True)
class Batch:
    """Packed sequences and their media.

    `cu_seqlens` (host, S + 1 numbers from 0 to T) delimits sequences; `seq_lens` (host, S) counts each sequence's
    tokens up to and including this batch, cached ones too: it decides the LongRoPE table of that sequence. `adapters`
    (host, S) names each sequence's LoRA or None. `image_slots` and `audio_slots` are the positions in `ids` of the
    placeholder tokens that `images` and `clips` fill, in order. `lost` counts tokens that were cut off at the
    context. `keys` (host, S or none) identify sequences for an objective.

    `cell_words` and `clip_words`, if a training objective needs them, give the text of images and clips: (image,
    number among its tokens or patches, token id) and (clip, token id), the latter in the order of speech. Images
    without `crops` are represented by words only.

    `crops` are the vision encoder's input: floats in [-1, 1] with each image's global view before its crops, or, as
    `processing` makes them, 8-bit pixels without global views, a quarter of the bytes. Then `views` has the global view
    of each image of more than one crop: it is interpolated between pixels, so it has no 8-bit form. An image of one
    crop is its own view. `ImageInput.float_crops` converts the second form to the first. `crop_masks` includes the
    global views in both forms.
    """

    ids: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    cu_seqlens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    adapters: tuple[str | None, ...]
    labels: Int[Tensor, " T"] | None = None
    supervised: Int[Tensor, " Q"] | None = None
    crops: Float[Tensor, "N 3 C C"] | UInt8[Tensor, "_ 3 C C"] | None = None
    views: Float[Tensor, "W 3 C C"] | None = None
    crop_masks: Bool[Tensor, "N G G"] | None = None
    images: tuple[ImageLayout, ...] = ()
    image_slots: Int[Tensor, " I"] | None = None
    mels: Float[Tensor, "F M"] | None = None
    clips: tuple[AudioLayout, ...] = ()
    audio_slots: Int[Tensor, " A"] | None = None
    cell_words: Int[Tensor, "_ 3"] | None = None
    clip_words: Int[Tensor, "_ 2"] | None = None
    lost: int = 0
    keys: tuple[str, ...] = ()

    @property
    def sequences(self) -> int:
        return len(self.cu_seqlens) - 1

    def __len__(self) -> int:
        return self.cu_seqlens[-1]

    @property
    def crop_count(self) -> int:
        """Crops that the vision encoder reads, global views included."""
        return sum(layout.crops for layout in self.images)

    @property
    def image_input(self) -> ImageInput:
        """The images; they must have crops."""
        assert self.crops is not None and self.crop_masks is not None, "images without crops"
        return ImageInput(self.crops, self.views, self.crop_masks, self.images)

    @property
    def audio_input(self) -> AudioInput:
        """The audio clips."""
        assert self.mels is not None, "audio clips without log-mel frames"
        return AudioInput(self.mels, self.clips)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (getattr(self, f.name) for f in fields(self))
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    def without_media(self) -> "Batch":
        """The same batch without pixels and log-mel frames, for sequences whose media are already encoded."""
        return replace(self, crops=None, views=None, crop_masks=None, mels=None)

    def to(self, device: torch.device | str) -> "Batch":
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def normalized(
    pixels: UInt8[Tensor, "*n"], out: Float[Tensor, "*n"] | None = None
) -> Float[Tensor, "*n"]:
    """8-bit pixels as floats in [-1, 1], written to `out` if given. The result is bitwise equal on all devices."""
    out = torch.empty_like(pixels, dtype=torch.float32) if out is None else out
    # The divisor is a tensor: for a number, a GPU would multiply by its rounded inverse.
    white = torch.full((), float(WHITE), device=pixels.device)
    return out.copy_(pixels).div_(white).sub_(MEAN).div_(STD)


def row(
    ids: Sequence[int],
    *,
    supervise: Sequence[bool] | None = None,
    adapter: str | None = None,
    **media: object,
) -> Batch:
    """One sample as a `Batch` of one sequence. `supervise[t]`: token t is supervised, as the label of position t - 1
    (token 0 can't be)."""
    tokens = torch.tensor(ids, dtype=torch.long)
    labels = supervised = None
    if supervise is not None:
        labels = torch.full_like(tokens, IGNORE)
        mask = torch.tensor(supervise, dtype=torch.bool)[1:]
        labels[:-1][mask] = tokens[1:][mask]
        supervised = (labels != IGNORE).nonzero().flatten()
    return Batch(
        ids=tokens,
        positions=torch.arange(len(tokens)),
        cu_seqlens=(0, len(tokens)),
        seq_lens=(len(tokens),),
        adapters=(adapter,),
        labels=labels,
        supervised=supervised,
        **media,  # type: ignore[arg-type]
    )


def pack(rows: Sequence[Batch]) -> Batch:
    """Several batches joined into one, sequences and media in order. The forward of a pack equals that of its separate
    rows."""
    if not rows:
        raise ValueError("cannot pack zero rows")
    starts = [0]
    for r in rows:
        starts.append(starts[-1] + len(r))

    def cat(name: str, shift: bool = False) -> Tensor | None:
        parts = [
            getattr(r, name) + start if shift else getattr(r, name)
            for r, start in zip(rows, starts, strict=False)
            if getattr(r, name) is not None
        ]
        return torch.cat(parts) if parts else None

    def words(name: str, media: str) -> Tensor | None:
        """The words of all rows' media, numbered consecutively over the rows."""
        parts, offset = [], 0
        for r in rows:
            values = getattr(r, name)
            if values is not None:
                parts.append(torch.cat([values[:, :1] + offset, values[:, 1:]], dim=1))
            offset += len(getattr(r, media))
        return torch.cat(parts) if parts else None

    dtypes = {r.crops.dtype for r in rows if r.crops is not None}
    assert len(dtypes) < 2, f"a pack mixes crops of {dtypes}"
    labelled = [r.labels is not None for r in rows]
    assert all(labelled) or not any(labelled), "a pack mixes rows with and without labels"
    return Batch(
        ids=torch.cat([r.ids for r in rows]),
        positions=torch.cat([r.positions for r in rows]),
        cu_seqlens=(
            0,
            *(start + b for r, start in zip(rows, starts, strict=False) for b in r.cu_seqlens[1:]),
        ),
        seq_lens=tuple(t for r in rows for t in r.seq_lens),
        adapters=tuple(a for r in rows for a in r.adapters),
        labels=cat("labels"),
        supervised=cat("supervised", shift=True),
        crops=cat("crops"),
        views=cat("views"),
        crop_masks=cat("crop_masks"),
        images=tuple(i for r in rows for i in r.images),
        image_slots=cat("image_slots", shift=True),
        mels=cat("mels"),
        clips=tuple(c for r in rows for c in r.clips),
        audio_slots=cat("audio_slots", shift=True),
        cell_words=words("cell_words", "images"),
        clip_words=words("clip_words", "clips"),
        lost=sum(r.lost for r in rows),
        keys=tuple(k for r in rows for k in r.keys),
    )

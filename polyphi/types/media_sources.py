"""Images and audio in memory: PIL images and pixels -> the bytes of a PNG file, without loss; samples with their rate.

>>> png(np.zeros((40, 90, 3), np.uint8))[:4]
b'\\x89PNG'

An image in memory is processed exactly as its PNG file, so that nothing beyond this file knows of it: counts, cache
keys, shards, servers and evaluation see bytes. This module imports Pillow only for such an image, and never torch.
"""

import io
import struct
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from polyphi.runtime.arguments import describe

MediaSource = str | Path | bytes


@runtime_checkable
class Array(Protocol):
    """An array or tensor of numpy, torch or another library."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


@runtime_checkable
class PilImage(Protocol):
    """A `PIL.Image.Image`."""

    mode: Any

    def convert(self, mode: Any) -> Any: ...


ImageSource = Annotated[
    MediaSource | bytearray | memoryview | PilImage | Array,
    "a path, the bytes of a file, a PIL image or an array of pixels",
    "paths, bytes, PIL images or arrays of pixels",
]
"""A path, the bytes of a file, a PIL image, or pixels: uint8, or floats from 0 to 1, [H W], [H W C] or [C H W]."""
AudioSource = MediaSource | tuple[np.ndarray, int]
AnyAudio = Annotated[
    AudioSource | tuple[Array | Sequence[float], int] | Mapping[str, Any] | Array | Any,
    "a path, the bytes of a file, or samples with their rate",
    "paths, bytes or (samples, rate)",
]
"""The sources that `Audio` accepts: a path, bytes, (samples, rate), {"array", "sampling_rate"}, or samples beside their
rate; `audio_source` checks it."""


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
"""Pillow's modes that a PNG file stores unchanged."""
CHANNELS = (1, 3, 4)
MOST_CHANNELS = 16
"""Maximum number of rows with which samples of more columns are [channels n]."""


def declared_type(url: str) -> str:
    """The MIME type in a data URL; "" for one without, and for other texts."""
    head, comma, _ = url[:200].partition(",")
    return head[5:].partition(";")[0] if comma and head[:5].lower() == "data:" else ""


def is_pil(value: Any) -> bool:
    """Whether a value is an image of Pillow, without importing it."""
    return any(c.__module__ == "PIL.Image" and c.__name__ == "Image" for c in type(value).__mro__)


def is_array(value: Any) -> bool:
    """Whether a value is an array: of numpy, torch, or another library that numpy reads."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def png(image: Any) -> bytes:
    """The PNG file of a PIL image, which is turned by the orientation in its EXIF, or of an array [H W], [H W C] or
    [C H W] with C of 1, 3 or 4: 8-bit integers, or floats from 0 to 1, which are multiplied by 255 and rounded. Where
    both orders fit, a torch tensor is read as [C H W], any other array as [H W C]. Raises ValueError for anything
    else."""
    from PIL import Image, ImageOps

    if is_array(image):
        image = Image.fromarray(_pixels(image))
    elif not is_pil(image):
        raise ValueError(
            "source: expected a path, the bytes of a file, a PIL image or an array of pixels, found "
            f"{describe(image)}"
        )
    if image.mode == "F":
        raise ValueError(
            "source: expected a PIL image of integers, found mode F; pass its array, with floats from 0 to 1"
        )
    out = io.BytesIO()
    try:
        image = ImageOps.exif_transpose(image)
        stored = image if image.mode in MODES else image.convert("RGB")
        stored.save(out, "PNG", compress_level=1)
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # the last: of EXIF
        raise ValueError(
            f"source: the PIL image of {image.width} x {image.height} pixels can't be read: {error}"
        ) from None
    return out.getvalue()


def _pixels(array: Any) -> np.ndarray:
    """An array of pixels as Pillow reads it: uint8 [H W] or [H W C]."""
    is_torch = hasattr(array, "detach")
    pixels = to_numpy(array)
    shape = list(pixels.shape)
    if pixels.ndim == 3 and (is_torch or shape[2] not in CHANNELS) and shape[0] in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in CHANNELS):
        several = "; pass a batch as a list of images" if pixels.ndim == 4 else ""
        raise ValueError(
            f"source: expected an image of shape [H W], [H W 3] or [3 H W], found {shape}{several}"
        )
    if not pixels.size:
        raise ValueError(f"source: expected pixels, found an empty array of shape {shape}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # NaN is in no range
            raise ValueError(
                f"source: expected floats from 0 to 1 as pixels, found {low:.4g} to {high:.4g}; undo a normalization, "
                "and pass values up to 255 as uint8"
            )
        pixels = (pixels.astype(np.float64) * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"source: expected pixels as uint8, or as floats from 0 to 1, found {pixels.dtype}"
        )
    return np.ascontiguousarray(pixels)


def to_numpy(array: Any) -> np.ndarray:
    """An array of numpy, torch or another library as one of numpy, on the CPU."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # numpy has no bfloat16
    return np.asarray(array)


def audio_source(audio: AnyAudio, sample_rate: float | None = None) -> AudioSource:
    """A path, bytes, or (samples as an array of numpy, rate), from all that `Audio` accepts. Raises
    ValueError for samples without a rate, and for anything else."""
    value: Any = audio
    if isinstance(value, Mapping) and "sampling_rate" in value:
        value = (value.get("array", value.get("raw")), value["sampling_rate"])
    if isinstance(value, tuple) and len(value) == 2 and sample_rate is None:
        value, sample_rate = value
        if isinstance(value, int) and is_array(sample_rate):
            raise ValueError("audio: expected (samples, rate), found (rate, samples); swap them")
    elif sample_rate is not None and isinstance(value, str | Path | bytes | tuple):
        raise ValueError(
            f"sample_rate: expected it beside samples only, found it beside {describe(value)}; leave it out"
        )
    if isinstance(value, str | Path | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if not (is_array(value) or isinstance(value, list | tuple)):
        raise ValueError(
            f"audio: expected a path, the bytes of a file, or samples with their rate, found {describe(value)}"
        )
    if sample_rate is None:
        raise ValueError(
            "sample_rate: expected the rate of the samples in Hz, found none; write (samples, 16000), or "
            "sample_rate=16000 beside them"
        )
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or sample_rate % 1:
        raise ValueError(
            f"sample_rate: expected a whole number of Hz, found {describe(sample_rate)}"
        )
    try:
        samples = to_numpy(value) if is_array(value) else np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise ValueError(f"audio: expected samples as numbers, found {value!r:.60}") from None
    if samples.ndim == 2 and samples.shape[0] <= MOST_CHANNELS < samples.shape[1]:
        samples = samples.T  # [channels n], as torchaudio and librosa return
    return samples, int(sample_rate)

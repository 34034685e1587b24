"""The orientation in an image's EXIF: a phone stores a photo as its sensor saw it, and how it is to be turned.

>>> turn(pil.open("photo.jpg"), data)              # of a phone that was upright
<Transpose.ROTATE_270: 4>

Only this entry is read, because EXIF of a few bytes may describe gigabytes of others.
"""

import struct

from PIL.Image import Transpose
from PIL.ImageFile import ImageFile

TAG = 0x0112
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
SWAPS_SIDES = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)
SHORT = 3  # TIFF's type of 16-bit integers


def turn(image: ImageFile, data: bytes) -> Transpose | None:
    """Return how to turn an image that was opened from `data` and isn't decoded yet; None for one that is upright or
    has no EXIF. The decoders of TIFF and HEIC turn their images themselves."""
    if image.format in ("TIFF", "HEIF"):
        return None
    exif = _png_exif(data) if image.format == "PNG" else image.info.get("exif", b"")
    return TURNS.get(_orientation(exif.removeprefix(b"Exif\0\0")))


def _png_exif(data: bytes) -> bytes:
    """Return the EXIF chunk of a PNG file, which may follow the pixels."""
    start = 8 if b"eXIf" in data else len(data)
    while start + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        if name == b"eXIf":
            return data[start + 8 : start + 8 + size]
        start += size + 12
    return b""


def _orientation(exif: bytes) -> int:
    """Return the orientation in EXIF, which has the form of a TIFF file; 1 (upright) without one, or if damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * number)
            if tag == TAG:
                return value if kind == SHORT else 1
    except struct.error:
        pass
    return 1

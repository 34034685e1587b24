"""Writes HEIC files with Pillow's `save(file, "HEIF")`; pi-heif, with which the package reads them, can't write."""

from typing import Any, BinaryIO

import pillow_heif
from PIL import Image


def _save(image: Image.Image, file: BinaryIO, name: Any) -> None:
    options: dict[str, Any] = dict(image.encoderinfo)  # type: ignore[attr-defined]
    pictures = pillow_heif.from_pillow(image)
    for other in options.pop("append_images", ()):
        pictures.add_from_pillow(other)
    pictures.save(file, **options)


Image.register_save("HEIF", _save)
Image.register_save_all("HEIF", _save)

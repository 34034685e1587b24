"""Media for a server: file formats by their first bytes, without decoding, and the limits and error of decoding.

>>> is_image(data), is_audio(data)
(True, False)

Containers whose audio needs FFmpeg (M4A, MP4, WebM) are not accepted as audio: opening one also opens its video
decoders, which must not read untrusted bytes.
"""

from polyphi.processing.media import AUDIO_FORMATS, IMAGE_FORMATS, Caps, MediaError, sniff

__all__ = ["Caps", "MediaError", "is_audio", "is_image"]


def is_image(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG, WebP, GIF or BMP file."""
    return sniff(data) in IMAGE_FORMATS


def is_audio(data: bytes) -> bool:
    """Whether the first bytes are those of a WAV, FLAC, OGG or MP3 file."""
    return sniff(data) in AUDIO_FORMATS

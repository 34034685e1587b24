"""Media for a server: file formats by their first bytes, without decoding, and the error and caps of decoding.

>>> is_image(data), is_audio(data)
(True, False)

Containers whose sound needs FFmpeg (M4A, MP4, WebM) are no audio here: opening one also opens its video's decoders,
which must not read bytes of strangers.
"""

from polyphi.processing.media import AUDIO_FORMATS, IMAGE_FORMATS, Caps, MediaError, sniff

__all__ = ["Caps", "MediaError", "is_audio", "is_image"]


def is_image(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG, WebP, GIF or BMP file."""
    return sniff(data) in IMAGE_FORMATS


def is_audio(data: bytes) -> bool:
    """Whether the first bytes are those of a WAV, FLAC, OGG or MP3 file."""
    return sniff(data) in AUDIO_FORMATS

"""What a server asks about media: what they are, without decoding them, and what may be wrong with them.

>>> is_picture(data), is_clip(data)
(True, False)

Containers whose sound needs FFmpeg (M4A, MP4, WebM) are no clips here: whoever opens one also opens its video's
decoders, and no stranger's bytes shall reach those.
"""

from polyphi.processing.media import CLIPS, PICTURES, Caps, MediaError, sniff

__all__ = ["Caps", "MediaError", "is_clip", "is_picture"]


def is_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG, WebP, GIF or BMP file."""
    return sniff(data) in PICTURES


def is_clip(data: bytes) -> bool:
    """Whether the first bytes are those of a WAV, FLAC, OGG or MP3 file."""
    return sniff(data) in CLIPS

"""Media for a server: file formats by their first bytes, without decoding, and the limits and error of decoding.

>>> is_image(data), is_audio(data), is_video(data)
(True, False, False)

Images, WAV, FLAC, OGG and MP3 are decoded in the server's process or, after `start_decoders`, in separate ones. All
other audio and videos need FFmpeg, in a process that is isolated where `isolation_missing` returns None, and PDFs need
PDFium, in one that is where `pdf_isolation_missing` does (media/isolated.py).
"""

from polyphi.media.file_types import (
    AUDIO_FORMATS,
    CONTAINER_FORMATS,
    IMAGE_FORMATS,
    VIDEO_FORMATS,
    is_pdf,
    sniff,
)
from polyphi.media.isolated import DecoderError, is_isolated, start_decoders
from polyphi.media.isolated import pdfs_unavailable as pdf_isolation_missing
from polyphi.media.isolated import unavailable as isolation_missing
from polyphi.media.media import MAX_FRAME_PIXELS, Caps, MediaError, check_audio_seconds, image_types
from polyphi.processing.reader import number_in_errors

__all__ = [
    "MAX_FRAME_PIXELS",
    "Caps",
    "DecoderError",
    "MediaError",
    "check_audio_seconds",
    "image_types",
    "is_audio",
    "is_image",
    "is_isolated",
    "is_pdf",
    "is_video",
    "isolation_missing",
    "number_in_errors",
    "pdf_isolation_missing",
    "start_decoders",
]


def is_image(data: bytes) -> bool:
    """Whether the first bytes are those of an image in one of `IMAGE_FORMATS`."""
    return sniff(data) in IMAGE_FORMATS


def is_audio(data: bytes, *, containers: bool = False) -> bool:
    """Whether the first bytes are those of a WAV, FLAC, OGG or MP3 file, or with `containers` of an M4A, MP4, WebM, AAC
    or AMR file."""
    file_type = sniff(data)
    return file_type in AUDIO_FORMATS or (containers and file_type in CONTAINER_FORMATS)


def is_video(data: bytes) -> bool:
    """Whether the first bytes are those of an MP4, WebM, Matroska or AVI file."""
    return sniff(data) in VIDEO_FORMATS

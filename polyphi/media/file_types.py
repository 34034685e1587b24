"""The type of a file by its first bytes, never by its name; and what a name promises, which the bytes may not keep.

>>> sniff(b"fLaC..."), promise("talk.flac")
('FLAC', 'audio or video')
"""

from pathlib import PurePath

PDF_BYTES = 1024
SNIFF_BYTES = 512  # that determine the type of a file
# our name -> Pillow's format
IMAGE_FORMATS = {
    "PNG": "PNG",
    "JPEG": "JPEG",
    "WebP": "WEBP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "HEIC": "HEIF",
}
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)
SOUND_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".amr"),
    *(".mp4", ".webm", ".mkv", ".avi"),
)
"""Suffixes of audio and video files' names. They and `IMAGE_SUFFIXES` are of use where a file isn't read yet."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
MIME_ARCHIVES = (".gzip", ".zip-compressed", ".7z-compressed")
PROMISES = {
    **dict.fromkeys(IMAGE_SUFFIXES, "an image"),
    **dict.fromkeys((*SOUND_SUFFIXES, ".mpeg"), "audio or video"),
    **dict.fromkeys((*ARCHIVE_SUFFIXES, *MIME_ARCHIVES), "an archive"),
}
"""Suffixes of binary formats. Others, such as .svg and .ts (TypeScript, or a video), may be text."""
IMAGES_EXPECTED = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
AUDIO_FORMATS = ("WAV", "FLAC", "OGG", "MP3")
# our name -> FFmpeg's format: what is decoded with PyAV, if installed
CONTAINER_FORMATS = {
    "M4A audio": "mov",
    "MP4": "mov",
    "WebM or Matroska": "matroska",
    "AAC": "aac",
    "AMR": "amr",
}
VIDEO_FORMATS = {"MP4": "mov", "WebM or Matroska": "matroska", "AVI video": "avi"}


def promise(name: str, media_type: str = "") -> str | None:
    """Return what the suffix of a name or the MIME type says of a file: "an image", "audio or video", "an archive", or
    None. The end of a MIME type is read as a suffix: image/png, audio/x-wav, application/zip."""
    subtype = media_type.partition(";")[0].strip().rpartition("/")[2].lower()
    suffixes = PurePath(name).suffix.lower(), f".{subtype.removeprefix('x-')}"
    return next((PROMISES[suffix] for suffix in suffixes if suffix in PROMISES), None)


def is_pdf(data: bytes) -> bool:
    """Whether a file is a PDF: its mark is within the first 1,024 bytes, as readers accept."""
    return b"%PDF-" in data[:PDF_BYTES]


def sniff(data: bytes) -> str:
    """Return the type of a file by its first bytes: "PNG", "WAV", ..., "text", "nothing (0 bytes)" or "unknown
    data"."""
    if not data:
        return "nothing (0 bytes)"
    if data[:4] == b"RIFF" or data[:4] == b"RF64":
        return {b"WAVE": "WAV", b"WEBP": "WebP", b"AVI ": "AVI video"}.get(
            data[8:12], "unknown RIFF data"
        )
    for magic, file_type in _MAGIC:
        if data.startswith(magic):
            return file_type
    if data[4:8] == b"ftyp":
        return _iso_type(data)
    # A frame of AAC: twelve set bits, a version, and the layer 0.
    if data[0] == 0xFF and len(data) > 2 and data[1] & 0xF6 == 0xF0:
        return "AAC"
    # An MPEG audio frame: eleven set bits, then a version and a layer that are not the reserved ones.
    if (
        len(data) > 2
        and data[0] == 0xFF
        and data[1] & 0xE0 == 0xE0
        and data[1] & 0x18 != 0x08
        and data[1] & 0x06
    ):
        return "MP3"
    head = data[:SNIFF_BYTES]
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise a character split at the end of `head`
            return "unknown data"
    return "unknown data" if b"\0" in head else "text"


AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
IMAGE_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf"}  # of both: the compatible brands say which


def _iso_type(data: bytes) -> str:
    """Return the type of a file of the ISO base media format by its brands: the major one, then the compatible ones."""
    brand, size = data[8:12], min(int.from_bytes(data[:4], "big"), SNIFF_BYTES)
    compatible = {data[at : at + 4] for at in range(16, size, 4)}
    brands = {brand} | (compatible if brand in IMAGE_BRANDS else set())
    if brands & AVIF_BRANDS:
        return "AVIF"
    if brands & (HEIC_BRANDS | IMAGE_BRANDS):
        return "HEIC"
    return "M4A audio" if brand == b"M4A " else "MP4"


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b"ID3", "MP3"),
    (b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (b"#!AMR", "AMR"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"FORM", "AIFF"),
    (b"\x1f\x8b", "gzip"),
)


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

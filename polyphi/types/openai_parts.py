"""The parts of messages as an endpoint with OpenAI's API reads them.

>>> openai_part(Text("What is this?"))
{'type': 'text', 'text': 'What is this?'}
"""

import base64
import io
from pathlib import Path
from typing import Any

from polyphi.types.parts import Document, Image, Item, Media, Part, Text, Video

_FORMATS: dict[bytes, str] = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"RIFF": "wav",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
    b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3",
}
"""First bytes of a file -> its name in OpenAI's API."""


def openai_part(part: Part) -> dict[str, Any]:
    """A part in OpenAI's format with embedded media. Raises ValueError for a video and a missing file."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Video):
        raise ValueError("an endpoint accepts no videos; send some of the frames as Images")
    data = _media_bytes(part)
    text = base64.b64encode(data).decode()
    if isinstance(part, Document):
        media_type = "application/pdf" if b"%PDF-" in data[:1024] else "text/plain"
        file = {"filename": part.name, "file_data": f"data:{media_type};base64,{text}"}
        return {"type": "file", "file": file}
    if isinstance(part, Item):  # for polyphi's own server
        return {"type": part.modality, part.modality: {"data": text}}
    if isinstance(part, Image):
        url = {"url": f"data:image/{media_format(data, 'png')};base64,{text}"}
        if part.detail != "auto":
            url["detail"] = part.detail
        return {"type": "image_url", "image_url": url}
    return {
        "type": "input_audio",
        "input_audio": {"data": text, "format": media_format(data, "wav")},
    }


def _media_bytes(part: Media | Document) -> bytes:
    if isinstance(part.source, bytes):
        return part.source
    if isinstance(part.source, tuple):
        import soundfile

        wave, rate = part.source
        out = io.BytesIO()
        soundfile.write(out, wave, rate, format="WAV", subtype="PCM_16")
        return out.getvalue()
    path = Path(part.source)
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    return path.read_bytes()


def media_format(data: bytes, default: str) -> str:
    """The format of an image or audio file by its first bytes, as OpenAI's API names it; `default` for others."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _FORMATS.items() if data.startswith(magic)), default)

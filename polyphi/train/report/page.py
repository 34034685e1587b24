"""Parts that the pages of a fine-tuning and of the recipe share: the frame of sections, numbers as text, media."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import jinja2
import soundfile
from markupsafe import Markup

from polyphi.types.messages import Message

MAX_SAMPLE_MEDIA = 240_000
"""Most bytes of one sample's media."""
MAX_MEDIA = 3_000_000
"""Most bytes of all media; base64 makes them 4 MB, and the page stays under 5 MB."""
MIME = {
    b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif",
    b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg", b"ID3": "audio/mpeg",
}  # fmt: skip


def render_page(
    templates: jinja2.Environment,
    template: str,
    sections: Mapping[str, str],
    report: Mapping[str, Any],
    media: Mapping[str, bytes],
    *,
    title: str,
    intro: str,
) -> str:
    """A page of the `sections` (template -> title in the navigation) of a report, without those that have no
    content."""
    encoded = {sha256: base64.b64encode(data).decode() for sha256, data in media.items()}
    contents = []
    for name, heading in sections.items():
        content = templates.get_template(f"{name}.html").render(report=report, media=encoded)
        if content.strip():
            contents.append((name, heading, Markup(content)))
    page = templates.get_template(template)
    return page.render(title=title, intro=intro, sections=contents) + "\n"


def count(n: float | None) -> str:
    """A rounded count with its unit: 3.8B, 440M, 12.3k."""
    if n is None:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:g}"


def duration(seconds: float | None) -> str:
    """A time in a suitable unit: 42 s, 12.5 min, 2.0 h."""
    if not seconds:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def inputs(stage: Mapping[str, Any]) -> str:
    """A stage's amount of training data: "4k samples, 1.2M tokens"; frames are of 10 ms."""
    counters = stage["counters"]
    return ", ".join(f"{count(counters[name])} {name}" for name in amounts(counters))


def amounts(counters: Mapping[str, int]) -> list[str]:
    """Names of a stage's counters that are amounts of its data: samples, tokens, and what encoders read."""
    others = {"supervised", "skipped", "cut", "corrupt"}
    names = [n for n in counters if n not in others and not n.startswith("skipped ")]
    return [n for n in dict.fromkeys(("samples", "tokens", *names)) if counters.get(n)]


def question(prompt: Sequence[Message]) -> str:
    """The user's text, then that of the system message and its tools."""
    messages = sorted(prompt, key=lambda m: m.role != "user")
    return "\n".join(t for m in messages for t in (m.text.strip(), m.tools) if t)


def medium(kind: str, content: bytes, mime: str) -> dict[str, Any]:
    """The entry of an image or a clip ("image", "audio"), with the length of a clip where it can be read."""
    seconds: float | None = None
    if kind == "audio":
        with suppress(soundfile.LibsndfileError):
            seconds = round(float(soundfile.info(io.BytesIO(content)).duration), 1)
    digest = hashlib.sha256(content).hexdigest()
    return {"kind": kind, "sha256": digest, "mime": mime, "seconds": seconds}

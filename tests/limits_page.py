"""Writes docs/limits.md from polyphi/serve/admission (quotas.py, settings.py): `python tests/limits_page.py`."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import jinja2

from polyphi.decoding.grammars import PROCESS_MEMORY
from polyphi.engine.engine import MAX_NUM_SEQS
from polyphi.serve.admission.quotas import LARGE_IMAGE, SMALL_THREADS, Quotas, share
from polyphi.serve.admission.settings import MIB, Settings
from polyphi.serve.answer.fetch import FETCHES
from polyphi.serve.answer.server import MATCHERS
from polyphi.serve.audio.transcriptions import DECODERS, RECORDINGS

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"
SETTINGS = Settings("phi")
CORES = (1, 64)
"""Numbers of cores: some slots depend on those of the machine."""
Row = tuple[str, str, str, str]
"""What, the limit of one client, that of all clients, and what happens beyond."""

ONE_REQUEST = {
    "max_header_bytes": ("headers", "HTTP 431"),
    "header_seconds": ("time for its headers", "the connection is closed"),
    "max_body_bytes": ("body", "HTTP 413"),
    "body_seconds": (
        "time for its body, and for reading a bufferful of the response",
        "HTTP 408; the connection is closed",
    ),
    "max_messages": ("messages of a conversation", "HTTP 400"),
    "max_parts": (
        "images, audio clips, frames of videos and pages of documents",
        "HTTP 400; 413 for pages",
    ),
    "max_image_bytes": ("an image", "HTTP 413"),
    "max_image_pixels": ("pixels of an image", "HTTP 413"),
    "max_request_pixels": ("pixels of all images, frames and pages", "HTTP 413"),
    "max_audio_bytes": ("an audio clip or a recording", "HTTP 413"),
    "max_audio_seconds": (
        "duration of an audio clip (`--max-audio-seconds`; with more, the limits of bodies grow in proportion)",
        "HTTP 413",
    ),
    "max_recording_seconds": ("duration of a recording to transcribe", "HTTP 413"),
    "max_video_bytes": ("a video", "HTTP 413"),
    "max_video_seconds": ("duration of a video", "HTTP 413"),
    "max_video_frames": ("frames of all videos", "HTTP 400"),
    "max_video_pixels": ("pixels of these frames", "HTTP 413"),
    "max_document_bytes": ("a document", "HTTP 413"),
    "max_document_pages": ("pages of a document", "HTTP 413"),
    "max_document_characters": ("characters of the text of a document", "HTTP 413"),
    "fetch_seconds": ("time to fetch a URL", "HTTP 400"),
    "max_answers": ("answers (`n`)", "HTTP 400"),
    "max_tokens": ("tokens of an answer without `max_tokens`", "the answer ends"),
}
"""Settings that limit one request, and what happens beyond. New ones follow with the text of their docstring."""
OF_ALL_CLIENTS = {
    "max_connections",
    "max_requests_bytes",
    "max_stored_bytes",
    "max_waiting",
    "max_live_sessions",
    "max_adapters",
    "max_adapter_bytes",
}
"""Settings that stand in the table of pools."""
OTHER = {"drain_seconds", "max_live_event_bytes", "max_live_buffer_seconds"}
OTHER |= {"live_idle_seconds", "live_seconds"}
"""Settings of the server, and those of live sessions, which docs/live.md has."""


def text() -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,
        trim_blocks=True,
    )
    page = templates.get_template("limits.md")
    return page.render(pools=pool_rows(), slots=slot_rows(), requests=request_rows())


def pool_rows() -> Iterator[Row]:
    """A row for each amount that clients share."""
    pools = Quotas(SETTINGS, MAX_NUM_SEQS)
    connections, stored = SETTINGS.max_connections, SETTINGS.max_stored_bytes
    always = number("bytes", pools.bytes.always)
    for what, unit, client, total, beyond in (
        (
            "open connections, each client being an address",
            "connections",
            connections,
            connections,
            "the address with the most connections loses the one that has been idle, or without an admitted request, "
            "for longest; HTTP 503 where every one has an admitted request, but never for `/live`, `/health` and "
            "`/ready`",
        ),
        (
            "requests that run or wait (`--max-num-seqs`, `--max-waiting`)",
            "requests",
            share(pools.requests.total, 0),
            pools.requests.total,
            "HTTP 429 with Retry-After; a client without another request is always admitted",
        ),
        (
            "memory of requests: body, media, prompt, output that waits to be read (`--requests-gb`)",
            "bytes",
            share(pools.bytes.total, 0),
            pools.bytes.total,
            f"HTTP 429 with Retry-After, or 503; a stream ends; never for the first {always} of a request",
        ),
        (
            "sessions of [live transcription](live.md#limits)",
            "sessions",
            share(pools.sessions.total, 0),
            pools.sessions.total,
            "`error` with `too_many_sessions`, close code 1013",
        ),
        (
            "[stored responses](server_api.md#responses-api) (`--store-mb`)",
            "bytes",
            stored // 4,
            stored,
            "the least recently used are dropped, also beyond 1,024 of one client; a response that is larger alone is "
            "not stored",
        ),
        (
            "[adapters loaded at runtime](operations.md#loading-adapters-at-runtime)",
            "adapters",
            SETTINGS.max_adapters,
            SETTINGS.max_adapters,
            f"HTTP 400, as beyond {SETTINGS.max_adapter_bytes / MIB:,.0f} MiB of their files",
        ),
    ):
        yield what, number(unit, client), number(unit, total), beyond


def slot_rows() -> Iterator[tuple[str, str]]:
    """A row for each kind of work that waits for slots."""
    few, many = (max(1, min(4, cores // 4)) for cores in CORES)
    yield "parsing a JSON body of more than 16 KiB", "1"
    yield "short work, such as texts of at most 32,768 characters", str(SMALL_THREADS)
    yield "preparing long texts, images and audio", f"{few} to {many}, by cores"
    yield f"decoding an image of more than {LARGE_IMAGE:,} pixels", "1"
    yield "decoding videos and documents; between two pages a PDF gives its slot back", "2"
    yield "fetching media, and looking up their hosts", f"{FETCHES} each"
    yield "compiling a grammar", "2"
    matchers = f"{max(MATCHERS, MAX_NUM_SEQS)}, at least `--max-num-seqs`"
    yield (
        f"a request with a grammar, with a process of at most {PROCESS_MEMORY // MIB} MiB",
        matchers,
    )
    yield "transcribing a recording; decoding it", f"{RECORDINGS}; {DECODERS}"


def number(unit: str, value: float) -> str:
    """A value with its unit; bytes in the unit in which they are whole, times in seconds, minutes or hours."""
    sizes = {"bytes": (("GiB", 1 << 30), ("MiB", MIB), ("KiB", 1 << 10))}
    sizes["seconds"] = (("hours", 3600), ("minutes", 120))
    for name, size in sizes.get(unit, ()):
        if value >= size and value % min(size, 60 if unit == "seconds" else size) == 0:
            count = value / (size if name != "minutes" else 60)
            return f"{count:,.0f} {name if count != 1 else name.removesuffix('s')}"
    return f"{value:,.0f} {unit if value != 1 else singular(unit)}".strip()


def singular(unit: str) -> str:
    if unit.endswith("ies"):
        return unit.removesuffix("ies") + "y"
    return unit.removesuffix("es") if unit.endswith("sses") else unit.removesuffix("s")


def request_rows() -> Iterator[tuple[str, str, str]]:
    names = [
        field.name
        for field in fields(Settings)
        if field.name.endswith("_seconds") or "max_" in field.name
    ]
    listed = [name for name in ONE_REQUEST if name in names]
    others = [n for n in names if n not in ONE_REQUEST.keys() | OF_ALL_CLIENTS | OTHER]
    for name in listed + others:
        what, beyond = ONE_REQUEST.get(name) or (docstrings().get(name) or name, "refused")
        unit = next((u for u in ("bytes", "seconds") if name.endswith(u)), "")
        yield what, number(unit, getattr(SETTINGS, name)), beyond


def docstrings() -> dict[str, str]:
    """The first sentence below each field of `Settings`."""
    (cls,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(cls, ast.ClassDef)
    pairs = zip(cls.body, cls.body[1:], strict=False)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")

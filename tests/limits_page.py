"""Writes docs/limits.md from polyphi/serve/admission (quotas.py, settings.py): `python tests/limits_page.py`."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from unittest import mock

import jinja2

from polyphi.engine.engine import MAX_NUM_SEQS
from polyphi.serve.admission import quotas
from polyphi.serve.admission.settings import MIB, Settings

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"
SETTINGS = Settings("phi")
CORES = (1, 64)
"""Some quotas depend on the machine's cores: the page has the values for few and for many."""
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
    "max_bodies_bytes",
    "max_connections",
    "max_prepared_bytes",
    "max_stored_bytes",
    "max_waiting",
    "max_live_sessions",
    "max_adapters",
    "max_adapter_bytes",
}
"""Settings that stand in the tables of quotas."""
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
    return page.render(quotas=quota_rows(), requests=request_rows())


def quota_rows() -> Iterator[Row]:
    """A row for each quota of `Quotas`."""
    few, many = (all_quotas(cores) for cores in CORES)
    assert few.keys() == many.keys()
    for name, quota in few.items():
        other = many[name]
        client, total = (
            amount(quota.unit, getattr(quota, whose), getattr(other, whose))
            for whose in ("client", "total")
        )
        yield quota.what, client, total, quota.beyond


def all_quotas(cores: int) -> dict[str, quotas.Quota]:
    """The quotas of a server on a machine with so many cores, by the name of their attribute."""
    with mock.patch("polyphi.devices.cpu.usable", lambda: cores):
        module = loaded_again(quotas)
    attributes = vars(module.Quotas(SETTINGS, MAX_NUM_SEQS))
    return {name: getattr(one, "quota", one) for name, one in attributes.items()}


def loaded_again(module: ModuleType) -> ModuleType:
    """A second copy of a module, whose constants are computed again."""
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_again", str(module.__file__))
    assert spec and spec.loader
    copy = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {spec.name: copy}):  # dataclasses look their module up
        spec.loader.exec_module(copy)
    return copy


def amount(unit: str, few: int, many: int) -> str:
    if few != many:
        return f"{few:,} to {number(unit, many)}, by cores"
    return number(unit, few)


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

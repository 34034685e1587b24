"""All filters: which rows each one keeps, with the texts after it, and which it drops with which reason (rows.json)."""

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from PIL import Image

from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi.types.parts import Image as Picture
from polyphi_eval.services import verifiers
from polyphi_recipe.filters import quality
from polyphi_recipe.filters.images import ClipScoreFilter, ImageSizeFilter, NsfwFilter
from polyphi_recipe.filters.language import LanguageFilter
from polyphi_recipe.filters.pii import PiiFilter
from polyphi_recipe.filters.quality import QualityClassifierFilter
from polyphi_recipe.filters.readable import ReadableMediaFilter
from polyphi_recipe.filters.rules import QualityRulesFilter
from polyphi_recipe.filters.transcripts import Recogniser, WordErrorRateFilter
from polyphi_recipe.imports.sources import AudioLengthFilter
from polyphi_recipe.pipeline.documents import document, sample
from polyphi_recipe.syntheses.judge import VerifiedAnswerFilter
from polyphi_recipe.synthetic.waves import encode

Row = dict[str, Any]
ROWS: dict[str, list[Row]] = json.loads(
    Path(__file__).with_name("rows.json").read_text(encoding="utf-8")
)
"""Filter -> rows. A row has `text` (of a document), or `user`, `images`, `audio` (what is said) and `assistant`, and
`meta`; the filter's `options`; `dropped`, the reason; `after`, texts if they change; `note`, fields of the lineage.

An image is [width, height], the grey of its pixels (0: its score is no number), or how it is broken."""
SENTENCES = {r["note"]["found"]: r["text"] for r in ROWS["LanguageFilter"][:8]}
PROSE = {r["meta"]["language"]: r["text"] for r in ROWS["QualityRulesFilter"][:4]}
HOSTILE = [
    "",
    " \n\t",
    "\x00\x1b[2J\u202e\u2028",
    "a" * 20_000,
    "[{(" * 9_000,
    "ﷺ" * 2_000,
    "🎉" * 500,
]


def picture(width: int, height: int, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(out, form)
    return out.getvalue()


def image(spec: Any) -> bytes:
    if isinstance(spec, int):
        out = io.BytesIO()
        Image.new("RGB", (40, 40), (spec,) * 3).save(out, "PNG")
        return out.getvalue()
    if isinstance(spec, list):
        return picture(*spec)
    return picture(90, 90, spec.removeprefix("cut "))[:300] if "cut" in spec else spec.encode()


SPOKEN: dict[bytes, str] = {}


def clip(text: str) -> bytes:
    """A clip that the recognizer of these tests understands; of an empty text, no clip."""
    wave = np.full(1600, zlib.crc32(text.encode()) / 2**33, np.float32)
    audio = encode(wave) if text else b"RIFF"
    SPOKEN[audio] = text
    return audio


def row_sample(row: Row, id: str = "one") -> Sample:
    meta = row.get("meta", {})
    if "text" in row:
        return shards.document(id, row["text"], "here", "MIT", **meta)
    parts: list[Any] = [Picture(image(spec)) for spec in row.get("images", ())]
    parts += [Audio(clip(row["audio"]))] if "audio" in row else []
    messages = (
        Message.user(*parts, row.get("user", "")),
        Message.assistant(row.get("assistant", "A.")),
    )
    return Sample(id, messages, "here", "MIT", meta)


def brightness(image: Image.Image) -> float:
    return float(np.asarray(image).mean() / 255) or float("nan")


def similarity(image: Image.Image, caption: str) -> float:
    if "pixels" not in caption:
        return float("nan")
    return 0.9 if f"{image.width} pixels" in caption else 0.1


def head(bias: float) -> np.ndarray:
    weights = np.zeros(quality.BUCKETS + 1, np.float32)
    weights[-1] = bias
    return weights


HEADS = quality.Classifier({("en", "good"): head(2), ("en", "toxic"): head(-2)})
LISTENER = Recogniser("listener", lambda audio, language: SPOKEN[audio])
FILTERS: dict[str, Callable[..., BaseFilter]] = {
    "ReadableMediaFilter": ReadableMediaFilter,
    "ImageSizeFilter": ImageSizeFilter,
    "NsfwFilter": lambda **options: NsfwFilter(brightness, classifier="brightness", **options),
    "ClipScoreFilter": lambda least=0.25: ClipScoreFilter(similarity, model="widths", least=least),
    "LanguageFilter": LanguageFilter,
    "QualityRulesFilter": QualityRulesFilter,
    "QualityClassifierFilter": lambda **options: QualityClassifierFilter(HEADS, **options),
    "PiiFilter": PiiFilter,
    "WordErrorRateFilter": lambda: WordErrorRateFilter(LISTENER, 0.5),
    "VerifiedAnswerFilter": lambda: VerifiedAnswerFilter(
        lambda one: verifiers.number(one.meta.get("answer", 0))
    ),
    "AudioLengthFilter": lambda longest=1.0: AudioLengthFilter(longest),
}


def matches(reason: str | None, expected: str | None) -> bool:
    """Whether a reason is the expected one, of which "..." leaves the end open."""
    if expected and expected.endswith("..."):
        return str(reason).startswith(expected.removesuffix("..."))
    return reason == expected


def texts(doc: Document) -> list[str]:
    return [message.text for message in sample(doc).messages]


@pytest.mark.parametrize("name", FILTERS)
def test_good_rows_stay_and_bad_ones_go_with_the_reason(name: str) -> None:
    for row in ROWS[name]:
        doc, again = document(row_sample(row)), document(row_sample(row))
        before, step = sample(doc).messages, FILTERS[name](**row.get("options", {}))
        keep, reason = get_filter_result(step.filter(doc))
        expected = row.get("dropped")
        assert keep == (expected is None) and matches(reason, expected), (row, reason)
        assert sample(doc).messages == before if "after" not in row else texts(doc) == row["after"]
        if "note" in row:
            lineage = doc.metadata["lineage"]
            assert bool(lineage) == bool(row["note"]), (row, lineage)
            assert not lineage or row["note"].items() <= lineage[-1].items(), (row, lineage)
        assert get_filter_result(step.filter(again)) == (keep, reason), row
        assert repr(again) == repr(doc), row


@pytest.mark.parametrize("name", FILTERS)
def test_rows_keep_their_order(name: str) -> None:
    rows = [row for row in ROWS[name] if "options" not in row]
    docs = (document(row_sample(row, str(number))) for number, row in enumerate(rows))
    expected = [str(number) for number, row in enumerate(rows) if "dropped" not in row]
    assert [doc.id for doc in FILTERS[name]().run(docs)] == expected


@pytest.mark.parametrize("name", FILTERS)
def test_empty_and_hostile_rows_stop_nothing(name: str) -> None:
    options = ROWS[name][0].get("options", {})
    for text in HOSTILE:
        for row in ({"text": text}, {"user": text, "assistant": text}):
            doc = document(row_sample({**row, "meta": {"language": "en"}}))
            keep, reason = get_filter_result(FILTERS[name](**options).filter(doc))
            assert keep or reason

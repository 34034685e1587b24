"""Calibration rows."""

from pathlib import Path

import pytest

from polyphi.data import calibration, shards
from polyphi.data.shards import Shards, document
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer


@pytest.fixture
def processor() -> Processor:
    return Processor(Tokenizer.train(["what is 1 + 2 ?", "3 4 5 6 7 8 9"], vocab_size=320))


def corpus(folder: Path, texts: list[str]) -> Shards:
    samples = (document(str(i), text, "made up", "MIT") for i, text in enumerate(texts))
    shards.write(folder, samples, pipeline="test")
    return Shards(folder)


def test_rows_are_spread_over_all_of_each_source(tmp_path: Path, processor: Processor) -> None:
    counts = {"a": 40, "b": 3}
    sources = [corpus(tmp_path / c, [f"{c} {i}" for i in range(n)]) for c, n in counts.items()]
    rows = calibration.rows(processor, sources, number=8)
    texts = [processor.tokenizer.decode(row.ids.tolist()).split("<")[0] for row in rows]
    assert texts == ["a 0", "a 10", "a 20", "a 30", "b 0", "b 1", "b 2"]


def test_long_texts_are_cut_off(tmp_path: Path, processor: Processor) -> None:
    (row,) = calibration.rows(processor, [corpus(tmp_path / "a", ["1 + 2 " * 300])], context=64)
    assert len(row) == 64


def test_no_rows_are_told(tmp_path: Path, processor: Processor) -> None:
    with pytest.raises(ValueError, match="calibrate"):
        calibration.rows(processor, [corpus(tmp_path / "a", [])])

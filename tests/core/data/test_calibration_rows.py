"""Calibration rows."""

from pathlib import Path

import pytest

from polyphi.data import calibration, shards
from polyphi.data.shards import Sample, Shards, document
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from tests.fixtures.engines import picture


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
    with pytest.raises(ValueError, match="found none"):
        calibration.rows(processor, [corpus(tmp_path / "a", [])])


def test_rows_to_measure_on_have_labels_and_known_modalities(
    tmp_path: Path, processor: Processor
) -> None:
    samples = [
        document("0", "1 + 2 = 3", "made up", "MIT"),
        Sample("1", (Message.user("1 + 2 ?"), Message.assistant("3")), "made up", "MIT"),
        Sample("2", (Message.user(picture(), "?"), Message.assistant("3")), "made up", "MIT"),
    ]
    shards.write(tmp_path / "a", samples, pipeline="test")
    source = Shards(tmp_path / "a")
    rows = calibration.rows(processor, [source], supervise="answers", modalities=())
    assert [len(row) - len(row.supervised) for row in rows] == [1, len(rows[1]) - 2]
    rows = calibration.rows(processor, [source], context=4096, modalities=("image",))
    assert [row.labels for row in rows] == [None] * 3

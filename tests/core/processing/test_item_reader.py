"""Hostile and broken readers of a user's modality: one line each, within their time."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyphi.media.media import MediaError
from polyphi.processing import item_reader
from polyphi.processing.item_reader import MAX_STUCK, ItemReader
from polyphi.processing.reader import number_in_errors
from polyphi.types.modality import Cost
from polyphi.types.parts import Item
from tests.fixtures.items import csv, motion


def reads(source: object = b"x", **changes: Any) -> Any:
    return ItemReader(motion(**changes)).placeholder(Item("motion", source), 0, None)


def test_a_series_of_bytes_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv(20))
    one, two = reads(csv(20)), reads(tmp_path / "a.csv")
    assert one.tokens == two.tokens == 3 and torch.equal(one.content, two.content)
    assert reads(read=lambda _: np.ones((5, 6))).content.dtype == torch.float32


def raising(error: BaseException) -> Any:
    def read(_: object) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (raising(ValueError("expected a walk")), "^motion: expected a walk$"),
        (raising(KeyError("ax")), r"^motion: its reader failed \(KeyError: 'ax'\)$"),
        (raising(SystemExit(1)), "its reader failed"),
        (lambda _: None, r"expected a float tensor \[n ...\] from its reader, found a NoneType"),
        (
            lambda _: torch.zeros(3, 6, dtype=torch.int64),
            r"found a Tensor of torch.int64, shape \[3, 6\]",
        ),
        (lambda _: torch.tensor(1.0), "found a Tensor of torch.float32, shape"),
        (lambda _: torch.zeros(0, 6), "expected at least one step, found none"),
        (lambda _: torch.tensor([[1.0, torch.nan]]), "expected finite values, found NaN"),
        (
            lambda _: torch.zeros(300, 6),
            r"expected at most 6,400 bytes from its reader, found 7,200",
        ),
    ],
)
def test_what_a_reader_may_not_return(read: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says) as error, number_in_errors("motion", 1):
        reads(read=read, max_bytes=100)
    assert (error.value.part, error.value.number) == ("motion", 1)


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        (lambda _: Cost(0), "at least one token"),
        (lambda _: Cost(1.5), "whole number"),
        (lambda _: 3, "expected a Cost of at least one token, found 3"),
        (lambda x: x.nothing, "its cost can't be computed"),
    ],
)
def test_what_a_cost_may_not_be(cost: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        reads(csv(), cost=cost)


def test_files_that_are_missing_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.csv: .*nothing"):
        reads(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(csv())
    for source in (csv(), tmp_path / "a.csv"):
        with pytest.raises(MediaError, match="99 bytes") as error:
            reads(source, max_bytes=99)
        assert error.value.reason == "size"
    with pytest.raises(MediaError, match=r"ax, ay, az, gx, gy, gz, .*no ax"):
        reads(b"hello")


def test_a_reader_that_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call meets its time; the fifth is refused at once until one has returned."""
    gate = threading.Event()
    awaited = []
    await_ = ItemReader._await
    monkeypatch.setattr(
        ItemReader, "_await", lambda self, thread: (await_(self, thread), awaited.append(1))
    )
    reader = ItemReader(motion(read=lambda _: gate.wait() and torch.ones(1, 6), seconds=0.01))
    for _ in range(MAX_STUCK):
        with pytest.raises(MediaError, match=r"0\.01 s") as error:
            reader.placeholder(Item("motion", b"x"), 0, None)
        assert error.value.reason == "decoder"
    with pytest.raises(MediaError, match=r"4 calls .*motion"):
        reader.placeholder(Item("motion", b"x"), 0, None)
    gate.set()
    while len(awaited) < MAX_STUCK:
        threading.Event().wait(0.001)
    assert reader.placeholder(Item("motion", b"x"), 0, None).tokens == 1


def test_an_item_is_read_once_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = motion().read
    reader = ItemReader(motion(read=lambda source: (calls.append(1), read(source))[1]))
    item = Item("motion", csv())
    assert reader.size(item, None) == (20 * 6 * 4, 0)
    assert reader.tokens(item, None) == reader.placeholder(item, 0, None).tokens == 3
    assert len(calls) == 1 and len(reader._values) == 1
    del item
    assert not reader._values


def test_steps_of_two_shapes() -> None:
    reader = ItemReader(motion(read=lambda source: torch.ones(2, len(source))))
    items = [reader.placeholder(Item("motion", b"x" * n), n, None) for n in (3, 4)]
    with pytest.raises(MediaError, match=r"one shape .*\[\(3,\), \(4,\)\]"):
        next(reader.inputs(items, [0, 1], ["motion"]))
    assert item_reader.MAX_STUCK == 4

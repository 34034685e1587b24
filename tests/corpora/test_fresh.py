"""Fresh samples of the corpora that have a generator: pure functions of their number, and no row of the shards. What
questions are about is of the training side; for pictures test_vision.py tests that."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import cloudpickle
import pytest

from polyphi.curate import sources
from polyphi.curate.corpus import Corpus, Work, generator
from polyphi.curate.text import side
from polyphi.data.shards import Sample, row_hash, to_row
from polyphi.stages import sizes
from polyphi.synthetic import instructions
from polyphi.synthetic.instructions import Ask

CORPORA: list[Corpus] = [
    importlib.import_module(f"polyphi.corpora.{name}").corpus for name in sizes.FRESH
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package can be had."""
    monkeypatch.setattr(sources, "_fill", _refuse)


def _refuse(*_: object) -> None:
    raise sources.Unavailable("no network")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(
        {"train": 40, "test": 20}, 0, tmp_path / "cache", tmp_path / "data", tell=lambda line: None
    )


def split(corpus: Corpus, work: Work, name: str) -> list[Sample]:
    return [sample for other, sample in corpus.build(work) if other == name]


def content(sample: Sample) -> str:
    """The hash of a sample but for its id."""
    return row_hash(to_row(replace(sample, id="")))


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda c: c.name)
def test_a_sample_is_a_function_of_its_number(corpus: Corpus, work: Work) -> None:
    make, fingerprint = generator(corpus, work)
    samples = [make(n) for n in range(40)]
    again, same = generator(corpus, replace(work, tell=print, models={"a": Random(0)}))
    assert [again(n) for n in (39, 0, 7)] == [samples[n] for n in (39, 0, 7)]
    elsewhere = cloudpickle.loads(cloudpickle.dumps(make))
    assert [elsewhere(n) for n in (39, 0)] == [samples[n] for n in (39, 0)]
    other, different = generator(corpus, replace(work, seed=1))
    assert [other(n) for n in range(40)] != samples
    assert fingerprint == same != different
    ids = {s.id for s in samples}
    assert len(ids) == 40 and all(id.startswith(f"{corpus.name}-fresh-") for id in ids)
    rows = split(corpus, work, "train")
    assert not ids & {s.id for s in rows}
    assert [content(s) for s in rows] != [content(s) for s in samples]
    tasks = {s.meta["task"] for s in rows}
    # One in ten of `sums` is another question.
    more = [make(n) for n in range(40, 400)] if corpus.name == "sums" else []
    assert len(tasks & {s.meta["task"] for s in (*samples, *more)}) >= min(2, len(tasks))


def test_the_fingerprint_changes_with_the_packages(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = next(c for c in CORPORA if c.name == "instructions")
    _, without = generator(corpus, work)
    monkeypatch.setattr(instructions, "_sentences", lambda *_: ["words of a help page"])
    monkeypatch.setattr("polyphi.curate.corpus.FIRST", 200)
    _, with_help = generator(corpus, work)
    assert without != with_help


def sides(ask: Ask) -> Iterator[bool]:
    """Whether what a question is about is held out."""
    text = ask.question.partition(": ")[2]
    if ask.task == "copy":
        yield side("test", "copy", text)
    if ask.task == "sort" and ask.question.startswith("Sort"):
        yield side("test", "sort", *text)
    if ask.task == "position":
        yield side("test", "position", *ask.question.partition("? ")[2].split())


@pytest.mark.parametrize("name", ["copying", "instructions"])
def test_questions_are_about_nothing_that_is_held_out(name: str, work: Work) -> None:
    corpus = next(c for c in CORPORA if c.name == name)
    make, _ = generator(corpus, work)
    found = [
        held
        for sample in map(make, range(3200))
        for held in sides(Ask(sample.meta["task"], sample.prompt[0].text, sample.answer))
    ]
    assert len(found) > 300 and not any(found)
    test = instructions.testing(work, Random(0), 200)
    questions = {ask.question for ask in islice(test, 200)}
    assert not questions & {make(n).prompt[0].text for n in range(3200)}

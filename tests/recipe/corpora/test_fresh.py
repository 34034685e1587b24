"""Fresh samples of corpora with a generator: pure functions of their number, disjoint from the shards, and about
content of the training split (for images: test_vision.py)."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import cloudpickle
import pytest

from polyphi.data.shards import Sample, row_hash, to_row
from polyphi_recipe.pipeline.corpus import Corpus, Work, generator
from polyphi_recipe.raw import packages, real_text
from polyphi_recipe.raw.real_text import in_split
from polyphi_recipe.stages import sizes
from polyphi_recipe.synthetic import instructions
from polyphi_recipe.synthetic.qa import QA
from tests.fixtures.variants import few

MODULES = real_text._standard_library()[::5]
CORPORA: list[Corpus] = [
    importlib.import_module(f"polyphi_recipe.corpora.{name}").corpus for name in sizes.FRESH
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package is unavailable, and most of the standard library; a generator's hash is that of few samples."""
    monkeypatch.setattr(packages, "_fill", _refuse)
    monkeypatch.setattr(real_text, "_standard_library", lambda: MODULES)
    monkeypatch.setattr("polyphi_recipe.pipeline.corpus.FIRST", 8)


def _refuse(*_: object) -> None:
    raise packages.Unavailable("no network")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(
        {"train": 40, "test": 20},
        0,
        tmp_path / "cache",
        tmp_path / "data",
        report=lambda line: None,
    )


def split(corpus: Corpus, work: Work, name: str) -> list[Sample]:
    return [sample for other, sample in corpus.build(work) if other == name]


def content(sample: Sample) -> str:
    """Return the hash of a sample without its id."""
    return row_hash(to_row(replace(sample, id="")))


@pytest.mark.parametrize("corpus", few(CORPORA, 3), ids=lambda c: c.name)
def test_a_sample_is_a_function_of_its_number(corpus: Corpus, work: Work) -> None:
    make, fingerprint = generator(corpus, work)
    samples = [make(n) for n in range(40)]
    same_make, same_fingerprint = generator(
        corpus, replace(work, report=print, models={"a": Random(0)})
    )
    assert [same_make(n) for n in (39, 0, 7)] == [samples[n] for n in (39, 0, 7)]
    unpickled = cloudpickle.loads(cloudpickle.dumps(make))
    assert [unpickled(n) for n in (39, 0)] == [samples[n] for n in (39, 0)]
    other, other_fingerprint = generator(corpus, replace(work, seed=1))
    assert [other(n) for n in range(40)] != samples
    assert fingerprint == same_fingerprint != other_fingerprint
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
    monkeypatch.setattr("polyphi_recipe.pipeline.corpus.FIRST", 200)
    _, with_help = generator(corpus, work)
    assert without != with_help


def sides(qa: QA) -> Iterator[bool]:
    """Yield whether the content of a question is held out."""
    text = qa.question.partition(": ")[2]
    if qa.task == "copy":
        yield in_split("test", "copy", text)
    if qa.task == "sort" and qa.question.startswith("Sort"):
        yield in_split("test", "sort", *text)
    if qa.task == "position":
        yield in_split("test", "position", *qa.question.partition("? ")[2].split())


@pytest.mark.parametrize("name", ["copying", "instructions"])
def test_questions_are_about_nothing_that_is_held_out(name: str, work: Work) -> None:
    corpus = next(c for c in CORPORA if c.name == name)
    make, _ = generator(corpus, work)
    held_out = [
        is_held_out
        for sample in map(make, range(3200))
        for is_held_out in sides(QA(sample.meta["task"], sample.prompt[0].text, sample.answer))
    ]
    assert len(held_out) > 300 and not any(held_out)
    test = instructions.testing(work, Random(0), 200)
    questions = {qa.question for qa in islice(test, 200)}
    assert not questions & {make(n).prompt[0].text for n in range(3200)}

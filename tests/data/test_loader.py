"""Steps: filled to the budget, resumed from one number, the same with and without the thread."""

import threading
from contextlib import closing
from pathlib import Path

import pytest

from polyphi.batch import Batch, row
from polyphi.data import shards
from polyphi.data.loader import Loader
from polyphi.data.shards import Sample, document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("a", 30), ("b", 11)):
        samples = [document(str(i), "x" * (1 + i % 9), "", "") for i in range(rows)]
        shards.write(folder / name / "train", samples, pipeline="")
    return folder


def as_row(corpus: str, sample: Sample) -> list[Batch]:
    if len(sample.answer) > 8:
        raise ValueError(f"{len(sample.answer)} letters, the context holds 8")
    return [row([1] * len(sample.answer))]


def make(folder: Path, make_rows=as_row, **options) -> Loader:
    return Loader({"a": 2, "b": 1}, folder, make_rows, **{"batch_tokens": 20, "seed": 5, **options})


def test_steps_fill_the_budget_with_draws_in_a_row(folder: Path) -> None:
    loader = make(folder)
    steps = [loader.step() for _ in range(12)]
    assert all(12 < step.tokens <= 20 for step in steps)
    assert [len(step.ids) for step in steps] == [len(step.samples) for step in steps]
    assert steps[-1].draws == sum(len(step.ids) + len(step.skipped) for step in steps)
    left_out = [reason for step in steps for _, reason in step.skipped]
    assert left_out and all("letters, the context holds 8" in reason for reason in left_out)


def test_resumes_from_its_state(folder: Path) -> None:
    loader = make(folder)
    steps = [loader.step() for _ in range(6)]
    again = make(folder)
    again.restore(steps[2].draws)
    assert [again.step().ids for _ in range(3)] == [step.ids for step in steps[3:]]
    assert again.state() == loader.state() == steps[-1].draws


def test_the_thread_changes_nothing(folder: Path) -> None:
    plain = make(folder)
    with closing(make(folder).ahead(8)) as ahead:
        assert [step.ids for step in ahead] == [plain.step().ids for _ in range(8)]


def test_the_thread_ends_early_and_tells_errors(folder: Path) -> None:
    with closing(make(folder).ahead(1000)) as ahead:
        next(ahead)
    assert not [t for t in threading.enumerate() if t.name == "loader"]

    def broken(corpus: str, sample: Sample) -> list[Batch]:
        raise TypeError("no")

    with pytest.raises(TypeError, match="no"):
        next(make(folder, broken).ahead(3))


def test_a_sample_larger_than_the_budget_is_a_step_of_its_own(folder: Path) -> None:
    steps = [make(folder, batch_tokens=1).step() for _ in range(3)]
    assert all(len(step.ids) == 1 for step in steps)


def test_a_corpus_that_gives_nothing_is_named(folder: Path) -> None:
    def only_a(corpus: str, sample: Sample) -> list[Batch]:
        if corpus == "b":
            raise ValueError("too long")
        return as_row(corpus, sample)

    loader = make(folder, only_a)
    with pytest.raises(
        ValueError, match=r"11 samples of 'b' in a row could not be used, the last b/\d+: too long"
    ):
        for _ in range(100):
            loader.step()

"""Fresh samples: in order for any mix, the same for any access and process; a failed sample is reported as a damaged
row."""

from contextlib import closing
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from polyphi.data import loader as module
from polyphi.data import shards
from polyphi.data.draws import Skipped
from polyphi.data.generated import GeneratedSamples
from polyphi.data.loader import Loader
from polyphi.data.shards import Sample, document
from polyphi.processing.processor import TooLong
from tests.core.data.test_loader import as_row, contents, group, make, packs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the corpus "a"; "b" is fresh."""
    folder = tmp_path_factory.mktemp("data")
    samples = [document(str(i), "x" * (1 + i % 9), "", "") for i in range(30)]
    shards.write(folder / "a" / "train", samples, pipeline="")
    return folder


def sample(number: int) -> Sample:
    if number == 5:
        raise ValueError("no word fits")
    return document(str(number), "x" * (1 + number % 7), "", "")


FRESH = {"generated": {"b": GeneratedSamples(sample, "one")}}


def test_samples_have_numbers_and_ids() -> None:
    fresh = GeneratedSamples(sample, "one")
    assert fresh.sample(12).answer == "x" * 6 and fresh.id(12) == "fresh-00000012"
    assert fresh.manifest == {"fresh": "one"}
    with pytest.raises(ValueError, match="fits"):
        fresh.sample(5)


@pytest.mark.parametrize("weights", [{"b": 1}, {"a": 1, "b": 9}, {"a": 5, "b": 1}])
@pytest.mark.parametrize("late", [{}, {"b": 20}])
def test_the_stream_is_in_order_whatever_the_mix(
    folder: Path, weights: dict[str, float], late: dict[str, int]
) -> None:
    late = late if len(weights) > 1 else {}
    loader = Loader(weights, folder, as_row, batch_tokens=1, seed=3, late=late, **FRESH)
    draws = [loader.source[n] for n in range(150)]
    numbers = [draw.id for draw in draws if draw.corpus == "b"]
    assert numbers == [f"fresh-{n:08d}" for n in range(len(numbers))] and len(numbers) > 20
    for n in (149, 3, 77, 0, 149):  # random access
        again = Loader(weights, folder, as_row, batch_tokens=1, seed=3, late=late, **FRESH)
        assert again.source[n].name == loader.source[n].name == draws[n].name


def test_a_sample_that_cannot_be_made_is_reported_as_corrupt(folder: Path) -> None:
    loader = make(folder, **FRESH)
    steps = [loader.step() for _ in range(10)]
    skipped = [s for step in steps for s in step.skipped if s.corpus == "b"]
    assert Skipped("b", "fresh-00000005", "corrupt", "no word fits") in skipped
    assert steps[-1].corrupt >= 1
    drawn = [name for step in steps for name in step.ids if name.startswith("b/")]
    assert len(set(drawn)) == len(drawn) > 10 and "b/fresh-00000005" not in drawn


def test_a_generator_that_gives_nothing_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_a(corpus: str, sample: Sample) -> list[Any]:
        if corpus == "b":
            raise TooLong("too long")
        return as_row(corpus, sample)

    monkeypatch.setattr(module, "MAX_CONSECUTIVE_SKIPS", 12)
    loader = make(folder, only_a, **FRESH)
    with pytest.raises(ValueError, match=r"12 .*'b' .*b/fresh-00000011"):
        for _ in range(100):
            loader.step()


def test_resumes_from_its_state(folder: Path) -> None:
    loader = make(folder, **FRESH)
    steps = [loader.step() for _ in range(8)]
    for done in (0, 2, 6):
        again = make(folder, **FRESH)
        again.restore(steps[done].draws, steps[done].corrupt)
        rest = [again.step() for _ in steps[done + 1 :]]
        assert [contents(step) for step in rest] == [contents(step) for step in steps[done + 1 :]]
        assert [packs(step) for step in rest] == [packs(step) for step in steps[done + 1 :]]


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_sees_the_same_steps(folder: Path, world: int) -> None:
    plain = make(folder, **FRESH)
    steps = [plain.step() for _ in range(6)]
    for start, rest in ((0, steps), (steps[1].draws, steps[2:])):
        for mine in group(folder, world, len(rest), start, **FRESH):
            assert [(s.ids, s.sizes, s.skipped) for s in mine] == [
                (s.ids, s.sizes, s.skipped) for s in rest
            ]


@pytest.mark.long
def test_worker_processes_change_nothing(folder: Path) -> None:
    words = {"letter": "x"}  # a generator may hold what it draws from

    def sample_of(number: int) -> Sample:
        return document(str(number), words["letter"] * (1 + number % 7), "", "")

    fresh = {"b": GeneratedSamples(sample_of, "one")}
    assert cloudpickle.loads(cloudpickle.dumps(fresh["b"])).sample(9) == sample_of(9)
    plain = make(folder, generated=fresh)
    steps = [plain.step() for _ in range(6)]
    with closing(make(folder, generated=fresh, workers=2).steps(6)) as iterator:
        worker_steps = list(iterator)
    assert [contents(step) for step in worker_steps] == [contents(step) for step in steps]
    assert [packs(step) for step in worker_steps] == [packs(step) for step in steps]


def test_the_manifests_say_which_corpus_is_fresh(folder: Path) -> None:
    manifests = make(folder, **FRESH).manifests
    assert manifests["b"] == {"fresh": "one"} and manifests["a"]["rows"] == 30

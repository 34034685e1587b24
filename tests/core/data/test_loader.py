"""Steps: filled to the budget, resumed from one number, the same for rows made by this process, a thread, worker
processes, or a group of processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.data import loader as module
from polyphi.data import shards, workers
from polyphi.data.draws import Draw, Skipped, Unfit
from polyphi.data.loader import Loader, ReaderGroup, StepRows
from polyphi.data.packing import Capacity, Pack, RowSize, pack_step
from polyphi.data.shards import Sample, document
from polyphi.processing.processor import TooLong
from polyphi.types.batch import Batch, row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from tests.fixtures.variants import few


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("a", 30), ("b", 11)):
        samples = [document(str(i), "x" * (1 + i % 9), "", "") for i in range(rows)]
        shards.write(folder / name / "train", samples, pipeline="")
    return folder


def as_row(corpus: str, sample: Sample) -> list[Batch]:
    if len(sample.answer) > 8:
        raise TooLong(f"{len(sample.answer)} characters, the context holds 8")
    if corpus == "b" and sample.id == "3":
        raise Unfit("no answer")
    if corpus == "a" and sample.id == "3":
        raise ValueError("damaged")
    number = int(sample.id)
    return [
        row(
            [number] * len(sample.answer),
            AudioInput(layouts=(AudioLayout(number, "speech"),), mels=torch.full((number, 2), 0.5)),
            supervise=[True] * len(sample.answer),
            lost=number % 2,
        )
    ]


def make(folder: Path, make_rows: Any = as_row, **options: Any) -> Loader:
    return Loader({"a": 2, "b": 1}, folder, make_rows, **{"batch_tokens": 20, "seed": 5, **options})


def contents(step: StepRows) -> tuple[Any, ...]:
    """Return all fields of a step except its rows."""
    return step.ids, step.sizes, step.draws, step.skipped, step.cut, step.lost, step.corrupt


def packs(step: StepRows) -> list[list[int]]:
    return [p.batch.ids.tolist() for p in packs_of(step)]


def packs_of(step: StepRows) -> list[Pack]:
    return pack_step(
        step.samples, Capacity(12, {"audio": 60}), step.other_sizes(), step.spare_rows()
    )


def test_steps_fill_the_budget_with_draws_in_a_row(folder: Path) -> None:
    loader = make(folder)
    steps = [loader.step() for _ in range(12)]
    assert all(12 < step.tokens <= 20 for step in steps)
    assert [len(step.ids) for step in steps] == [len(step.samples) for step in steps]
    assert steps[-1].draws == sum(len(step.ids) + len(step.skipped) for step in steps)
    for step in steps:
        assert step.sizes == [RowSize.of(rows) for rows in step.samples]
        assert step.cut == step.lost == sum(rows[0].lost for rows in step.samples)


def test_samples_that_are_left_out_are_told_by_kind(folder: Path) -> None:
    loader = make(folder)
    steps = [loader.step() for _ in range(12)]
    skipped = [one for step in steps for one in step.skipped]
    categories = {one.category for one in skipped}
    assert categories == {"too_long", "unfit", "corrupt"}
    assert Skipped("a", "3", "corrupt", "damaged") in skipped
    assert Skipped("b", "3", "unfit", "no answer") in skipped
    assert str(skipped[0]) == f"{skipped[0].corpus}/{skipped[0].id}: {skipped[0].reason}"
    assert steps[-1].corrupt == sum(one.category == "corrupt" for one in skipped)


def test_resumes_from_its_state(folder: Path) -> None:
    loader = make(folder)
    steps = [loader.step() for _ in range(6)]
    again = make(folder)
    again.restore(steps[2].draws, steps[2].corrupt)
    assert [contents(again.step()) for _ in range(3)] == [contents(step) for step in steps[3:]]
    assert again.state() == loader.state() == steps[-1].draws


def test_the_thread_changes_nothing(folder: Path) -> None:
    plain = make(folder)
    with closing(make(folder).steps(8, ahead=True)) as ahead:
        assert [contents(step) for step in ahead] == [contents(plain.step()) for _ in range(8)]


def test_the_thread_ends_early_and_tells_errors(folder: Path) -> None:
    with closing(make(folder).steps(1000, ahead=True)) as ahead:
        next(ahead)
    assert not [t for t in threading.enumerate() if t.name == "loader"]

    def broken(corpus: str, sample: Sample) -> list[Batch]:
        raise TypeError("no")

    with pytest.raises(TypeError, match="no"):
        next(make(folder, broken).steps(3, ahead=True))


def test_a_sample_larger_than_the_budget_is_a_step_of_its_own(folder: Path) -> None:
    steps = [make(folder, batch_tokens=1).step() for _ in range(3)]
    assert all(len(step.ids) == 1 for step in steps)


def test_a_corpus_that_gives_nothing_is_named(folder: Path) -> None:
    def only_a(corpus: str, sample: Sample) -> list[Batch]:
        if corpus == "b":
            raise TooLong("too long")
        return as_row(corpus, sample)

    loader = make(folder, only_a)
    with pytest.raises(ValueError, match=r"11 .*'b' .* b/\d+: too long"):
        for _ in range(100):
            loader.step()


def damaged(share: float) -> Callable[[str, Sample], list[Batch]]:
    def rows(corpus: str, sample: Sample) -> list[Batch]:
        if int(sample.id) < share * 400:
            raise ValueError("broken picture")
        return [row([1])]

    return rows


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    samples = [document(str(i), "x", "", "") for i in range(400)]
    shards.write(folder / "a" / "train", samples, pipeline="")
    return folder


def end(loader: Loader, draws: int) -> tuple[int, str]:
    try:
        while loader.state() < draws:
            loader.step()
    except ValueError as error:
        return loader.state(), str(error)
    return loader.state(), "went on"


def test_too_much_damage_ends_the_run_at_the_same_draw_when_resumed(many: Path) -> None:
    def new(share: float) -> Loader:
        return Loader({"a": 1}, many, damaged(share), batch_tokens=30, seed=0)

    assert end(new(0.005), 12_000)[1] == "went on"
    draws, message = end(new(0.05), 12_000)
    assert "20 of " in message and message.count("a/") == 21 and "broken picture" in message
    first = new(0.05)
    steps = [first.step() for _ in range(5)]
    again = new(0.05)
    again.restore(steps[-1].draws, steps[-1].corrupt)
    assert end(again, 12_000)[0] == draws
    again.restore(steps[-1].draws, 0)
    assert end(again, 12_000)[0] != draws


def test_a_step_without_some_of_its_samples(folder: Path) -> None:
    step = make(folder).step()
    less = step.without([step.ids[1], "a/none"])
    assert less.ids == step.ids[:1] + step.ids[2:] == less.own_ids()
    assert less.sizes == [RowSize.of(rows) for rows in less.samples] and less.draws == step.draws
    assert not step.without(step.ids).samples


# ------------------------------------------------------------------------------ many processes


def group(
    folder: Path, world: int, steps: int, start: int = 0, **options: Any
) -> list[list[StepRows]]:
    """Return each process's steps; threads simulate processes."""
    barrier = threading.Barrier(world)
    draws_by_rank: dict[int, list[Draw]] = {}

    def one(rank: int) -> list[StepRows]:
        def exchange(mine: list[Draw]) -> list[list[Draw]]:
            draws_by_rank[rank] = mine
            barrier.wait(20)
            everything = [draws_by_rank[r] for r in range(world)]
            barrier.wait(20)
            return everything

        loader = make(folder, group=ReaderGroup(rank, world, exchange), **options)
        loader.restore(start)
        return [loader.step() for _ in range(steps)]

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.integers(0, 3), st.integers(1, 40))
def test_any_number_of_processes_sees_the_same_steps(
    folder: Path, world: int, stopped: int, batch_tokens: int
) -> None:
    plain = make(folder, batch_tokens=batch_tokens)
    steps = [plain.step() for _ in range(6)]
    start = steps[stopped - 1].draws if stopped else 0
    by_process = group(folder, world, 6 - stopped, start, batch_tokens=batch_tokens)
    for number, step in enumerate(steps[stopped:]):
        parts = [mine[number] for mine in by_process]
        for part in parts:
            assert (part.ids, part.sizes, part.draws) == (step.ids, step.sizes, step.draws)
            assert part.skipped == step.skipped and part.cut == step.cut
            assert bool(part.samples) != bool(part.spare_rows())
        rows_of_parts = sorted(rows[0].ids.tolist() for part in parts for rows in part.samples)
        assert rows_of_parts == sorted(rows[0].ids.tolist() for rows in step.samples), (
            "each sample once"
        )
        assert len({len(packs_of(part)) for part in parts}) == 1
        less = [part.without(step.ids[:1]) for part in parts]
        if len(step.ids) > 1:
            assert len({len(packs_of(part)) for part in less}) == 1


def test_no_rhythm_of_the_mix_gives_one_process_all_of_a_corpus(folder: Path) -> None:
    loader = Loader(
        {"a": 1, "b": 1}, folder, as_row, batch_tokens=9, seed=0, group=ReaderGroup(0, 2)
    )
    drawn = [loader.source[g].corpus for g in range(200)]
    assert 70 < drawn.count("a") < 130


# ------------------------------------------------------------------------------ worker processes


def pids() -> set[int]:
    result = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # or a zombie of an earlier test
            if "spawn_main" in " ".join(child.cmdline()):
                result.add(child.pid)
    return result


@pytest.fixture
def no_workers_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 20
    while pids() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not pids()


@pytest.mark.parametrize(("count", "other"), few([(1, 0), (1, 2), (2, 1)], 1))
def test_workers_change_nothing(
    folder: Path, count: int, other: int, no_workers_left: None
) -> None:
    plain = make(folder)
    steps = [plain.step() for _ in range(12)]
    state = torch.get_rng_state()  # the training's
    with closing(make(folder, workers=count).steps(9)) as iterator:
        worker_steps = list(iterator)
    assert torch.equal(torch.get_rng_state(), state)
    assert [contents(step) for step in worker_steps] == [contents(step) for step in steps[:9]]
    assert [packs(step) for step in worker_steps] == [packs(step) for step in steps[:9]]
    for ours, theirs in zip(steps, worker_steps, strict=False):
        for one, its in zip(ours.samples, theirs.samples, strict=True):
            ours, theirs = (rows[0].inputs["audio"] for rows in (one, its))
            assert torch.equal(ours.mels, theirs.mels) and ours.layouts == theirs.layouts
            assert (
                torch.equal(one[0].labels, its[0].labels) and one[0].cu_seqlens == its[0].cu_seqlens
            )
    again = make(folder, workers=other)  # and with another number of them
    again.restore(steps[4].draws, steps[4].corrupt)
    with closing(again.steps(7, ahead=True)) as iterator:
        assert [contents(step) for step in iterator] == [contents(step) for step in steps[5:]]


def test_an_error_in_a_worker_is_raised_here(folder: Path, no_workers_left: None) -> None:
    class Stubborn(Exception):
        def __init__(self) -> None:
            super().__init__("a mistake in the program")
            self.lock = threading.Lock()  # so that it can't be pickled

    def broken(corpus: str, sample: Sample) -> list[Batch]:
        raise Stubborn

    with pytest.raises(RuntimeError) as error:
        next(make(folder, broken, workers=1).steps(3))
    assert str(error.value) == "Stubborn: a mistake in the program"


@pytest.mark.long
def test_a_killed_worker_is_told(folder: Path, no_workers_left: None) -> None:
    def killed(corpus: str, sample: Sample) -> list[Batch]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        next(make(folder, killed, workers=1).steps(3))


TRAINS = """
import sys, time
from contextlib import closing
from polyphi.types.batch import row
from polyphi.data.loader import Loader

def rows(corpus, sample):
    return [row([1] * 4)]

if __name__ == "__main__":
    loader = Loader({"a": 1}, sys.argv[1], rows, batch_tokens=8, seed=0, workers=2)
    with closing(loader.steps(10**6)) as steps:
        for number, step in enumerate(steps):
            if number == 3:
                print("ready", flush=True)
            time.sleep(0.01)
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(folder: Path, tmp_path: Path, number: int) -> None:
    script = tmp_path / "trains.py"
    script.write_text(TRAINS)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    if number == signal.SIGKILL:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # as a terminal or a scheduler does
    _, stderr = process.communicate(timeout=40)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    if number == signal.SIGINT:
        assert stderr.count("Traceback") == 1 and stderr.rstrip().endswith("KeyboardInterrupt"), (
            stderr
        )


def test_how_many_workers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (workers.default(cpu), workers.default(gpu)) == (0, 5)

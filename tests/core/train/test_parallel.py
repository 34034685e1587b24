"""Several processes (gloo) give the results of one, with replicas and shards, also where a run is stopped."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from polyphi.data.loader import Loader, ReaderGroup
from polyphi.runtime import distributed
from polyphi.runtime.progress import read_metrics
from polyphi.train import parallel, trainer
from polyphi.train.checkpoint import Checkpoints
from polyphi.train.evaluation import EVALUATIONS, EvalOptions
from polyphi.train.parallel import clip_gradients
from polyphi.train.preference import DPO
from polyphi.train.stage import Mix
from polyphi.types.messages import Message
from polyphi.types.parts import Image
from tests.core.train import small
from tests.fixtures import forked
from tests.fixtures.processes import free_port
from tests.fixtures.variants import few

STAGES = {stage.name: stage for stage in small.STAGES}


def run_processes(
    out: Path, corpora: Path, *options: str, processes: int = 2, code: int = 0
) -> None:
    """Run several processes, as torchrun starts them."""
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = ("from tests.core.train import small; small.main()", str(out), str(corpora), *options)
    started = [
        forked.start(*command, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    try:
        for process in started:
            process.join(200)
        assert [process.exitcode for process in started] == [code] * processes
    finally:
        for process in started:
            process.kill()


def same(one: Path, two: Path) -> None:
    """Equal samples, losses and weights, but for the order of sums."""
    first, second = small.trajectory(one), small.trajectory(two)
    assert [r[:2] for r in first] == [r[:2] for r in second]
    assert [r[2] for r in first] == pytest.approx([r[2] for r in second], rel=1e-5)
    assert [r[3] for r in first] == pytest.approx([r[3] for r in second], rel=1e-3)
    a, b = (load_file(folder / "trained.safetensors") for folder in (one, two))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        # AdamW's first steps have the size of the learning rate: where the gradient is near zero, rounding shows.
        torch.testing.assert_close(tensor, b[name], atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def alone(
    corpora: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, ...]], Path]:
    """Folders of runs of stages in one process, each made once."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def single(stage: str, muon: float) -> Path:
        out = folder / f"{stage} {muon}"
        small.run(out, corpora, STAGES[stage], replace(small.BUDGET, muon_lr_factor=muon))
        return out

    def of(options: tuple[str, ...]) -> Path:
        values = dict(pairwise(options))
        return single(values["--stage"], float(values.get("--muon", 0)))

    return of


BY_TWO = (
    ("--stage", "everything"),
    ("--stage", "apart"),
    ("--stage", "contrast", "--micro-tokens", "8"),
    ("--stage", "language", "--fsdp", "2"),
    ("--stage", "language", "--muon", "10", "--fsdp", "2"),
    ("--stage", "language", "--context-parallel", "2"),
    ("--stage", "everything", "--fsdp", "2"),
    ("--stage", "apart", "--fsdp", "2"),
    ("--stage", "contrast", "--fsdp", "2"),
    ("--stage", "everything", "--context-parallel", "2"),
    ("--stage", "apart", "--context-parallel", "2", "--micro-tokens", "30"),
)
EVALUATED = (
    ("--stage", "everything", "--patience", "1"),
    ("--stage", "language", "--patience", "1", "--fsdp", "2"),
    ("--stage", "language", "--patience", "1", "--context-parallel", "2"),
)
QUICK = (
    ("--stage", "everything"),
    ("--stage", "language", "--muon", "10", "--fsdp", "2"),
    ("--stage", "language", "--context-parallel", "2"),
    ("--stage", "apart", "--fsdp", "2"),
    ("--stage", "contrast", "--fsdp", "2"),
    ("--stage", "language", "--patience", "1", "--fsdp", "2"),
)


def with_marks(runs: tuple[tuple[str, ...], ...]) -> list[Any]:
    return few([(options,) for options in runs], lambda run: run[0] in QUICK)


@pytest.fixture(scope="module")
def by_two(
    corpora: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, ...]], Path]:
    """Folders of runs of two processes, which make the quick ones, or all others, and so import once."""
    folder = tmp_path_factory.mktemp("by_two")
    folders = {options: folder / str(i) for i, options in enumerate((*BY_TWO, *EVALUATED))}

    @cache
    def make(quick: bool) -> None:
        group = {o: out for o, out in folders.items() if (o in QUICK) == quick}
        (first, *options), *others = ((out, *options) for options, out in group.items())
        for out, *more in others:
            options += ["--then", str(out), str(corpora), *more]
        run_processes(first, corpora, *options)

    def of(options: tuple[str, ...]) -> Path:
        make(options in QUICK)
        return folders[options]

    return of


@pytest.mark.parametrize("options", with_marks(BY_TWO), ids=" ".join)
def test_two_processes_give_the_numbers_of_one(
    options: tuple[str, ...],
    alone: Callable[[tuple[str, ...]], Path],
    by_two: Callable[[tuple[str, ...]], Path],
) -> None:
    same(alone(options), by_two(options))


@pytest.mark.parametrize("options", with_marks(EVALUATED), ids=" ".join)
def test_two_processes_stop_where_one_does(
    options: tuple[str, ...],
    corpora: Path,
    by_two: Callable[[tuple[str, ...]], Path],
    tmp_path: Path,
) -> None:
    """They have the same evaluations, and export the weights of the same step."""
    stage = STAGES[options[1]]
    evaluation = EvalOptions(list(stage.data.weights), every=1, patience=1)
    small.run(tmp_path, corpora, stage, evaluation=evaluation)
    folders = tmp_path, by_two(options)
    same(*folders)
    one, two = (read_metrics(folder / EVALUATIONS) for folder in folders)
    assert [r["step"] for r in one] == [r["step"] for r in two]
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-4)
    one, two = (
        json.loads((folder / "manifest.json").read_text())["evaluation"] for folder in folders
    )
    assert one["exported_step"] == two["exported_step"]


@pytest.mark.long
@pytest.mark.parametrize("options", [("--fsdp", "2"), ("--fsdp", "2", "--context-parallel", "2")])
@pytest.mark.parametrize(
    "stage",
    [("--stage", "language"), ("--stage", "language", "--muon", "10"), ("--stage", "everything")],
    ids=" ".join,
)
def test_four_processes_give_the_numbers_of_one(
    stage: tuple[str, ...],
    options: tuple[str, ...],
    alone: Callable[[tuple[str, ...]], Path],
    corpora: Path,
    tmp_path: Path,
) -> None:
    run_processes(tmp_path, corpora, *stage, *options, processes=4)
    same(alone(stage), tmp_path)


@pytest.mark.long
def test_muon_on_shards_of_unequal_sizes(
    alone: Callable[[tuple[str, ...]], Path], corpora: Path, tmp_path: Path
) -> None:
    """Three processes have 27, 27 and 26 of 80 rows, and two matrices of a shape."""
    options = ("--stage", "language", "--muon", "10", "--fsdp", "3")
    run_processes(tmp_path, corpora, *options, processes=3)
    same(alone(options), tmp_path)


def test_apart_means_apart(corpora: Path) -> None:
    """In some step of the stage `apart` one process of two has no audio, and the other no image."""
    processor, model = small.make_processor(), small.make_model(small.make_processor())
    rows = trainer.row_maker(small.APART, small.BUDGET, model, processor)
    one, two = (
        Loader(
            small.APART.data.weights,
            corpora,
            rows,
            batch_tokens=200,
            seed=0,
            group=ReaderGroup(world=world),
        )
        for world in (1, 2)
    )
    modalities_by_step = []
    for step in one.steps(small.BUDGET.steps):
        kinds: tuple[set[str], set[str]] = (set(), set())
        for name, number in zip(step.ids, step.numbers, strict=True):
            kinds[two.source.numbers(number // 2).index(number)].add(name.split("/")[0])
        modalities_by_step.append(kinds)
    assert ({"pictures"}, {"sounds"}) in modalities_by_step or (
        {"sounds"},
        {"pictures"},
    ) in modalities_by_step


@pytest.mark.parametrize(
    ("before", "background"),
    [
        (2, ("--background",)),
        (1, ()),
        pytest.param(2, (), marks=pytest.mark.long),
        pytest.param(1, ("--background",), marks=pytest.mark.long),
    ],
)
def test_saved_by_some_processes_resumed_by_others(
    before: int,
    background: tuple[str, ...],
    alone: Callable[[tuple[str, ...]], Path],
    corpora: Path,
    tmp_path: Path,
) -> None:
    """Replicas or shards, on two processes or one: the rest of the run is the same."""
    options = ("--stage", "language", "--muon", "10", *background)
    resumed(options, before, alone, corpora, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("before", [1, 2])
def test_adapters_are_resumed_by_others(
    before: int, alone: Callable[[tuple[str, ...]], Path], corpora: Path, tmp_path: Path
) -> None:
    resumed(("--stage", "everything"), before, alone, corpora, tmp_path)


def resumed(
    options: tuple[str, ...],
    before: int,
    alone: Callable[[tuple[str, ...]], Path],
    corpora: Path,
    tmp_path: Path,
) -> None:
    """A run of `before` sharded processes or one, stopped after two losses, and continued by one or two."""
    stop, shard = ("--stop-after", "2"), ("--fsdp", "2")
    first, second = ((*stop, *shard), ()) if before == 2 else (stop, shard)
    out = tmp_path / "both"
    run_processes(out, corpora, *options, *first, processes=before, code=1)
    assert Checkpoints(out / "checkpoints").find().state["step"] == 2
    run_processes(out, corpora, *options, *second, processes=3 - before)
    same(alone(options), out)


def test_clipping_is_torchs() -> None:
    torch.manual_seed(0)
    grads = [torch.randn(3, 4), torch.randn(5)]
    ours, theirs = ([torch.nn.Parameter(torch.zeros_like(g)) for g in grads] for _ in range(2))
    for p, q, g in zip(ours, theirs, grads, strict=True):
        p.grad, q.grad = g * 10, g.clone()
    norm = clip_gradients([*ours, torch.nn.Parameter(torch.zeros(2))], 0.1, 1.0)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, 1.0))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_context_is_refused_where_rows_are_compared(corpora: Path, tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        stage = replace(small.LANGUAGE, data=Mix({"questions": 1}), objective=DPO())
        with pytest.raises(ValueError, match="objective DPO"):
            small.run(tmp_path, corpora, stage, context_parallel=2)
        with pytest.raises(ValueError, match="--context-parallel 2"):
            small.run(tmp_path, corpora, small.LANGUAGE, context_parallel=2)
        processor = small.make_processor()
        model = small.make_model(processor)
        context = parallel.Context(model, distributed.groups("cpu", 1))
        picture = Image(small._png(np.random.default_rng(0)))
        for row in (
            processor.row([Message.user("red blue green")]),
            processor.row([Message.user(picture, "red")]),
        ):
            torch.testing.assert_close(context(context.part(row)), model(row))
    finally:
        torch.distributed.destroy_process_group()
        distributed.groups.cache_clear()

"""A user's modality in training: frozen tensors stay, an interrupted run is the same, its folder is all that is new."""

import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import polyphi
from polyphi.checkpoints import modalities
from polyphi.checkpoints.read import load_checkpoint
from polyphi.data import user_data
from polyphi.data.packing import Capacity, RowSize
from polyphi.finetuning.run import finetune
from polyphi.prepared.prepare import prepare
from polyphi.runtime.progress import read_metrics
from polyphi.train.features import cached_features
from polyphi.train.loss import NextToken
from polyphi.train.options import FinetuneOptions, MachineOptions, TrainOptions
from polyphi.train.stage import Mix, Schedule, Stage
from polyphi.types.messages import Message
from polyphi.types.modality import load_modality
from polyphi.types.parts import Item
from polyphi.types.sampling import SamplingParams
from tests.core.train.small import Fails, make_model, make_processor, trajectory
from tests.fixtures import forked, published
from tests.fixtures.items import FILE, csv, motion, series
from tests.fixtures.processes import free_port

STAGE = Stage(
    name="walks",
    start={},
    trainable={"motion.*": 1e-2, "decoder.*.lora.motion.*": 1e-2},
    data=Mix({"walks": 1}),
    objective=NextToken(),
    schedule=Schedule(decay="constant"),
    context=200,
    batch_tokens=100,
    steps=3,
)


TWO_CORPORA = """
from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage
stage = Stage(
    name="both", start={}, trainable={"motion.*": 1e-2, "decoder.*.lora.motion.*": 1e-2},
    data=Mix({"walks": 1, "words": 1}, adapter={"words": "motion"}), objective=NextToken(),
    context=200, batch_tokens=100, steps=3,
)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in float32 and bfloat16, and rows with series."""
    folder = tmp_path_factory.mktemp("walks")
    published.write(folder / "original", "original", torch.float32)
    published.write(folder / "native", "native")
    published.write(folder / "mini", "mini", torch.float32)
    with (folder / "walks.jsonl").open("w") as file:
        for n in range(12):
            (folder / f"{n}.csv").write_bytes(csv(8 + n, n))
            row = {"motion": f"{n}.csv", "question": "what is it", "answer": "red"}
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(
        stage: Stage = STAGE, out: str = "run", model: Path | str = "native", **options: Any
    ) -> Path:
        finetune(
            stage,
            [str(source / "walks.jsonl")],
            tmp_path / out,
            checkpoint=source / model,
            options=TrainOptions(precision="fp32", **options),
            modalities=[load_modality(FILE)],
            report=lambda _: None,
        )
        return tmp_path / out

    return run


@pytest.mark.parametrize(
    ("model", "base"), [("native", None), ("original", "int8"), ("mini", None)]
)
def test_only_its_folder_is_new(
    model: str, base: str | None, run: Callable[..., Path], source: Path
) -> None:
    out = run(model=model, base=base)
    before, after = (load_checkpoint(p).state_dict() for p in (source / model, out / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    learned = load_file(out / "trained.safetensors")
    assert {n.partition(".")[0] for n in learned} == {"motion", "decoder"}
    assert all(n.startswith("motion.") or ".lora.motion." in n for n in learned)
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["frozen"]) >= len(before)
    assert all(one == two for one, two in manifest["frozen"].values())
    records = read_metrics(out / "metrics.jsonl")
    counters = manifest["counters"]
    # Each of the 12 series once, six of them twice: a step in time has six values, and they have 8 to 19 of them.
    assert counters["samples"] == 18
    assert counters["motion values"] == sum(record["motion values"] for record in records)
    once = 6 * sum(range(8, 20))
    assert (
        once + 6 * sum(range(8, 14)) <= counters["motion values"] <= once + 6 * sum(range(14, 20))
    )
    assert "loss motion" in records[0]
    phi = polyphi.load(out / "model", device="cpu", modalities=[FILE])
    stored = phi.model.state_dict()
    dtype = phi.model.decoder.dtype
    assert all(torch.equal(stored[name], t.to(dtype)) for name, t in learned.items())
    assert phi.generate([Message.user(series(), "a")], sampling=SamplingParams(max_tokens=2)).tokens


def test_an_interrupted_run_equals_one_that_was_never_stopped(run: Callable[..., Path]) -> None:
    straight = run()
    stops = Fails(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(replace(STAGE, objective=stops), out="half")
    half = run(out="half")
    assert len(trajectory(half)) == 3 and trajectory(half) == trajectory(straight)
    one, two = (load_file(f / "trained.safetensors") for f in (straight, half))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_recomputed_activations_give_the_same(run: Callable[..., Path]) -> None:
    straight = run()
    again = run(out="again", machine=MachineOptions(activations="recompute"))
    assert [r[:2] for r in trajectory(again)] == [r[:2] for r in trajectory(straight)]
    losses = ([r[2] for r in trajectory(out)] for out in (straight, again))
    assert next(losses) == pytest.approx(next(losses), rel=1e-5)


@pytest.mark.long
def test_worker_processes_read_the_same(run: Callable[..., Path]) -> None:
    straight = run()
    beside = run(out="workers", machine=MachineOptions(workers=2))
    assert trajectory(beside) == trajectory(straight)


@pytest.mark.long
def test_two_processes_give_the_numbers_of_one(source: Path, tmp_path: Path) -> None:
    """Also where a process has rows of text alone: it contributes zeros for the tower."""
    (source / "words.jsonl").write_text('{"question": "what is it", "answer": "blue"}\n' * 6)
    (tmp_path / "stage.py").write_text(TWO_CORPORA)
    data = [f"--data={n}={source / n}.jsonl" for n in ("walks", "words")]
    options = ["--model", str(source / "mini"), *data, "--precision", "fp32"]
    command = ["train", str(FILE), str(tmp_path / "stage.py"), *options, "--micro-tokens", "40"]
    code = "import sys; from polyphi.cli import main; main(sys.argv[1:])"
    for world in (1, 2):
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        started = [
            forked.start(
                *(code, *command, "--out", str(tmp_path / str(world))),
                environment={
                    **shared,
                    "WORLD_SIZE": f"{world}",
                    "RANK": f"{r}",
                    "LOCAL_RANK": f"{r}",
                },
            )
            for r in range(world)
        ]
        for process in started:
            process.join(200)
        assert [process.exitcode for process in started] == [0] * world
    one, two = (trajectory(tmp_path / str(world)) for world in (1, 2))
    assert [r[:2] for r in one] == [r[:2] for r in two]
    assert [r[2] for r in one] == pytest.approx([r[2] for r in two], rel=1e-5)


def test_a_second_stage_goes_on_from_the_first(run: Callable[..., Path]) -> None:
    first = run()
    stage = replace(STAGE, trainable={"decoder.*.lora.motion.*": 1e-2})
    again = run(stage, out="again", model=first / "model")
    one, two = (
        load_file(f / "model" / "motion-modality" / "model.safetensors") for f in (first, again)
    )
    assert all(torch.equal(one[n], two[n]) for n in one), "encoder and projector are frozen"


def test_features_of_its_frozen_encoder_are_cached(tmp_path: Path) -> None:
    processor = make_processor()
    model = make_model(processor)
    modalities.create(model, processor, motion(), motion().adapter, 0)
    prepare(model).requires_grad_(False)
    row = processor.row([Message.user(series(9), series(30, 1), "red")])
    calls: list[int] = []
    model.motion.encoder.register_forward_hook(
        lambda _, inputs, __: calls.append(len(inputs[0].layouts))
    )
    expected = model.encode("motion", row.inputs["motion"])
    with cached_features(model, tmp_path, "fp32"):
        for _ in range(2):
            cached = model.encode("motion", row.inputs["motion"])
            torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)
    assert calls == [2, 1, 1], "one by one, and once"


def test_its_size_limits_a_pack() -> None:
    processor = make_processor()
    model = make_model(processor)
    modalities.create(model, processor, motion(), motion().adapter, 0)
    rows = [[processor.row([Message.user(series(8, n), "red")])] for n in range(3)]
    sizes = [RowSize.of(row) for row in rows]
    assert sizes[0].inputs == {"motion": 48}
    assert len(Capacity(1000).groups(sizes)) == 1
    assert len(Capacity(1000, {"motion": 96}).groups(sizes)) == 2


def test_mistakes_in_rows_are_named(source: Path, tmp_path: Path) -> None:
    readers = {"motion": make_processor_with_motion().readers["motion"]}
    (tmp_path / "bad.csv").write_text("hello\n1\n")
    for row, says in (
        ({"motion": "none.csv", "answer": "a"}, "none.csv"),
        ({"motion": "bad.csv", "answer": "a"}, "expected the columns ax"),
        ({"motion": 3, "answer": "a"}, "expected a path or bytes as motion, found int"),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=says):
            user_data.build(tmp_path / "out", [str(tmp_path / "rows.jsonl")], readers=readers)
    message = {"role": "user", "content": [{"type": "motion", "motion": {"path": "bad.csv"}}]}
    talk = {"messages": [message, {"role": "assistant", "content": "a"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(talk) + "\n")
    with pytest.raises(ValueError, match=r"'motion' .*--modality"):
        user_data.build(tmp_path / "out", [str(tmp_path / "rows.jsonl")])
    with pytest.raises(ValueError, match=r"placeholder .*motion"):
        make_processor().row([Message.user(Item("motion", csv()), "a")])
    assert FinetuneOptions().steps is None and source.exists()


def make_processor_with_motion() -> Any:
    processor = make_processor()
    modalities.create(make_model(processor), processor, motion(), motion().adapter, 0)
    return processor


def test_one_command(source: Path, tmp_path: Path, run_command) -> None:
    stage = tmp_path / "stage.py"
    stage.write_text(
        "from polyphi.train.loss import NextToken\nfrom polyphi.train.stage import Mix, Stage\n"
        "stage = Stage(name='walks', start={}, trainable={'motion.*': 1e-2, 'decoder.*.lora.motion.*': 1e-2},\n"
        "  data=Mix({'walks': 1}), objective=NextToken(), context=200, batch_tokens=100, steps=2)\n"
    )
    own_options = ("--model", f"{source / 'native'}", "--data", f"{source / 'walks.jsonl'}")
    code, out, error = run_command(
        "train", f"{FILE}", f"{stage}", *own_options, "--out", f"{tmp_path / 'run'}"
    )
    assert code == 0, error
    assert "12 rows, image 0, audio 0, motion 12" in out
    printed = out.replace("motion=FILE", f"motion={source / '0.csv'}").replace(
        "QUESTION", "what is it"
    )
    command = shlex.split(
        next(x for x in printed.splitlines() if "use it: " in x).partition("use it: polyphi ")[2]
    )
    code, out, error = run_command(*command, "--max-tokens", "4")
    assert code == 0, error
    answer = ("--part", f"motion={source / '0.csv'}", "what is it", "--max-tokens", "4")
    code, _, error = run_command("chat", f"{tmp_path / 'run/model'}", *answer)
    assert code and "--modality FILE" in error
    code, _, error = run_command("train", f"{FILE}", *own_options)
    assert code and "found only modalities" in error
    code, _, error = run_command("chat", f"{tmp_path / 'run/model'}", "--part", "walk.csv")
    assert code and "expected --part NAME=PATH" in error

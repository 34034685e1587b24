"""The choice of precision: the rules, the measurement with a simulated clock, and the record of a run."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train.small import BUDGET, LANGUAGE, Fails, run, write_corpora

from polyphi.runtime import distributed, precision
from polyphi.runtime.precision import Choice, MatrixProducts
from polyphi.train import state

CPU = torch.device("cpu")
LINEAR = (MatrixProducts(64, 32, trainable=True),)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cached choice, no environment variable, no measurement unless a test simulates one."""
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setattr(precision, "seconds", lambda run: pytest.fail("measured"))
    for cached in (precision._measured, precision.slowness):
        cached.cache_clear()
    yield
    for cached in (precision._measured, precision.slowness):
        cached.cache_clear()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


def clock(monkeypatch: pytest.MonkeyPatch, *times: float) -> list[float]:
    """Simulates calls with these durations, repeated; returns the list of durations so far."""
    durations: list[float] = []

    def seconds(run: Callable[[], Any]) -> float:
        run()
        durations.append(times[len(durations) % len(times)])
        return durations[-1]

    monkeypatch.setattr(precision, "missing", lambda dtype: None)
    monkeypatch.setattr(precision, "seconds", seconds)
    return durations


def test_without_instructions_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert str(precision.choose("auto", CPU, LINEAR)) == (
        "fp32: this CPU has no bfloat16 instructions"
    )
    assert not precision.is_fast(torch.bfloat16, CPU, LINEAR)


def test_without_onednn_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    choice = precision.choose("auto", CPU, LINEAR)
    assert choice.precision == "fp32" and "oneDNN" in choice.reason


@pytest.mark.parametrize(
    ("times", "chosen", "ratio"), [((1.0, 2.0), "bf16", "0.50"), ((3.0, 2.0), "fp32", "1.50")]
)
def test_the_faster_one_is_chosen_once(
    monkeypatch: pytest.MonkeyPatch, times: tuple[float, float], chosen: str, ratio: str
) -> None:
    durations, threads = clock(monkeypatch, *times), torch.get_num_threads()
    choice = precision.choose("auto", CPU, LINEAR)
    assert choice.precision == chosen and ratio in choice.reason
    assert torch.get_num_threads() == threads
    count = len(durations)
    assert precision.choose("auto", CPU, LINEAR) is choice and len(durations) == count


def test_the_least_times_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of (bf16, fp32): disturbed ones, on either side, don't count."""
    clock(monkeypatch, 90, 2, 6, 50, 7, 3)
    assert precision.relative_time(precision._training, LINEAR, 2) == 3.0


def test_each_shape_counts_by_its_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger shape, of which there are nine, is twice as fast in bf16; the other one twice as slow."""
    several = (MatrixProducts(64, 64, True, count=9), MatrixProducts(64, 32, False))
    clock(monkeypatch, 1, 2, 2, 1)
    assert precision.relative_time(precision._training, several, 2) == (9 * 1 + 2) / (9 * 2 + 1)


def test_inference_keeps_16_bits_up_to_a_slowdown(monkeypatch: pytest.MonkeyPatch) -> None:
    for times, fast in (((1.4, 1.0), True), ((1.6, 1.0), False)):
        precision.slowness.cache_clear()
        clock(monkeypatch, *times)
        assert precision.is_fast(torch.bfloat16, CPU, LINEAR) is fast


def test_products_are_counted_by_shape() -> None:
    weights = [
        *[((32, 64), True)] * 3,
        ((32, 64), False),
        ((8, 4, 1), True),  # a convolution of width 1
        ((8, 3, 14, 14), True),  # patches
        ((8,), True),
        ((8, 1, 3), True),  # depthwise
        ((8, 1, 3, 3), True),
        ((8, 8, 1, 1), True),  # pointwise over an image: float32 either way
    ]
    assert precision.products(weights) == (
        MatrixProducts(64, 32, True, 3),
        MatrixProducts(588, 8, True),
        MatrixProducts(64, 32, False),
        MatrixProducts(4, 8, True),
    )


def test_training_times_what_training_computes() -> None:
    """The bf16 side multiplies in bfloat16 and leaves float32 gradients; a frozen weight gets none."""
    dtypes = []

    class Records(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                dtypes.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    for trainable, count in ((True, 3), (False, 2)):
        for run_side, dtype in zip(
            precision._training(MatrixProducts(8, 4, trainable), 2),
            (torch.bfloat16, torch.float32),
            strict=True,
        ):
            dtypes.clear()
            with Records():
                run_side()
            assert dtypes == [dtype] * count


@pytest.mark.parametrize("has", [True, False])
def test_the_precision_of_a_gpu_depends_on_its_hardware(
    monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    choice = precision.choose("auto", torch.device("cuda"), LINEAR)
    assert choice.precision == ("bf16" if has else "fp32") and "GPU" in choice.reason


def test_explicit_before_environment_before_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(precision.VARIABLE, "bf16")
    assert precision.choose("auto", CPU, LINEAR) == Choice("bf16", "set by POLYPHI_PRECISION")
    assert precision.choose("fp32", CPU, LINEAR).precision == "fp32"
    monkeypatch.setenv(precision.VARIABLE, "fp8")
    with pytest.raises(ValueError, match=r"POLYPHI_PRECISION must be bf16, fp32 or auto.*'fp8'"):
        precision.choose("auto", CPU, LINEAR)
    with pytest.raises(ValueError, match="'half'"):
        precision.choose("half", CPU, LINEAR)


# ------------------------------------------------------------------ a stage


def manifest(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


def test_a_stage_records_its_precision_and_keeps_it(
    tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "missing", lambda dtype: "this CPU is old")
    lines: list[Any] = []
    run(tmp_path, corpora, LANGUAGE, BUDGET, precision="auto", report=lines.append)
    assert manifest(tmp_path)["precision"] == "fp32"
    assert manifest(tmp_path)[state.REASON] == "this CPU is old"
    assert any("fp32: this CPU is old" in str(line) for line in lines)
    assert state.recorded_precision(tmp_path) == Choice("fp32", "this CPU is old")

    monkeypatch.setenv(precision.VARIABLE, "bf16")  # decides for new runs only
    run(tmp_path, corpora, LANGUAGE, BUDGET, precision="auto")
    with pytest.raises(ValueError, match="precision 'fp32', now it is 'bf16'"):
        run(tmp_path, corpora, LANGUAGE, BUDGET, precision="bf16")


def test_a_stopped_stage_resumes_in_its_precision(
    tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(precision.VARIABLE, "bf16")
    stops = replace(LANGUAGE, objective=Fails(3))
    with pytest.raises(RuntimeError, match="bad luck"):
        run(tmp_path, corpora, stops, precision="auto", checkpoint_seconds=0.0)
    monkeypatch.setenv(precision.VARIABLE, "fp32")
    with pytest.raises(ValueError, match="precision 'bf16', now it is 'fp32'"):
        run(tmp_path, corpora, LANGUAGE, precision="fp32")
    run(tmp_path, corpora, LANGUAGE, precision="auto")
    assert manifest(tmp_path)["precision"] == "bf16"
    assert manifest(tmp_path)[state.REASON] == "set by POLYPHI_PRECISION"


def test_the_first_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Choice("bf16", "by the first process")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "all_gather", lambda value: [first, value])
    chosen = state.choose_precision("auto", tmp_path, CPU, lambda: pytest.fail("measured"))
    assert chosen is first

"""The choice of precision: its rules, and the record of a run."""

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyphi.devices import precision
from polyphi.devices.precision import Choice, MatrixProducts
from polyphi.runtime import distributed
from polyphi.train import state
from tests.core.train.small import BUDGET, LANGUAGE, Fails, run, write_corpora

CPU = torch.device("cpu")
LINEAR = (MatrixProducts(64, 32, trainable=True),)
LARGE = (MatrixProducts(512, 512, trainable=True),)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment variable."""
    monkeypatch.delenv(precision.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with bfloat16 products, whatever this one has."""
    monkeypatch.setattr(precision, "missing", lambda dtype: None)
    monkeypatch.setattr(precision, "_is_emulated", lambda: False)


def test_a_cpu_without_instructions_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert str(precision.choose("auto", CPU, LINEAR)) == (
        "fp32: this CPU has no bfloat16 instructions"
    )
    assert not precision.is_fast(torch.bfloat16, CPU)


def test_torch_without_onednn_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    choice = precision.choose("auto", CPU, LINEAR)
    assert choice.precision == "fp32" and "oneDNN" in choice.reason


@pytest.mark.parametrize(
    ("width", "rows", "chosen"),
    [
        (512, 256, "bf16"),
        (64, 256, "bf16"),
        (48, 8192, "fp32"),
        (256, 16, "bf16"),
        (256, 8, "fp32"),
    ],
)
def test_large_products_run_in_bfloat16(
    instructions: None, width: int, rows: int, chosen: str
) -> None:
    products = (MatrixProducts(width, width, trainable=True),)
    assert precision.choose("auto", CPU, products, rows).precision == chosen


def test_each_shape_counts_by_its_flops(instructions: None) -> None:
    large, small = MatrixProducts(256, 256, True), MatrixProducts(32, 32, True, count=63)
    assert precision.faster((large, small)).precision == "bf16"
    assert precision.faster((large, replace(small, count=65))).precision == "fp32"


def test_other_work_on_the_machine_does_not_change_the_choice(
    instructions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock may go as it likes: each call takes longer than the one before, or less."""
    for step in (1e3, -1e3):
        times = itertools.count(1e9, step)
        monkeypatch.setattr(time, "perf_counter", times.__next__)
        assert precision.choose("auto", CPU, LARGE, 256).precision == "bf16"
        assert precision.is_fast(torch.bfloat16, CPU)


def test_a_cpu_that_converts_bfloat16_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stored in 16 bits stay: half of the memory."""
    monkeypatch.setattr(precision, "missing", lambda dtype: None)
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert precision.faster(LARGE).precision == "bf16"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert precision.faster(LARGE).precision == "fp32"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert precision.faster(LARGE).precision == "fp32"
    assert precision.is_fast(torch.bfloat16, CPU)


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


@pytest.mark.parametrize("has", [True, False])
def test_the_precision_of_a_gpu_depends_on_its_hardware(
    monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    choice = precision.choose("auto", torch.device("cuda"), LINEAR)
    assert choice.precision == ("bf16" if has else "fp32") and "GPU" in choice.reason


def test_explicit_before_environment_before_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(precision.VARIABLE, "bf16")
    assert precision.choose("auto", CPU, LINEAR) == Choice("bf16", "set by POLYPHI_PRECISION")
    assert precision.choose("fp32", CPU, LINEAR).precision == "fp32"
    monkeypatch.setenv(precision.VARIABLE, "fp8")
    with pytest.raises(ValueError, match=r"POLYPHI_PRECISION .*'fp8'"):
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
    with pytest.raises(ValueError, match=r"precision 'fp32', .*'bf16'"):
        run(tmp_path, corpora, LANGUAGE, BUDGET, precision="bf16")


def test_a_stopped_stage_resumes_in_its_precision(
    tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(precision.VARIABLE, "bf16")
    stops = replace(LANGUAGE, objective=Fails(3))
    with pytest.raises(RuntimeError, match="bad luck"):
        run(tmp_path, corpora, stops, precision="auto", checkpoint_seconds=0.0)
    monkeypatch.setenv(precision.VARIABLE, "fp32")
    with pytest.raises(ValueError, match=r"precision 'bf16', .*'fp32'"):
        run(tmp_path, corpora, LANGUAGE, precision="fp32")
    run(tmp_path, corpora, LANGUAGE, precision="auto")
    assert manifest(tmp_path)["precision"] == "bf16"
    assert manifest(tmp_path)[state.REASON] == "set by POLYPHI_PRECISION"


def test_the_first_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Choice("bf16", "by the first process")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "all_gather", lambda value: [first, value])
    chosen = state.choose_precision("auto", tmp_path, CPU, lambda: pytest.fail("chosen"))
    assert chosen is first

"""States of CPU, threads, memory and GPU under simulated conditions."""

from typing import Any

import pytest

from polyphi.doctor import hardware, software
from polyphi.doctor.findings import FindingResult
from polyphi.doctor.hardware import ISA_VARIABLES, CpuCounts

GB = 10**9
KERNELS = {"missing": None, "path": "AVX2", "bf16": "oneDNN", "encoders_int8": "oneDNN"}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ISA_VARIABLES, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("instructions", "name"),
    [
        ({"avx2", "avx512_vnni", "avx512_bf16", "amx_tile"}, "AMX"),
        ({"avx2", "avx512_vnni", "avx512_bf16"}, "AVX-512 BF16"),
        ({"avx2", "avx512_vnni"}, "AVX-512 VNNI"),
        ({"avx2", "avx_vnni"}, "AVX-VNNI"),
        ({"avx2", "fma3"}, "AVX2"),
        ({"neon", "dot", "i8mm"}, "NEON i8mm"),
        ({"asimd", "asimddp"}, "NEON dotprod"),
        ({"sse2"}, "none of the classes"),
    ],
)
def test_classes(instructions: set[str], name: str) -> None:
    assert hardware.cpu_class(instructions) == name


def test_missing_kernels_are_slow() -> None:
    ((_, result),) = software.kernel_results(KERNELS | {"missing": "they weren't built"})
    assert isinstance(result, FindingResult) and result.state == "slow"
    assert result.cure == software.kernel_cure("they weren't built")
    ((_, result),) = software.kernel_results(KERNELS)
    assert isinstance(result, str)


def test_variables_that_limit_the_cpu_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHI_MAX_CPU_ISA", "AVX2")
    result = dict(hardware.processor_results({"avx2", "avx512_vnni"}))["class"]
    assert isinstance(result, FindingResult) and result.state == "slow"
    assert dict(hardware.processor_results([])).keys() == {"processor"}


@pytest.mark.parametrize(
    ("numbers", "variable", "cure"),
    [
        (CpuCounts(32, 16, 32, None, 16), None, None),
        (CpuCounts(32, 16, 32, None, 32), "32", None),
        (CpuCounts(32, 16, 32, None, 1), "1", "unset OMP_NUM_THREADS"),
        (CpuCounts(32, 16, 32, 2.0, 16), None, "export OMP_NUM_THREADS=2"),
        (CpuCounts(32, 16, 4, None, 16), "16", "export OMP_NUM_THREADS=4"),
        (CpuCounts(32, 16, 4, None, 4), None, None),
        (CpuCounts(2, 2, 2, 0.5, 1), None, None),
        (CpuCounts(8, 4, 8, None, 2), None, "export OMP_NUM_THREADS=4"),
    ],
)
def test_threads(
    numbers: CpuCounts, variable: str | None, cure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    result = dict(hardware.thread_results(numbers))["threads"]
    if cure is None:
        assert isinstance(result, str)
    else:
        assert isinstance(result, FindingResult) and (result.state, result.cure) == ("slow", cure)


def test_without_torch_only_cores_are_reported() -> None:
    assert dict(hardware.thread_results(CpuCounts(2, 2, 2, None, None))).keys() == {"cores"}


def test_rates_measured_beside_other_work_are_marked() -> None:
    rates = {"memory": 2e10, "products": {"fp32": 1e11}, "decoding": {"int4": 1e10}}
    result = dict(hardware.rate_results({**rates, "cpu_share": 0.3}))["other work"]
    assert isinstance(result, FindingResult) and result.state == "slow"
    results = dict(hardware.rate_results({**rates, "cpu_share": 0.95}))
    assert results.keys() == {"memory", "decoding", "products"}


def fit(quant: str | None, context: int, **more: Any) -> dict[str, Any]:
    values = {"model": "o/mini-instruct", "device": "cpu", "weights": 4 * GB, "free": 3 * GB}
    return {**values, "quant": quant, "context": context, "token_bytes": 131072, **more}


MACHINE = {
    "total": 16 * GB,
    "available": 3 * GB,
    "swap_total": 0,
    "swap_used": 0,
    "limit": None,
    "limit_free": None,
}


def test_a_model_fits_with_enough_context() -> None:
    rows = [fit(None, 0), fit("int4", 2048), fit(None, 4096, device="cuda:0")]
    assert [*hardware.fit_results(rows, MACHINE, on_cpu=True)] == [("mini", "fits: int4")]
    assert [*hardware.fit_results(rows, MACHINE, on_cpu=False)] == [("mini", "fits: unquantized")]


@pytest.mark.parametrize(
    ("machine", "device", "word"),
    [
        (MACHINE, "cpu", "close"),
        (MACHINE | {"total": 4 * GB}, "cpu", "use a machine"),
        (MACHINE | {"limit": 3 * GB, "limit_free": 2 * GB}, "cpu", "docker run --memory 5g"),
        (MACHINE, "cuda:0", "nvidia-smi"),
    ],
)
def test_little_memory_has_a_cure(machine: dict[str, Any], device: str, word: str) -> None:
    rows = [fit(None, 0, weights=8 * GB, device=device), fit("int4", 2047, device=device)]
    ((_, result),) = hardware.fit_results(rows, machine, on_cpu=device == "cpu")
    assert isinstance(result, FindingResult) and result.state == "missing" and not result.fatal
    assert result.cure is not None and word in result.cure


def test_a_containers_limit_is_shown() -> None:
    limits = {"limit": 3 * GB, "limit_free": 2 * GB}
    assert "2.0 GB" in str(dict(hardware.memory_results(MACHINE | limits))["limit"])
    assert dict(hardware.memory_results(MACHINE)).keys() == {"machine"}


@pytest.mark.parametrize(
    ("hidden", "build", "word"),
    [
        (None, None, "pytorch.org"),
        ("-1", "13.0", "unset CUDA_VISIBLE_DEVICES"),
        (None, "13.0", "driver"),
    ],
)
def test_a_gpu_that_torch_cannot_use(
    hidden: str | None, build: str | None, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_nvidia", lambda: True)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    ((_, result),) = hardware.gpu_results([], build)
    assert isinstance(result, FindingResult) and result.state == "slow"
    assert result.cure is not None and word in result.cure


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"device": "cuda:0", "name": "H100", "free": 70 * GB, "total": 80 * GB}
    ((name, result),) = hardware.gpu_results([gpu], "13.0")
    assert name == "cuda:0" and "70.0 GB free of 80.0 GB" in str(result)
    monkeypatch.setattr(hardware, "has_nvidia", lambda: False)
    ((_, result),) = hardware.gpu_results([], None)
    assert isinstance(result, str)

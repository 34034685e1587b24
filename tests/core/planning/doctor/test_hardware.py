"""States of CPU, threads, memory and GPU under simulated conditions."""

from typing import Any

import pytest

from polyphi.planning.doctor import hardware
from polyphi.planning.doctor.findings import Finding
from polyphi.planning.doctor.hardware import ISA_VARIABLES, CpuCounts

GB = 10**9
KERNELS = {"missing": None, "path": "AVX2", "bf16": "oneDNN", "encoders_int8": "oneDNN"}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ISA_VARIABLES, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


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
    kernels = KERNELS | {"missing": "they weren't built"}
    finding = by_name(hardware.cpu_findings({"avx2"}, kernels, "install them"))["kernels"]
    assert (finding.state, finding.cure) == ("slow", "install them")
    assert by_name(hardware.cpu_findings({"avx2"}, KERNELS, ""))["kernels"].state == "ok"
    assert "kernels" not in by_name(hardware.cpu_findings({"avx2"}, None, ""))


def test_variables_that_limit_the_cpu_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHI_MAX_CPU_ISA", "AVX2")
    finding = by_name(hardware.cpu_findings({"avx2", "avx512_vnni"}, KERNELS, ""))["class"]
    assert finding.state == "slow"


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
    finding = by_name(hardware.thread_findings(numbers))["threads"]
    assert (finding.state, finding.cure) == ("slow" if cure else "ok", cure)


def test_without_torch_only_cores_are_reported() -> None:
    assert [f.name for f in hardware.thread_findings(CpuCounts(2, 2, 2, None, None))] == ["cores"]


@pytest.mark.parametrize(("share", "state"), [(0.95, "ok"), (0.3, "slow")])
def test_rates_measured_beside_other_work_are_marked(share: float, state: str) -> None:
    rates = {
        "memory": 2e10,
        "products": {"fp32": 1e11},
        "decoding": {"int4": 1e10},
        "cpu_share": share,
    }
    assert {f.state for f in hardware.rate_findings(rates)} == {"ok", state}


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
    (finding,) = hardware.fit_findings([fit(None, 0), fit("int4", 2048)], MACHINE)
    assert finding.state == "ok" and "int4" in finding.text and "unquantized" not in finding.text


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
    (finding,) = hardware.fit_findings(rows, machine)
    assert finding.state == "missing" and not finding.fatal
    assert finding.cure is not None and word in finding.cure


def test_a_containers_limit_is_shown() -> None:
    limits = {"limit": 3 * GB, "limit_free": 2 * GB}
    assert "2.0 GB" in by_name(hardware.memory_findings(MACHINE | limits))["limit"].text
    assert "limit" not in by_name(hardware.memory_findings(MACHINE))


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
    (finding,) = hardware.gpu_findings([], build)
    assert finding.state == "slow" and finding.cure is not None and word in finding.cure


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"device": "cuda:0", "name": "H100", "free": 70 * GB, "total": 80 * GB}
    (finding,) = hardware.gpu_findings([gpu], "13.0")
    assert finding.state == "ok" and "70.0 GB free of 80.0 GB" in finding.text
    monkeypatch.setattr(hardware, "has_nvidia", lambda: False)
    assert hardware.gpu_findings([], None)[0].state == "ok"

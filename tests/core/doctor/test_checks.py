"""Findings under simulated conditions."""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from polyphi.doctor import checks
from polyphi.doctor.findings import Finding

GB = 10**9
KERNELS = {"missing": None, "path": "AVX2", "bf16": "oneDNN", "encoders_int8": "oneDNN"}


def named(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in checks.variables():
        monkeypatch.delenv(name)


# ------------------------------------------------------------------------------ CPU


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
    assert checks.cpu_facts(instructions, None)["class"] == name


def test_without_instructions_there_is_no_class() -> None:
    assert named(checks.processor(checks.cpu_facts([], None))).keys() == {"processor"}


@pytest.mark.parametrize(
    ("missing", "word"),
    [
        ("they weren't built", "pip install"),
        ("this CPU has neither AVX2 nor NEON's dot products", "CPU type"),
    ],
)
def test_missing_kernels_are_slow(missing: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = checks.kernels(KERNELS | {"missing": missing})
    assert result.state == "slow" and result.cure is not None and word in result.cure
    monkeypatch.setenv("POLYPHI_MAX_CPU_ISA", "SCALAR")
    assert checks.kernels(KERNELS | {"missing": missing}).cure == "unset POLYPHI_MAX_CPU_ISA"
    assert checks.kernels(KERNELS).state == "ok"


def counts(
    logical: int, cores: int, usable: int, quota: float | None, threads: int | None
) -> dict[str, Any]:
    names = ("logical", "cores", "usable", "quota", "threads")
    return dict(zip(names, (logical, cores, usable, quota, threads), strict=True))


@pytest.mark.parametrize(
    ("numbers", "variable", "cure"),
    [
        (counts(32, 16, 32, None, 16), None, None),
        (counts(32, 16, 32, None, 32), "32", None),
        (counts(32, 16, 32, None, 1), "1", "unset OMP_NUM_THREADS"),
        (counts(32, 16, 32, 2.0, 16), None, "export OMP_NUM_THREADS=2"),
        (counts(32, 16, 4, None, 16), "16", "export OMP_NUM_THREADS=4"),
        (counts(32, 16, 4, None, 4), None, None),
        (counts(2, 2, 2, 0.5, 1), None, None),
        (counts(8, 4, 8, None, 2), None, "export OMP_NUM_THREADS=4"),
    ],
)
def test_threads(
    numbers: dict[str, Any],
    variable: str | None,
    cure: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    result = named(checks.threads(numbers))["threads"]
    assert (result.state, result.cure) == ("slow" if cure else "ok", cure)


def test_without_torch_only_cores_are_reported() -> None:
    assert named(checks.threads(counts(2, 2, 2, None, None))).keys() == {"cores"}


# ------------------------------------------------------------------------------ memory and GPUs


def fit(quant: str | None, context: int, **more: Any) -> dict[str, Any]:
    values = {"model": "o/mini-instruct", "device": "cpu", "weights": 4 * GB, "free": 3 * GB}
    return {**values, "quant": quant, "context": context, "token_bytes": 131072, **more}


MACHINE = {
    "total": 16 * GB,
    "available": 3 * GB,
    "limit": None,
    "limit_free": None,
}


def test_a_model_fits_with_enough_context() -> None:
    rows = [fit(None, 0), fit("int4", 2048), fit(None, 4096, device="cuda:0")]
    texts = [finding.text for finding in checks.models(rows, MACHINE)]
    assert texts == ["fits on cpu: int4", "fits on cuda:0: unquantized"]


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
    (result,) = checks.models(rows, machine)
    assert result.state == "missing" and not result.fatal
    assert result.cure is not None and word in result.cure


def test_a_containers_limit_is_shown() -> None:
    limits = {"limit": 3 * GB, "limit_free": 2 * GB}
    assert "2.0 GB" in named(checks.memory(MACHINE | limits))["limit"].text
    assert named(checks.memory(MACHINE)).keys() == {"machine"}


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
    monkeypatch.setattr(checks, "has_nvidia", lambda: True)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (result,) = checks.gpus([], build)
    assert result.state == "slow" and result.cure is not None and word in result.cure


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"device": "cuda:0", "name": "H100", "free": 70 * GB, "total": 80 * GB}
    (result,) = checks.gpus([gpu], "13.0")
    assert result.name == "cuda:0" and "70.0 GB free of 80.0 GB" in result.text
    monkeypatch.setattr(checks, "has_nvidia", lambda: False)
    (result,) = checks.gpus([], None)
    assert result.state == "ok"


# ------------------------------------------------------------------------------ software


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        ("No module named 'torch'", "pip install --force-reinstall"),
        ("killed by SIGILL", "CPU type to host"),
    ],
)
def test_torch_that_fails(error: str, cure: str) -> None:
    """polyphi then fails for the same reason, which isn't repeated."""
    results = named(checks.packages({}, {"torch": error, "polyphi.api": error}, []))
    assert results.keys() == {"versions", "torch"}
    result = results["torch"]
    assert result.fatal and error in result.text
    assert result.cure is not None and cure in result.cure


def test_requirements_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["torch>=2.11", "rich>=999", "absent", 'unused>=1; extra == "serve"']
    monkeypatch.setattr(checks.metadata, "requires", lambda _: requirements)
    unmet = checks.unmet_requirements()
    assert unmet == ["rich>=999", "absent"]
    result = named(checks.packages({}, {}, unmet))["dependencies"]
    assert result.fatal and result.cure == 'pip install --upgrade "rich>=999" "absent"'


def test_versions_are_those_of_installed_packages() -> None:
    assert checks.versions()["torch"] == metadata.version("torch")


# ------------------------------------------------------------------------------ storage and environment


def test_a_cache_that_does_not_exist_yet_can_be_written(tmp_path: Path) -> None:
    facts = checks.cache_facts("polyphi", tmp_path / "absent" / "polyphi")
    assert facts["writable"] and facts["free"] > 0


@pytest.mark.parametrize(
    ("name", "free", "writable", "state"),
    [
        ("Hub", 9 * GB, True, "ok"),
        ("Hub", 7 * GB, True, "missing"),
        ("polyphi", 7 * GB, True, "ok"),
        ("polyphi", 9 * GB, False, "wrong"),
    ],
)
def test_states_of_caches(name: str, free: int, writable: bool, state: str) -> None:
    folder = {"name": name, "path": "/x", "free": free, "writable": writable}
    (result,) = checks.caches([folder], [{"model": "microsoft/mini", "parameters": 4 * GB}])
    assert result.state == state and not result.fatal


def test_a_downloaded_model_needs_no_space(tmp_path: Path) -> None:
    folder = {"name": "Hub", "path": str(tmp_path), "free": GB, "writable": True}
    fits = [{"model": "microsoft/mini", "parameters": 4 * GB}]
    snapshot = tmp_path / "models--microsoft--mini" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    states = [next(checks.caches([folder], fits)).state]
    (snapshot / "model.safetensors").touch()
    states.append(next(checks.caches([folder], fits)).state)
    assert states == ["missing", "ok"]


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "HF_TOKEN": "hf_abcdefgh",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "POLYPHI_API_KEY": "secret",
        "POLYPHI_PRECISION": "half",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    errors = {"precision": "POLYPHI_PRECISION must be bf16, fp32 or auto, found 'half'"}
    results = named(checks.environment(checks.variables(), errors))
    assert {name: finding.state for name, finding in results.items()} == {
        "HF_TOKEN": "ok",
        "ONEDNN_MAX_CPU_ISA": "slow",
        "POLYPHI_API_KEY": "ok",
        "POLYPHI_PRECISION": "wrong",
    }
    assert results["POLYPHI_PRECISION"].fatal
    assert not [f for f in results.values() if "secret" in f.text or "abcdefgh" in f.text]

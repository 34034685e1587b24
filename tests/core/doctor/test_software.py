"""Packages, extras, programs and variables under simulated conditions."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from polyphi.doctor import software
from polyphi.doctor.findings import FindingResult
from polyphi.doctor.software import Dependencies
from polyphi.hub.cache import StoredModel
from polyphi.runtime.installation import pip_install

REQUIREMENTS = [
    "torch>=2.11",
    "rich>=999",
    'absent>=1; extra == "serve"',
    'torch>=1; extra == "video"',
    'pkg[serve,video]; extra == "all"',
]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package with unmet requirements."""
    folder = tmp_path / "pkg-1.0.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: pkg", "Version: 1.0"]
    lines += [f"Provides-Extra: {extra}" for extra in ("serve", "video", "all")]
    lines += [f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "pkg"


def test_unmet_requirements(package: str) -> None:
    unmet = software.dependencies(package)
    assert unmet is not None
    assert unmet.core == ("rich>=999",)
    assert unmet.extras == {"serve": ("absent>=1",), "video": (), "all": ("absent>=1",)}
    assert software.dependencies("no-such-package") is None


def test_extras(package: str) -> None:
    unmet = software.dependencies(package)
    assert unmet is not None
    (first, (name, missing)) = software.extra_results(unmet)
    assert first == ("extras", "video") and name == "more extras"
    assert isinstance(missing, FindingResult) and missing.text.startswith("serve (")
    assert missing.cure == f"{pip_install('serve')}, or only those that you need"
    assert not list(software.extra_results(Dependencies((), {})))


def test_too_old_a_package_is_fatal(package: str) -> None:
    result = dict(software.package_results({}, software.dependencies(package)))["dependencies"]
    assert isinstance(result, FindingResult) and result.fatal
    assert result.cure == 'pip install --upgrade "rich>=999"'


@pytest.mark.parametrize(
    ("error", "version", "cure"),
    [
        ("No module named 'torch'", None, "pip install torch"),
        ("libgomp.so.1: cannot open", "2.13", "pip install --force-reinstall"),
        ("killed by SIGILL", "2.13", "CPU type to host"),
    ],
)
def test_torch_that_fails(
    error: str, version: str | None, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """polyphi then fails for the same reason, which isn't repeated."""
    monkeypatch.setattr(software, "version_of", lambda package: version)
    errors = {"torch": error, "polyphi.api": error}
    results = dict(software.package_results(errors, Dependencies((), {})))
    assert results.keys() == {"system", "versions", "torch"}
    result = results["torch"]
    assert isinstance(result, FindingResult) and result.fatal and error in result.text
    assert result.cure is not None and cure in result.cure


def test_without_installation_dependencies_are_unknown() -> None:
    result = dict(software.package_results({}, None))["polyphi"]
    assert isinstance(result, FindingResult) and result.state == "missing" and not result.fatal


@pytest.mark.parametrize(
    ("missing", "word"),
    [
        ("they weren't built", "pip install"),
        ("this CPU has neither AVX2 nor NEON's dot products", "CPU type"),
    ],
)
def test_cures_of_kernels(missing: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYPHI_MAX_CPU_ISA", raising=False)
    assert word in software.kernel_cure(missing)
    monkeypatch.setenv("POLYPHI_MAX_CPU_ISA", "SCALAR")
    assert software.kernel_cure(missing) == "unset POLYPHI_MAX_CPU_ISA"


def test_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is named only if the kernels are missing."""
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/dnf" if name == "dnf" else None)
    results = dict(software.program_results())
    assert results.keys() == {"espeak-ng", "flite"}
    flite = results["flite"]
    assert isinstance(flite, FindingResult) and flite.cure is not None
    assert flite.cure.removeprefix("sudo ") == "dnf install -y flite"
    assert not list(software.compiler_results({"missing": None}))
    assert list(software.compiler_results({"missing": "they weren't built"}))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "package manager" in software.install("flite")


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in software.environment():
        monkeypatch.delenv(name)
    values = {
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_abcdefgh",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "POLYPHI_API_KEY": "secret",
        "POLYPHI_PRECISION": "half",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    errors = {"precision": "POLYPHI_PRECISION must be bf16, fp32 or auto, found 'half'"}
    results = dict(software.environment_results([], errors))
    states = {n: "ok" if isinstance(r, str) else r.state for n, r in results.items()}
    assert states == {
        "HF_HUB_OFFLINE": "missing",
        "HF_TOKEN": "ok",
        "ONEDNN_MAX_CPU_ISA": "slow",
        "POLYPHI_API_KEY": "ok",
        "POLYPHI_PRECISION": "wrong",
    }
    precision = results["POLYPHI_PRECISION"]
    assert isinstance(precision, FindingResult) and precision.fatal
    assert not [r for r in results.values() if "secret" in str(r) or "abcdefgh" in str(r)]
    model = StoredModel("a/model", "0" * 40, None, Path("/a"), 9, 0.0, None, name="a/model")
    stored = dict(software.environment_results([model], {}))
    assert isinstance(stored["HF_HUB_OFFLINE"], str) and isinstance(
        stored["POLYPHI_PRECISION"], str
    )


def test_versions_are_those_of_installed_packages() -> None:
    assert software.versions()["torch"] == metadata.version("torch")

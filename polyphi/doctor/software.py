"""Python packages, extras, programs and environment variables."""

import os
import platform
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from polyphi.doctor import probe
from polyphi.doctor.findings import FindingResult, NamedResult, display_value
from polyphi.doctor.hardware import ISA_VARIABLES
from polyphi.hub.cache import StoredModel
from polyphi.runtime.installation import is_checkout, pip_install

VERSIONS = ("polyphi", *probe.PACKAGES[:4], "transformers", "numpy", "pillow", "soundfile")
"""Packages whose versions are shown where they are installed."""
PURPOSES: Mapping[str, str] = {
    "serve": "the server",
    "train": "training",
    "curate": "building corpora",
    "eval": "evaluation",
    "video": "video files",
    "gguf": "GGUF files",
    "structured": "JSON schemas and tools",
    "ray": "several machines",
    "s3": "data on S3",
    "notebook": "notebooks",
}
HIDDEN = frozenset({"dev", "docs", "all"})
"""Extras of developers, and the sum of the others."""
PROGRAMS: Mapping[str, str] = {
    "espeak-ng": "synthesized speech (make nano)",
    "flite": "synthesized speech (make nano)",
}
COMPILERS = ("c++", "g++", "clang++")
MANAGERS = (
    ("apt-get", "apt-get install -y"),
    ("dnf", "dnf install -y"),
    ("pacman", "pacman -S"),
    ("apk", "apk add"),
    ("brew", "brew install"),
)
"""Package managers and their commands."""
VARIABLES: Mapping[str, str] = {
    "OMP_NUM_THREADS": "threads of torch",
    "MKL_NUM_THREADS": "threads of MKL",
    "OMP_PROC_BIND": "binds threads to CPUs",
    "GOMP_CPU_AFFINITY": "binds threads to CPUs",
    "KMP_AFFINITY": "binds threads to CPUs",
    "LD_PRELOAD": "replaces libraries, such as the allocator",
    **dict.fromkeys(ISA_VARIABLES, "limits the CPU's instructions"),
    "POLYPHI_PRECISION": "dtype on the CPU and of training",
    "POLYPHI_CACHE": "folder of our cache",
    "XDG_CACHE_HOME": "folder of caches",
    "HF_HOME": "folder of the Hub's files",
    "HF_HUB_CACHE": "folder of downloads",
    "HF_ENDPOINT": "address of the Hub",
    "HF_TOKEN": "token of the Hub",
    "HF_HUB_OFFLINE": "no downloads",
    "TRANSFORMERS_OFFLINE": "no downloads",
    "CUDA_VISIBLE_DEVICES": "the GPUs that torch sees",
    "HTTPS_PROXY": "proxy of downloads",
    "https_proxy": "proxy of downloads",
}
"""Environment variables that change what polyphi does; also all that begin with POLYPHI_."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = frozenset({"1", "on", "yes", "true"})
"""Values that huggingface_hub reads as true, in lower case."""


CURES = {"killed by SIGKILL": "close other programs: the system ends processes if memory runs out"}
"""Cures of failed phases of the probe, by their message."""


# ------------------------------------------------------------------------------ packages


@dataclass(frozen=True)
class Dependencies:
    """Requirements ("torch>=2.11") that are missing or too old, of the package itself and by extra; None if the package
    isn't installed but only on Python's path."""

    core: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]


def dependencies(package: str = "polyphi") -> Dependencies | None:
    """The unmet requirements that the metadata of an installed package lists."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(package) or ()]
        names = metadata.metadata(package).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return None
    core = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    extras = {name: tuple(_unmet_of(name, package, requirements)) for name in names}
    return Dependencies(tuple(_unmet(core)), extras)


def _unmet_of(extra: str, package: str, requirements: Collection[Requirement]) -> Iterator[str]:
    """Unmet requirements of an extra and of the extras that it includes."""
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.marker.evaluate({"extra": extra}):
            if requirement.name == package:
                for other in requirement.extras:
                    yield from _unmet_of(other, package, requirements)
            else:
                yield from _unmet([requirement])


def _unmet(requirements: Collection[Requirement]) -> Iterator[str]:
    for requirement in requirements:
        version = version_of(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier}"


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of installed packages."""
    installed = {name: version for name in VERSIONS if (version := version_of(name))}
    return {"python": platform.python_version(), **installed}


def package_results(errors: Mapping[str, str], unmet: Dependencies | None) -> Iterator[NamedResult]:
    """Versions, and packages that are missing, too old or can't be imported. `errors`: those of the probe."""
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions().items())
    failed = [package for package in probe.PACKAGES if package in errors]
    # Without torch polyphi can't be imported either.
    for package in [p for p in failed if p != "polyphi.api"] or failed:
        text = f"can't be imported: {first_line(errors[package])}"
        cure = _import_cure(package, errors[package])
        yield package.partition(".")[0], FindingResult("wrong", text, cure, fatal=True)
    if unmet is None:
        text = "is on Python's path, but not installed, so its dependencies aren't checked"
        yield "polyphi", FindingResult("missing", text, pip_install())
    elif unmet.core:
        text = f"missing or too old: {', '.join(unmet.core)}"
        cure = " ".join(["pip install --upgrade", *(f'"{r}"' for r in unmet.core)])
        yield "dependencies", FindingResult("wrong", text, cure, fatal=True)


def phase_results(errors: Mapping[str, str]) -> Iterator[NamedResult]:
    """Phases of the probe that failed after all imports succeeded, unless a variable is the reason."""
    for phase, message in errors.items():
        if phase not in probe.PACKAGES and " must be " not in message:
            cure = CURES.get(message, "report the output of `polyphi doctor --json` as a bug")
            text, fatal = f"the check failed: {message}", phase in ("libraries", "kernels")
            yield phase, FindingResult("wrong", text, cure, fatal)


def _import_cure(package: str, error: str) -> str:
    """The cure of a package that can't be imported."""
    if "SIGILL" in error:
        return "use a CPU with AVX2 or NEON; for a virtual machine set its CPU type to host"
    if package == "polyphi.api":
        return pip_install().replace("install", "install --force-reinstall", 1)
    if version_of(package) is None:
        return f"pip install {package}"
    return f"pip install --force-reinstall --no-cache-dir {package}"


def extra_results(unmet: Dependencies) -> Iterator[NamedResult]:
    """Extras: the installed ones in one result, the others in a second one."""
    extras = {name: r for name, r in unmet.extras.items() if name not in HIDDEN}
    if installed := [name for name, requirements in extras.items() if not requirements]:
        yield "extras", ", ".join(installed)
    if missing := [name for name, requirements in extras.items() if requirements]:
        text = ", ".join(f"{n} ({PURPOSES[n]})" if n in PURPOSES else n for n in missing)
        cure = f"{pip_install(*missing)}, or only those that you need"
        yield "more extras", FindingResult("missing", text, cure)


def kernel_results(kernels: Mapping[str, Any]) -> Iterator[NamedResult]:
    """The kernels that the CPU gets."""
    result: FindingResult | str = (
        f"4 and 8 bits: ours ({kernels['path']}); bfloat16: {kernels['bf16']}; "
        f"encoders in 8 bits: {kernels['encoders_int8']}"
    )
    if missing := kernels["missing"]:
        text = f"missing: {missing}; torch's operators replace them, slowly"
        result = FindingResult("slow", text, kernel_cure(missing))
    yield "kernels", result


def kernel_cure(missing: str) -> str:
    """The cure of missing kernels, by the reason that the probe reports."""
    if os.environ.get("POLYPHI_MAX_CPU_ISA"):
        return "unset POLYPHI_MAX_CPU_ISA"
    if "this CPU" in missing:
        return "use a CPU with AVX2 or NEON dot products; for a virtual machine set its CPU type to host"
    if is_checkout():
        return pip_install()
    return pip_install().replace("install", "install --force-reinstall --no-cache-dir --no-deps", 1)


# ------------------------------------------------------------------------------ programs


def program_results() -> Iterator[NamedResult]:
    """Optional programs."""
    for program, purpose in PROGRAMS.items():
        yield program, shutil.which(program) or FindingResult("missing", purpose, install(program))


def compiler_results(kernels: Mapping[str, Any]) -> Iterator[NamedResult]:
    """The compiler, if the kernels are missing."""
    if kernels["missing"]:
        text = "needed to build the kernels where no wheel has them"
        cure = "xcode-select --install" if sys.platform == "darwin" else install("g++")
        path = next(filter(None, map(shutil.which, COMPILERS)), None)
        yield "C++ compiler", path or FindingResult("missing", text, cure)


def install(package: str) -> str:
    """The command that installs a package of the system."""
    for manager, command in MANAGERS:
        if shutil.which(manager):
            needs_root = manager != "brew" and hasattr(os, "geteuid") and os.geteuid() != 0
            return f"{'sudo ' if needs_root else ''}{command} {package}"
    return f"install {package} with the package manager of this system"


# ------------------------------------------------------------------------------ environment


def environment() -> dict[str, str]:
    """The environment variables that change what polyphi does, secrets without their values."""
    return {
        name: display_value(name, value)
        for name, value in sorted(os.environ.items())
        if name in VARIABLES or name.startswith("POLYPHI_")
    }


def environment_results(
    stored: Collection[StoredModel], errors: Mapping[str, str]
) -> Iterator[NamedResult]:
    """The environment variables that are set and change what polyphi does. `errors`: those of the probe, which name a
    variable with a value that polyphi refuses."""
    is_stored = any(model.fault is None for model in stored)
    for name, value in environment().items():
        text, cure = f"{value} ({VARIABLES[name]})" if name in VARIABLES else value, f"unset {name}"
        message = next((m for m in errors.values() if m.startswith(f"{name} must")), None)
        if message:
            yield name, FindingResult("wrong", message, cure, fatal=True)
        elif name in OFFLINE and value.lower() in TRUE and not is_stored:
            yield name, FindingResult("missing", f"{text}, and no model is stored", cure)
        elif name in ISA_VARIABLES:
            yield name, FindingResult("slow", text, cure)
        else:
            yield name, text


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]

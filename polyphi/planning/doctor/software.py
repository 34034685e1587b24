"""Python packages, extras, programs and environment variables."""

import os
import platform
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from polyphi.planning.doctor import probe
from polyphi.planning.doctor.findings import Finding, display_value
from polyphi.planning.doctor.hardware import ISA_VARIABLES
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


# ------------------------------------------------------------------------------ packages


@dataclass(frozen=True)
class Dependencies:
    """What is missing or too old, as requirements ("torch>=2.11"), of the package itself and by extra; None if the
    package isn't installed but only on Python's path."""

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


def package_findings(unmet: Dependencies | None, errors: Mapping[str, str]) -> list[Finding]:
    """Versions, packages that are missing or fail, and extras. `errors`: those of the probe."""
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    result = [
        Finding("Software", "system", "ok", system),
        Finding("Software", "versions", "ok", listed),
    ]
    failed = [package for package in probe.PACKAGES if package in errors]
    # Without torch polyphi can't be imported either.
    for package in [p for p in failed if p != "polyphi.api"] or failed:
        text = f"can't be imported: {first_line(errors[package])}"
        cure = _import_cure(package, errors[package])
        name = package.partition(".")[0]
        result.append(Finding("Software", name, "wrong", text, cure, fatal=True))
    if unmet is None:
        text = "is on Python's path, but not installed, so its dependencies aren't checked"
        return [*result, Finding("Software", "polyphi", "missing", text, pip_install())]
    if unmet.core:
        quoted = " ".join(f'"{r}"' for r in unmet.core)
        text = f"missing or too old: {', '.join(unmet.core)}"
        cure = f"pip install --upgrade {quoted}"
        result.append(Finding("Software", "dependencies", "wrong", text, cure, fatal=True))
    return result


def _import_cure(package: str, error: str) -> str:
    """The cure of a package that can't be imported."""
    if "SIGILL" in error:
        return "use a CPU with AVX2 or NEON; for a virtual machine set its CPU type to host"
    if package == "polyphi.api":
        return pip_install().replace("install", "install --force-reinstall", 1)
    if version_of(package) is None:
        return f"pip install {package}"
    return f"pip install --force-reinstall --no-cache-dir {package}"


def extra_findings(unmet: Dependencies | None) -> list[Finding]:
    """Extras: the installed ones in one finding, the others in a second one."""
    extras = {} if unmet is None else {n: r for n, r in unmet.extras.items() if n not in HIDDEN}
    result = []
    if installed := [name for name, requirements in extras.items() if not requirements]:
        result.append(Finding("Optional", "extras", "ok", ", ".join(installed)))
    if missing := [name for name, requirements in extras.items() if requirements]:
        text = ", ".join(f"{n} ({PURPOSES[n]})" if n in PURPOSES else n for n in missing)
        cure = f"{pip_install(*missing)}, or only those that you need"
        result.append(Finding("Optional", "more extras", "missing", text, cure))
    return result


def kernel_cure(missing: str | None) -> str:
    """The cure of missing kernels, by the reason that the probe reports."""
    if os.environ.get("POLYPHI_MAX_CPU_ISA"):
        return "unset POLYPHI_MAX_CPU_ISA"
    if missing and "this CPU" in missing:
        return "use a CPU with AVX2 or NEON dot products; for a virtual machine set its CPU type to host"
    if is_checkout():
        return pip_install()
    return pip_install().replace("install", "install --force-reinstall --no-cache-dir --no-deps", 1)


# ------------------------------------------------------------------------------ programs


def program_findings(kernels_missing: bool) -> list[Finding]:
    """Optional programs; the compiler only if the kernels are missing."""
    result = []
    for program, purpose in PROGRAMS.items():
        if path := shutil.which(program):
            result.append(Finding("Optional", program, "ok", path))
        else:
            result.append(Finding("Optional", program, "missing", purpose, install(program)))
    if kernels_missing:
        compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
        if compiler:
            result.append(Finding("Optional", "C++ compiler", "ok", compiler))
        else:
            text = "needed to build the kernels where no wheel has them"
            package = "llvm" if sys.platform == "darwin" else "g++"
            cure = "xcode-select --install" if sys.platform == "darwin" else install(package)
            result.append(Finding("Optional", "C++ compiler", "missing", text, cure))
    return result


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


def environment_findings(cached: Collection[str], errors: Mapping[str, str]) -> list[Finding]:
    """The variables that are set. `cached`: names of stored models; `errors`: those of the probe, which name a variable
    with a value that polyphi refuses."""
    result = []
    for name, value in environment().items():
        text = f"{value} ({VARIABLES[name]})" if name in VARIABLES else value
        message = next((m for m in errors.values() if m.startswith(f"{name} must")), None)
        if message:
            finding = Finding("Environment", name, "wrong", message, f"unset {name}", fatal=True)
        elif name in OFFLINE and value.lower() in TRUE and not cached:
            text += ", and no model is stored"
            finding = Finding("Environment", name, "missing", text, f"unset {name}")
        elif name in ISA_VARIABLES:
            finding = Finding("Environment", name, "slow", text, f"unset {name}")
        else:
            finding = Finding("Environment", name, "ok", text)
        result.append(finding)
    return result


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]

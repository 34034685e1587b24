"""The checks of `polyphi doctor`: what facts mean (report.py), and how to fix what is missing or slow.

>>> findings = list(check(facts))
"""

import math
import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from polyphi.devices import cgroup, cpu
from polyphi.doctor import probe
from polyphi.doctor.findings import Finding, display_value
from polyphi.runtime.files import size_text
from polyphi.runtime.installation import is_checkout, pip_install

ISA_VARIABLES = (
    "POLYPHI_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)
"""Environment variables that limit the instructions which libraries use."""
VARIABLES = (
    *(
        "POLYPHI_",
        "HF_",
        "TRANSFORMERS_",
        "ATEN_",
        "ONEDNN_",
        "DNNL_",
        "MKL_",
        "OMP_",
        "GOMP_",
        "KMP_",
    ),
    *("CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "XDG_CACHE_HOME", "HTTPS_PROXY", "https_proxy"),
)
"""Names, or how they begin, of environment variables that change what polyphi does."""
CLASSES = (
    ("AMX", {"amx_tile"}),
    ("AVX-512 BF16", {"avx512_bf16"}),
    ("AVX-512 VNNI", {"avx512_vnni"}),
    ("AVX-VNNI", {"avx_vnni"}),
    ("AVX2", {"avx2"}),
    ("NEON i8mm", {"i8mm"}),
    ("NEON dotprod", {"dot", "asimddp"}),
)
"""Classes of docs/performance.md, the fastest first, with the names of their instructions in torch and Linux."""
MIN_CONTEXT = 2048
"""Tokens of context from which a model counts as fitting. The engine takes at most half of the memory beside the
weights for them: 0.27 GB at the published size, and as much stays free for the activations of a forward."""
VERSIONS = ("polyphi", *probe.PACKAGES[:4], "transformers", "numpy", "pillow", "soundfile")
"""Packages whose versions are visible where they are installed."""
BETTER_CPU = (
    "use a CPU with AVX2 or NEON dot products; for a virtual machine set its CPU type to host"
)


def check(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """The results of all checks, in the order of the report."""
    yield from processor(facts["cpu"])
    if facts["kernels"] is not None:
        yield kernels(facts["kernels"])
    yield from threads(facts["cpu"])
    if (dtypes := facts["precision"]) is not None:
        text = f"{dtypes['inference']} for unquantized weights ({dtypes['reason']})"
        yield Finding("CPU", "dtype", text)
        yield Finding("CPU", "training", f"{dtypes['training']} ({dtypes['training_reason']})")
    yield from memory(facts["memory"])
    yield from models(facts["models"], facts["memory"])
    if "torch" not in facts["errors"]:
        yield from gpus(facts["gpus"], facts["cuda_build"])
    yield from packages(facts["versions"], facts["errors"], facts["requirements"])
    yield from caches(facts["caches"], facts["models"])
    yield from environment(facts["environment"], facts["errors"])


# ------------------------------------------------------------------------------ CPU


def cpu_facts(instructions: Collection[str], torch_threads: int | None) -> dict[str, Any]:
    """The CPU, its class, and its numbers: `logical` CPUs and `cores` of the machine, those that the process may use
    (`usable`), the `quota` of CPU time of its control group, and torch's `threads`, None without torch."""
    names = set(instructions)
    return {
        "model": cpu.model_name(),
        "class": next((name for name, any_of in CLASSES if names & any_of), "none of the classes"),
        "instructions": sorted(names),
        "logical": os.cpu_count() or 1,
        "cores": cpu.physical_cores(),
        "usable": cpu.usable(),
        "quota": cgroup.cpus(),
        "threads": torch_threads,
    }


def processor(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """The CPU and its class; no class where neither torch nor the system reports instructions."""
    yield Finding("CPU", "processor", facts["model"])
    if facts["instructions"]:
        yield Finding("CPU", "class", facts["class"])


def kernels(facts: Mapping[str, Any]) -> Finding:
    """The kernels that the CPU gets."""
    if not (missing := facts["missing"]):
        text = (
            f"4 and 8 bits: ours ({facts['path']}); bfloat16: {facts['bf16']}; encoders in 8 bits: "
        )
        return Finding("CPU", "kernels", text + facts["encoders_int8"])
    text = f"missing: {missing}; torch's operators replace them, slowly"
    if os.environ.get("POLYPHI_MAX_CPU_ISA"):
        cure = "unset POLYPHI_MAX_CPU_ISA"
    elif "this CPU" in missing:
        cure = BETTER_CPU
    else:
        options = "" if is_checkout() else " --force-reinstall --no-cache-dir --no-deps"
        cure = pip_install().replace("install", f"install{options}", 1)
        cure += " (needs a C++ compiler where no wheel has them)"
    return Finding("CPU", "kernels", text, "slow", cure)


def threads(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """CPUs, and whether torch has as many threads as the process can use: one per core, within the quota."""
    usable, quota, count = facts["usable"], facts["quota"], facts["threads"]
    text = f"{facts['cores']} cores, {facts['logical']} logical CPUs"
    if usable < facts["logical"]:
        text += f", {usable} of them usable (affinity)"
    if quota is not None:
        text += f", limited to the time of {quota:g}"
    yield Finding("CPU", "cores", text)
    if count is None:
        return
    most = math.ceil(quota or usable)
    best = max(1, min(facts["cores"], usable, most))
    text, cure = f"torch uses {count}", f"export OMP_NUM_THREADS={best}"
    if count < best:
        if variables := [v for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(v)]:
            cure = f"unset {' '.join(variables)}"
        yield Finding("CPU", "threads", f"{text}, and {best} would be faster", "slow", cure)
    elif count > (most := max(best, min(usable, most))):
        text += f", more than can run at once: {most}"
        yield Finding("CPU", "threads", text, "slow", cure)
    else:
        yield Finding("CPU", "threads", text)


# ------------------------------------------------------------------------------ memory and GPUs


def memory(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Memory, and the limit of a container, if it is below the machine's memory."""
    text = f"{size_text(facts['available'])} available of {size_text(facts['total'])}"
    yield Finding("Memory", "machine", text)
    if (limit := facts["limit"]) is not None and limit < facts["total"]:
        text = f"{size_text(facts['limit_free'])} free of the limit of {size_text(limit)}"
        yield Finding("Memory", "limit", f"{text} (container or batch system)")


def models(fits: Collection[Mapping[str, Any]], facts: Mapping[str, Any]) -> Iterator[Finding]:
    """The values of `--quant` with which each model fits on a device."""
    for model, device in dict.fromkeys((fit["model"], fit["device"]) for fit in fits):
        rows = [fit for fit in fits if (fit["model"], fit["device"]) == (model, device)]
        name = model.rpartition("/")[2].removesuffix("-instruct")
        fitting = [row["quant"] or "unquantized" for row in rows if row["context"] >= MIN_CONTEXT]
        if fitting:
            yield Finding("Memory", name, f"fits on {device}: {', '.join(fitting)}")
            continue
        least = min(rows, key=lambda row: row["weights"])
        needed = least["weights"] + 2 * MIN_CONTEXT * least["token_bytes"]
        text = f"fits on {device} with no --quant: {least['quant']} needs {size_text(needed)}"
        text += f", {size_text(least['free'])} are free"
        yield Finding("Memory", name, text, "missing", _memory_cure(device, needed, facts))


def _memory_cure(device: str, needed: int, facts: Mapping[str, Any]) -> str:
    if device != "cpu":
        return "free the GPU's memory (nvidia-smi lists who uses it), or use the CPU: export CUDA_VISIBLE_DEVICES="
    if needed > facts["total"]:
        return f"use a machine with more than {size_text(needed)} of memory"
    if facts["limit"] is not None and facts["limit"] < needed:
        return f"raise the container's limit: docker run --memory {math.ceil(needed / 1e9)}g ..."
    return f"close other programs until {size_text(needed)} are available"


def gpus(rows: Collection[Mapping[str, Any]], cuda_build: str | None) -> Iterator[Finding]:
    """GPUs that torch sees, or why it doesn't see an NVIDIA GPU."""
    for gpu in rows:
        text = f"{gpu['name']}, {size_text(gpu['free'])} free of {size_text(gpu['total'])}"
        yield Finding("GPU", gpu["device"], text)
    text, cure = "none; models run on the CPU", None
    if not rows and has_nvidia():
        if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
            text = "an NVIDIA GPU is hidden by CUDA_VISIBLE_DEVICES"
            cure = "unset CUDA_VISIBLE_DEVICES"
        elif cuda_build is None:
            text = "this machine has an NVIDIA GPU, and this torch was built without CUDA"
            cure = "install a CUDA build by the selector of https://pytorch.org/get-started/locally"
        else:
            text = f"this machine has an NVIDIA GPU, and torch (CUDA {cuda_build}) can't use it"
            cure = "see what nvidia-smi reports; update the driver to one for this CUDA version"
    if not rows:
        yield Finding("GPU", "GPU", text, "slow" if cure else "ok", cure)


def has_nvidia() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded or installed."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


# ------------------------------------------------------------------------------ software


def versions() -> dict[str, str]:
    """Versions of Python and of installed packages."""
    installed = {"python": platform.python_version()}
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def unmet_requirements() -> list[str]:
    """Requirements of polyphi without extras ("torch>=2.11") that are missing or too old; none where polyphi is only on
    Python's path."""
    unmet = []
    with suppress(metadata.PackageNotFoundError):
        for requirement in map(Requirement, metadata.requires("polyphi") or ()):
            version = next((d.version for d in metadata.distributions(name=requirement.name)), "")
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and not (
                version and requirement.specifier.contains(version, prereleases=True)
            ):
                unmet.append(f"{requirement.name}{requirement.specifier}")
    return unmet


def packages(
    installed: Mapping[str, str], errors: Mapping[str, str], unmet: Collection[str]
) -> Iterator[Finding]:
    """Versions, and packages that can't be imported, are missing or too old. `errors`: those of the probe."""
    text = f"{platform.system()} {platform.release()}, {platform.machine()}"
    text = ", ".join([text, *(f"{name} {version}" for name, version in installed.items())])
    yield Finding("Software", "versions", text)
    failed = [package for package in probe.PACKAGES if package in errors]
    # Without torch polyphi can't be imported either.
    for package in [p for p in failed if p != "polyphi.api"] or failed:
        text = f"can't be imported: {errors[package].strip().partition(chr(10))[0]}"
        cure = _import_cure(package, errors[package])
        yield Finding("Software", package.partition(".")[0], text, "wrong", cure, fatal=True)
    if unmet:
        cure = " ".join(["pip install --upgrade", *(f'"{requirement}"' for requirement in unmet)])
        text = f"missing or too old: {', '.join(unmet)}"
        yield Finding("Software", "dependencies", text, "wrong", cure, fatal=True)
    for phase, message in errors.items():
        if phase not in probe.PACKAGES and " must be " not in message:  # a variable's value
            cure = "report the output of `polyphi doctor --json` as a bug"
            if message == "killed by SIGKILL":
                cure = "close other programs: the system ends processes if memory runs out"
            fatal = phase in ("libraries", "kernels")
            yield Finding("Software", phase, f"the check failed: {message}", "wrong", cure, fatal)


def _import_cure(package: str, error: str) -> str:
    """The cure of a package that can't be imported."""
    if "SIGILL" in error:
        return BETTER_CPU
    if package == "polyphi.api":
        return pip_install().replace("install", "install --force-reinstall", 1)
    return f"pip install --force-reinstall --no-cache-dir {package}"


# ------------------------------------------------------------------------------ storage and environment


def cache_facts(name: str, path: Path) -> dict[str, Any]:
    """A cache: free bytes of its disk, and whether it can be written."""
    parent = next(p for p in (path, *path.parents) if p.exists())
    return {
        "name": name,
        "path": str(path),
        "free": shutil.disk_usage(parent).free,
        "writable": os.access(parent, os.W_OK),
    }


def caches(
    folders: Collection[Mapping[str, Any]], fits: Collection[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Caches, and free space for the smallest published model unless weights of one are in the Hub cache."""
    download = min((2 * model["parameters"] for model in fits), default=0)
    for folder in folders:
        text = f"{folder['path']}: {size_text(folder['free'])} free on its disk"
        name = f"{folder['name']} cache"
        variable = "HF_HOME" if folder["name"] == "Hub" else "POLYPHI_CACHE"
        if not folder["writable"]:
            cure = f"export {variable}=FOLDER (one that you may write to)"
            yield Finding("Storage", name, f"{text}; it can't be written", "wrong", cure)
        elif (
            folder["name"] == "Hub"
            and folder["free"] < download
            and not any(_has_weights(folder["path"], model["model"]) for model in fits)
        ):
            text += f"; the smallest published model has {size_text(download)}"
            cure = "free some space, or export HF_HOME=FOLDER (on a larger disk)"
            yield Finding("Storage", name, text, "missing", cure)
        else:
            yield Finding("Storage", name, text)


def _has_weights(cache: str, model: str) -> bool:
    """Whether a Hub cache has weights of a model."""
    folder = f"models--{model.replace('/', '--')}"
    return any(Path(cache).glob(f"{folder}/snapshots/*/*.safetensors"))


def variables() -> dict[str, str]:
    """The environment variables that change what polyphi does, secrets without their values."""
    return {
        name: display_value(name, value)
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLES)
    }


def environment(values: Mapping[str, str], errors: Mapping[str, str]) -> Iterator[Finding]:
    """The environment variables that are set. `errors`: those of the probe, which name a variable with a value that
    polyphi refuses."""
    for name, value in values.items():
        message = next((m for m in errors.values() if m.startswith(f"{name} must")), None)
        if message:
            yield Finding("Environment", name, message, "wrong", f"unset {name}", fatal=True)
        elif name in ISA_VARIABLES:
            yield Finding("Environment", name, value, "slow", f"unset {name}")
        else:
            yield Finding("Environment", name, value)

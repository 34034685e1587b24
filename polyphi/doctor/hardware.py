"""CPU, threads, memory and GPUs."""

import math
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from polyphi.devices import cgroup, cpu
from polyphi.doctor.findings import FindingResult, NamedResult
from polyphi.runtime.files import size_text

ISA_VARIABLES = (
    "POLYPHI_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)
"""Environment variables that limit the instructions which libraries use."""
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
CPU_SHARE = 0.7
"""A measurement whose threads ran for a smaller share of the time is reported as disturbed."""


@dataclass(frozen=True)
class CpuCounts:
    """Numbers of CPUs: `logical` ones and `cores` of the machine, those that the process may use (`usable`), and the
    `quota` of CPU time of its control group. `threads`: torch's, None without torch."""

    logical: int
    cores: int
    usable: int
    quota: float | None
    threads: int | None

    @property
    def best(self) -> int:
        """Threads that this process can keep busy: one per core that it may use, within the quota."""
        most = min(self.cores, self.usable)
        return most if self.quota is None else max(1, min(most, math.ceil(self.quota)))


def threads(count: int | None) -> CpuCounts:
    """The CPU counts of this machine; `count`: torch's threads."""
    logical = os.cpu_count() or 1
    return CpuCounts(logical, cpu.physical_cores(), cpu.usable(), cgroup.cpus(), count)


def cpu_class(instructions: Collection[str]) -> str:
    """The class of docs/performance.md of a CPU with these instruction sets."""
    names = set(instructions)
    return next((name for name, any_of in CLASSES if names & any_of), "none of the classes")


def processor_results(instructions: Collection[str]) -> Iterator[NamedResult]:
    """The CPU and its class, and whether environment variables limit what libraries use of it."""
    yield "processor", cpu.model_name()
    if not instructions:  # neither torch nor the system reports any
        return
    result: FindingResult | str = cpu_class(instructions)
    if any(os.environ.get(variable) for variable in ISA_VARIABLES):
        text = f"{result}, but environment variables limit what libraries use of it"
        cure = "unset the variables that are marked slow under Environment"
        result = FindingResult("slow", text, cure)
    yield "class", result


def thread_results(numbers: CpuCounts) -> Iterator[NamedResult]:
    """CPUs, and whether torch has as many threads as the process can use."""
    text = f"{numbers.cores} cores, {numbers.logical} logical CPUs"
    if numbers.usable < numbers.logical:
        text += f", {numbers.usable} of them usable (affinity)"
    if numbers.quota is not None:
        text += f", limited to the time of {numbers.quota:g}"
    yield "cores", text
    if (count := numbers.threads) is None:
        return
    result: FindingResult | str = f"torch uses {count}"
    best, cure = numbers.best, f"export OMP_NUM_THREADS={numbers.best}"
    more = max(best, min(numbers.usable, math.ceil(numbers.quota or numbers.usable)))
    if count < best:
        if variables := [v for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(v)]:
            cure = f"unset {' '.join(variables)}"
        result = FindingResult("slow", f"{result}, and {best} would be faster", cure)
    elif count > more:
        result = FindingResult("slow", f"{result}, more than can run at once: {more}", cure)
    yield "threads", result


def precision_results(facts: Mapping[str, Any]) -> Iterator[NamedResult]:
    """The dtypes of inference and training."""
    yield "dtype", f"{facts['inference']} for unquantized weights ({facts['reason']})"
    yield "training", f"{facts['training']} ({facts['training_reason']})"


def rate_results(rates: Mapping[str, Any]) -> Iterator[NamedResult]:
    """Measured rates, and whether other work disturbed them."""
    products, decoding = (
        ", ".join(f"{form} {two_digits(rate / 1e9)}" for form, rate in rates[name].items())
        for name in ("products", "decoding")
    )
    yield "memory", f"{two_digits(rates['memory'] / 1e9)} GB/s read"
    yield "decoding", f"{decoding} GB/s of weights, one token at a time"
    yield "products", f"{products} GFLOP/s, 128 tokens at a time"
    if (share := rates["cpu_share"]) < CPU_SHARE:
        text = (
            f"other processes took the CPUs: the threads ran {share:.0%} of the time, so these rates are too low, and "
            "no tokens/s are estimated"
        )
        cure = "wait until the machine is idle, then: polyphi doctor"
        yield "other work", FindingResult("slow", text, cure)


def two_digits(value: float) -> str:
    """A number as text with about two significant digits: 210, 21, 2.1, 0.021."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


# ------------------------------------------------------------------------------ memory


def memory() -> dict[str, int | None]:
    """Bytes of the machine's memory and swap, and the limit of the process's control group."""
    machine, swap, limit = psutil.virtual_memory(), psutil.swap_memory(), cgroup.memory()
    return {
        "total": machine.total,
        "available": machine.available,
        "swap_total": swap.total,
        "swap_used": swap.used,
        "limit": limit and limit.limit,
        "limit_free": limit and limit.free,
    }


def memory_results(facts: Mapping[str, Any]) -> Iterator[NamedResult]:
    """Memory, swap, and the limit of a container, if it is below the machine's memory."""
    text, swap = size_text(facts["available"]), "no swap"
    if total := facts["swap_total"]:
        swap = f"swap: {size_text(facts['swap_used'])} of {size_text(total)} in use"
    yield "machine", f"{text} available of {size_text(facts['total'])}; {swap}"
    if (limit := facts["limit"]) is not None and limit < facts["total"]:
        free = size_text(facts["limit_free"])
        text = f"{free} free of the limit of {size_text(limit)} (container or batch system)"
        yield "limit", text


def fit_results(
    fits: Collection[Mapping[str, Any]], facts: Mapping[str, Any], *, on_cpu: bool
) -> Iterator[NamedResult]:
    """The values of `--quant` with which each model fits on the CPU, or on the GPU."""
    fits = [fit for fit in fits if (fit["device"] == "cpu") == on_cpu]
    for model in dict.fromkeys(fit["model"] for fit in fits):
        rows = [fit for fit in fits if fit["model"] == model]
        fitting = [row for row in rows if row["context"] >= MIN_CONTEXT]
        name = model.rpartition("/")[2].removesuffix("-instruct")
        if fitting:
            quants = ", ".join(row["quant"] or "unquantized" for row in fitting)
            yield name, f"fits: {quants}"
            continue
        least = min(rows, key=lambda row: row["weights"])
        each = least["weights"] + 2 * MIN_CONTEXT * least["token_bytes"]
        text = f"fits with no --quant: {least['quant']} needs {size_text(each)}, {size_text(least['free'])} are free"
        yield name, FindingResult("missing", text, _memory_cure(least["device"], each, facts))


def _memory_cure(device: str, needed: int, facts: Mapping[str, Any]) -> str:
    if device != "cpu":
        return "free the GPU's memory (nvidia-smi lists who uses it), or use the CPU: export CUDA_VISIBLE_DEVICES="
    limit = facts["limit"]
    if limit is not None and limit < needed <= facts["total"]:
        return f"raise the container's limit: docker run --memory {math.ceil(needed / 1e9)}g ..."
    if needed <= facts["total"]:
        return f"close other programs until {size_text(needed)} are available"
    return f"use a machine with more than {size_text(needed)} of memory"


# ------------------------------------------------------------------------------ GPUs


def gpu_results(
    gpus: Collection[Mapping[str, Any]], cuda_build: str | None
) -> Iterator[NamedResult]:
    """GPUs that torch sees, or one result about those that it doesn't see."""
    for gpu in gpus:
        text = f"{gpu['name']}, {size_text(gpu['free'])} free of {size_text(gpu['total'])}"
        yield gpu["device"], text
    if not gpus:
        yield "GPU", _unseen_gpu(cuda_build)


def _unseen_gpu(cuda_build: str | None) -> FindingResult | str:
    if not has_nvidia():
        return "none; models run on the CPU"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        text = "an NVIDIA GPU is hidden by CUDA_VISIBLE_DEVICES"
        return FindingResult("slow", text, "unset CUDA_VISIBLE_DEVICES")
    if cuda_build is None:
        text = "this machine has an NVIDIA GPU, and this torch was built without CUDA"
        cure = "install a CUDA build by the selector of https://pytorch.org/get-started/locally"
        return FindingResult("slow", text, cure)
    text = f"this machine has an NVIDIA GPU, and torch (CUDA {cuda_build}) can't use it"
    cure = "see what nvidia-smi reports; update the driver to one for this CUDA version"
    return FindingResult("slow", text, cure)


def has_nvidia() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded or installed."""
    if sys.platform == "darwin":
        return False
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None

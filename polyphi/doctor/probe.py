"""Everything that needs torch, in a child process: an import that fails, an instruction that this CPU lacks or a lack
of memory ends the child, and the report says so.

>>> probe = run(); probe.facts["kernels"], probe.errors
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

LIMIT = 300.0
"""Seconds after which a phase has failed; all phases together take some seconds on an idle machine."""
PACKAGES = ("torch", "tokenizers", "safetensors", "huggingface_hub", "polyphi.api")
"""Packages that chat imports."""
Facts = dict[str, Any]


@dataclass
class Probe:
    """What the probe measured: `facts` by phase, as JSON values; `errors`: messages of the phases that failed."""

    facts: Facts = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def run(limit: float = LIMIT, phases: Mapping[str, Callable[[Facts], Any]] | None = None) -> Probe:
    """Run all phases in a child process. A forked child is emulated where this process is (qemu), so it is preferred
    where forking is safe: before torch has threads."""
    phases = phases or PHASES
    fork = sys.platform == "linux" and "torch" not in sys.modules
    context: Any = multiprocessing.get_context("fork" if fork else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, phases), daemon=True)
    process.start()
    sender.close()
    result = Probe()
    for phase in phases:
        if not receiver.poll(limit):
            process.kill()
            result.errors[phase] = f"no answer in {limit:.0f} s"
            break
        try:
            value, error = receiver.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            killed = f"killed by {signal.Signals(-code).name}" if code < 0 else "it ended"
            result.errors[phase] = killed
            break
        if error is None:
            result.facts[phase] = value
        else:
            result.errors[phase] = error
    process.join()
    return result


def _send_all(sender: Connection, phases: Mapping[str, Callable[[Facts], Any]]) -> None:
    """Send each phase's value and error from the child process. Phases after a failed import aren't run."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    facts: Facts = {}
    failed = False
    for phase, function in phases.items():
        if failed and phase not in PACKAGES:
            sender.send((None, None))
            continue
        try:
            facts[phase] = function(facts)
            sender.send((facts[phase], None))
        except Exception as error:
            failed |= phase in PACKAGES
            sender.send((None, str(error) or type(error).__name__))


# ------------------------------------------------------------------------------ phases


def import_package(package: str, facts: Facts) -> None:
    importlib.import_module(package)


def _libraries(facts: Facts) -> Facts:
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "threads": torch.get_num_threads(),
        "instructions": sorted(name for name, value in capabilities.items() if value is True),
        "cuda_build": torch.version.cuda or torch.version.hip,
    }


def _memory(facts: Facts) -> Facts:
    """Free memory as `load` measures it."""
    import torch

    from polyphi.devices.memory import free_memory
    from polyphi.devices.placement import choose

    device = choose("auto")
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append((f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    if device.type == "mps":
        total, free = torch.mps.recommended_max_memory(), free_memory(device)
        gpus.append(("mps", "Apple GPU", total, free))
    keys = ("device", "name", "total", "free")
    rows = [dict(zip(keys, gpu, strict=True)) for gpu in gpus]
    return {"free": free_memory(torch.device("cpu")), "gpus": rows}


def _kernels(facts: Facts) -> Facts:
    import torch

    import polyphi.kernels as kernels
    from polyphi.kernels import bf16
    from polyphi.quantization.integer_weights import OneDnn, is_right

    missing = kernels.missing()
    has_onednn = torch.backends.mkldnn.is_available()
    ours = "ours" if missing is None else "torch"
    return {
        "missing": missing,
        "path": kernels.path(),
        "bf16": f"{ours}, in float32" if bf16.needed() else "oneDNN",
        "encoders_int8": "oneDNN" if has_onednn and is_right(OneDnn, "cpu") else ours,
    }


def _precision(facts: Facts) -> Facts:
    """The dtype of unquantized weights on the CPU, and the precision of training, with their reasons."""
    import torch

    from polyphi.devices import placement, precision
    from polyphi.doctor import published
    from polyphi.prepared.matrix_products import matrix_products

    cpu = torch.device("cpu")
    chosen = placement.choose_dtype({published.STORED: 1}, cpu, 1 << 62)
    training = precision.choose("auto", cpu, matrix_products(published.MINI))
    reason: str | None = "as they are stored"
    if precision.pinned() is not None:
        reason = f"set by {precision.VARIABLE}"
    elif chosen is not None:
        reason = precision.missing(torch.bfloat16)
    return {
        "inference": str(chosen or published.STORED).removeprefix("torch."),
        "reason": reason,
        "training": training.precision,
        "training_reason": training.reason,
    }


def _models(facts: Facts) -> list[Facts]:
    """The models that fit on the CPU, and on the GPU that `load` selects."""
    import torch

    from polyphi.doctor import published

    memory = facts["memory"]
    free = {"cpu": memory["free"], **{gpu["device"]: gpu["free"] for gpu in memory["gpus"][:1]}}
    return [
        asdict(fit)
        for device, available in free.items()
        for fit in published.fits(torch.device(device), available)
    ]


PHASES: Mapping[str, Callable[[Facts], Any]] = {
    **{package: partial(import_package, package) for package in PACKAGES},
    "libraries": _libraries,
    "memory": _memory,
    "kernels": _kernels,
    "precision": _precision,
    "models": _models,
}
"""Name -> function of the facts so far. Memory is measured before anything else takes some."""

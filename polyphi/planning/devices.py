"""Devices that training is planned for: memory, arithmetic and links, with their sources."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """A type of device for training. `memory` in bytes, in decimal units (the card's additional memory is for CUDA's
    context and fragmentation); `flops`: dense bf16 FLOP/s; `inside` and `between`: bytes/s per device and direction
    within a machine of `devices_per_machine` devices and between machines. `note` says what a plan for it leaves
    out."""

    memory: float
    flops: float
    inside: float
    between: float
    devices_per_machine: int = 8
    note: str = ""


T4_NOTE = "a T4 has no bfloat16: it trains in float32, whose activations take up to twice the memory of this plan"
MAC_NOTE = (
    "this is the rate of the Mac's GPU; polyphi trains on its CPU, which is slower. Its memory is the largest "
    "that is sold: --memory replaces it"
)

# Memory, dense FLOP/s (half of the value "with sparsity") and NVLink (half of "total") are from NVIDIA's data sheets of
# the SXM modules, of DGX B200 (an eighth of it) and of the L4. Between machines: one network card per
# GPU, as in DGX A100 (200 Gbit/s), DGX H100, H200 and B200 (400 Gbit/s); 100 Gbit/s for a machine of L4 [ours].
DEVICES = {
    "A100": Device(80e9, 312e12, 300e9, 25e9),
    "H100": Device(80e9, 989e12, 450e9, 50e9),
    "H200": Device(141e9, 989e12, 450e9, 50e9),
    "B200": Device(180e9, 2250e12, 900e9, 50e9),
    "L4": Device(24e9, 121e12, 32e9, 12.5e9),
    # NVIDIA's data sheets of the A10 and of the T4, whose rate is that of float32: it has no bfloat16. PCIe of
    # generations 4 and 3, half of "total".
    "A10": Device(24e9, 125e12, 32e9, 12.5e9),
    "T4": Device(16e9, 8.1e12, 16e9, 12.5e9, note=T4_NOTE),
    # NVIDIA's white papers of GA102, of Ada and of the Blackwell RTX: dense bf16 with sums in float32, at the boost
    # clock; PCIe of generations 4 and 5. A machine of up to two [ours], 10 Gbit/s between machines [ours].
    "RTX3090": Device(24e9, 71e12, 32e9, 1.25e9, 2),
    "RTX4090": Device(24e9, 165.2e12, 32e9, 1.25e9, 2),
    "RTX5090": Device(32e9, 209.5e12, 64e9, 1.25e9, 2),
    # Apple's press releases of the chips: FLOP/s in float32, which is also the rate in bf16 [ours], and most memory.
    # Apple gives no FLOP/s after the M2 Ultra: for M3 and M4 its 27.2 TFLOP/s over 76 cores, times theirs [ours].
    **{
        name: Device(memory * 1e9, rate * 1e12, 10e9, 1.25e9, 1, MAC_NOTE)
        for name, memory, rate in (
            ("M1", 16, 2.6),
            ("M1Pro", 32, 5.2),
            ("M1Max", 64, 10.4),
            ("M1Ultra", 128, 21),
            ("M2", 24, 3.6),
            ("M2Ultra", 192, 27.2),
            ("M3", 24, 3.6),
            ("M3Pro", 36, 6.4),
            ("M3Max", 128, 14.3),
            ("M3Ultra", 512, 28.6),
            ("M4", 32, 3.6),
            ("M4Pro", 64, 7.2),
            ("M4Max", 128, 14.3),
        )
    },
    # Two cores of an AMD EPYC (Zen 4): bf16 products as measured (docs/plan.md); between machines 10 Gbit/s [ours].
    "cpu": Device(24e9, 0.42e12, 10e9, 1.25e9, 1),
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a GPU in the table; None for other GPUs and for CPUs, which differ too much."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("RTX ", "RTX").replace("-", " ").split()
    return next((entry.flops for key, entry in DEVICES.items() if key in words), None)


def cluster(text: str) -> tuple[int, str]:
    """(number of devices, device) of a text such as "64xH100". Raises ValueError for another format or device."""
    match = re.fullmatch(r"(?:(\d+)x)?(\w+)", re.sub(r"(?i)(rtx|m\d) ", r"\1", text.strip()))
    names = {name.lower().removeprefix("rtx"): name for name in DEVICES}
    key = "" if match is None else match[2].lower().removeprefix("rtx")
    if match is None or key not in names or int(match[1] or 1) < 1:
        raise ValueError(
            f"unknown devices {text!r}; expected a number and a name, such as 64xH100; names: {', '.join(DEVICES)}"
        )
    return int(match[1] or 1), names[key]

"""Options of `polyphi plan` that change a stage's cost."""

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class Switches:
    """How a stage is trained, apart from what its file says."""

    fsdp: int = 1
    """Devices that the decoder's layers are sharded over."""
    micro_tokens: int = 8192
    """Tokens of a pack (micro-batch)."""
    activations: Literal["keep", "recompute"] = "keep"
    """keep or recompute."""
    context_parallel: int = 1
    """Devices that a pack is split over (context parallelism)."""
    base: Literal["fp32", "bf16", "int8", "int4"] = "fp32"
    """Frozen weights: fp32 (the recipe, whose parts stay in bf16), bf16 (a published checkpoint), int8 or int4."""

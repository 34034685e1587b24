"""Options of `polyphi plan`: how a stage is trained, on which devices, and a user's rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from cyclopts.types import PositiveFloat, PositiveInt

UTILISATION = 0.4
"""Share of a device's peak that training reaches. Llama 3 405B: 38 to 43 % on H100 (arXiv 2407.21783, table 4)."""


@Parameter(name="*")
@dataclass(frozen=True)
class Switches:
    """Settings of a stage's training that aren't in its file."""

    fsdp: int = 1
    """Devices that share the decoder's layers (FSDP)."""
    micro_tokens: int = 8192
    """Tokens of a pack (micro-batch)."""
    activations: Literal["keep", "recompute"] = "keep"
    """Keep activations, or recompute them (less memory, more time)."""
    context_parallel: int = 1
    """Devices that share each pack (context parallelism)."""
    base: Literal["fp32", "bf16", "int8", "int4"] = "fp32"
    """Frozen weights: fp32 (the recipe, whose parts stay in bf16), bf16 (a published checkpoint), int8 or int4."""


@Parameter(name="*")
@dataclass(frozen=True)
class Hardware:
    """The devices that a stage is planned for."""

    devices: str = "64xH100"
    """Number and name: A100, H100, H200, B200, A10, L4, T4, RTX3090, RTX4090, RTX5090, M1 to M4 (M4Max ...) or cpu."""
    memory: PositiveFloat | None = None
    """Memory of a device in GB, if it differs from the built-in value, such as a Mac's."""
    utilisation: float = UTILISATION
    """Share of the devices' peak that training reaches."""
    price: float | None = None
    """Price of a device per hour."""


OWN_ROWS = Group("Fine-tunes and stage files", sort_key=2)


@Parameter(name="*", group=OWN_ROWS)
@dataclass(frozen=True)
class OwnRows:
    """A user's rows, and how long they are trained on."""

    model: str | None = None
    """Checkpoint to start from: folder or hub id; default: the published size, without its weights."""
    data: Sequence[str] = ()
    """Rows, as `polyphi finetune` takes them; all are read."""
    allowed_media_path: Annotated[Sequence[str], Parameter(metavar="PATH")] = ()
    """Folder or address whose files rows may name, beside those in the folder of the rows; repeatable."""
    media_dir: str | None = None
    """Folder that paths in rows are relative to; default: that of their file."""
    encoding: str = ""
    """Encoding of texts that aren't UTF-8, such as cp1252."""
    steps: PositiveInt | None = None
    """Training steps."""
    epochs: PositiveFloat | None = None
    """Times that each row is used, instead of --steps; default: 3. Without --data: of 1,000 typical rows."""
    batch_tokens: PositiveInt | None = None
    """Tokens of a step; default: the stage's, fewer for few rows."""

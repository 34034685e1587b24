"""What several commands share: options and arguments, and the console they print to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from polyphi.cli.printable import PrintableConsole

console = PrintableConsole()
error_console = PrintableConsole(stderr=True)
SizeOption = Annotated[str, Parameter(help="micro, nano, lab or full.")]
RecipeOption = Annotated[
    str | None,
    Parameter(metavar="FILE", help="Recipe file (.toml), which replaces the size."),
]
NANO = Path("runs/nano")
QuantOption = Annotated[
    Literal["bf16", "int8", "int4", "int8-all", "int4-all"] | None,
    Parameter(
        help="Quantize the language model's base weights: int8 or int4; with -all also adapters and encoders, to int8; "
        "bf16 quantizes nothing and packs the encoders for this CPU."
    ),
]
KvOption = Annotated[
    Literal["int8"] | None,
    Parameter(help="Store the KV cache in int8, which halves its memory; on a CPU only."),
]
DeviceOption = Annotated[str, Parameter(help="auto, cpu, cuda or mps.")]
LoraOption = Annotated[
    tuple[str, ...],
    Parameter(
        metavar="NAME=FOLDER",
        help="Add the adapter of a PEFT folder, or of a fine-tune's run, under this name; repeatable.",
    ),
]
ModalityOption = Annotated[
    tuple[str, ...],
    Parameter(
        metavar="FILE",
        help="Python file that adds a modality, or FILE=FOLDER with the folder of its weights; repeatable "
        "(docs/modality.md).",
    ),
]
PushOption = Annotated[
    str | None,
    Parameter(
        metavar="OWNER/NAME",
        help="Upload the model to this repository on the Hugging Face Hub, with a model card; private by default.",
    ),
]
PublicOption = Annotated[bool, Parameter(help="Make a new repository of --push-to-hub public.")]
ModelArgument = Annotated[
    str,
    Parameter(
        help="Folder of a checkpoint, a hub id (owner/name, owner/name@revision), or nano: the package polyphi-nano."
    ),
]


def folder_of_run(recipe: str, out: Path | None) -> Path:
    """The folder of a run of a size or a recipe file. Raises ValueError for a file without one: runs/nano is another
    run's."""
    if out is None and recipe.endswith(".toml"):
        raise ValueError(
            f"expected the folder of the run of {recipe}, found none; add --out runs/{Path(recipe).stem}, as for "
            "`polyphi reproduce`"
        )
    return out or NANO


def parse_adapters(arguments: Sequence[str]) -> dict[str, str]:
    """The folders of adapters by name, of arguments like `medical=runs/medical`."""
    pairs = [argument.partition("=") for argument in arguments]
    for (name, sign, folder), argument in zip(pairs, arguments, strict=True):
        if not (name and sign and folder):
            raise ValueError(
                f"--lora is NAME=FOLDER, such as medical=my-adapter; found {argument!r}"
            )
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"--lora has the same name twice: {', '.join(arguments)}")
    return {name: folder for name, _, folder in pairs}

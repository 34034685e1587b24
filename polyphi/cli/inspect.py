"""`polyphi inspect`: the parameters of each part, or a file of logits for comparison."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from polyphi.cli.inputs import check_part
from polyphi.cli.options import ModalityOption, ModelArgument, QuantOption, console
from polyphi.runtime.files import whole_file
from polyphi.text.quantity import quantity
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image

if TYPE_CHECKING:
    from polyphi.api import Phi


def inspect(
    model: ModelArgument,
    /,
    *,
    logits: Annotated[
        Path | None, Parameter(help="A request.json; its logits are written to --out.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="The .safetensors file for --logits.")] = None,
    quant: QuantOption = None,
    modality: ModalityOption = (),
) -> None:
    """Show parts and parameters next to the report's, and the accuracy of a quantized model; with --logits, write
    exact logits for comparison.

    For example:

        polyphi inspect nano
        polyphi inspect nano --logits request.json --out logits.safetensors
    """
    import polyphi
    from polyphi.checkpoints import accuracy_file
    from polyphi.checkpoints.headers import read_config
    from polyphi.checkpoints.modalities import with_modalities
    from polyphi.checkpoints.parts import parts
    from polyphi.hub.location import locate
    from polyphi.runtime.rendering import cell

    if (logits is None) != (out is None):
        raise ValueError(
            "--logits request.json and --out file.safetensors need each other: give both"
        )
    if logits is not None and out is not None:
        _check_request(logits)
        phi = polyphi.load(model, quant=quant, modalities=modality)
        tokens, vocabulary = write_logits(phi, logits, out)
        console.print(
            f"wrote {out}: {quantity(tokens, 'position')}, {quantity(vocabulary, 'logit')} each",
            highlight=False,
        )
        return
    table = Table("part", "parameters", "report", box=None, padding=(0, 2))
    folder = locate(model)
    config = with_modalities(read_config(folder), modality, folder)
    for part in parts(config):
        table.add_row(
            part.name, f"{part.parameters:,}", f"{part.report:.3g}" if part.report else ""
        )
    console.print(table)
    if measurement := accuracy_file.read(folder):
        text = f"accuracy next to {cell(measurement.reference)}: {measurement}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)


def write_logits(phi: "Phi", request: str | Path, out: str | Path) -> tuple[int, int]:
    """Runs a request, writes `ids` (after placeholder expansion) and `logits` (float32, every position) as safetensors,
    and returns the shape of the logits.

    `request` is a JSON file: an OpenAI-style list of messages (the generation prompt is added), with media as paths
    relative to the file or data URLs, or `{"ids": [...], "images": [...], "audios": [...]}`.
    """
    from safetensors.torch import save_file

    request, out = Path(request), Path(out)
    ids, logits = phi.logits(*_read_request(request))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial:
        save_file({"ids": ids.cpu().contiguous(), "logits": logits.contiguous()}, partial)
    return logits.shape[0], logits.shape[1]


def _check_request(path: Path) -> None:
    """Raise ValueError for an invalid request, and for media that can't be read, before a model is loaded."""
    prompt, images, audios = _read_request(path)
    messages = [message for message in prompt if isinstance(message, Message)]
    parts = [*map(Image, images), *map(Audio, audios), *(p for m in messages for p in m.parts)]
    for part in parts:
        check_part(part)


def _read_request(path: Path) -> tuple[Sequence[Any], Sequence[Path], Sequence[Path]]:
    if not path.is_file():
        raise ValueError(f"no request file at {path}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    root = path.parent
    if isinstance(value, dict) and "ids" in value:
        images, audios = (
            [root / name for name in value.get(key, ())] for key in ("images", "audios")
        )
        return value["ids"], images, audios
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise ValueError(
            f"{path}: expected a list of messages, or an object with ids; found {type(value).__name__}"
        )
    return [Message.parse(m, root) for m in messages], (), ()

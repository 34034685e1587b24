"""`polyphi export`: a checkpoint in another layout or quantized."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from polyphi.cli.options import ModelArgument, console


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    layout: Annotated[str, typer.Option(help="native, original or mini.")] = "native",
    quant: Annotated[
        Literal["int8", "int4", "int8-all", "int4-all"] | None,
        typer.Option(help="Quantise it, as --quant of others does, and store it so."),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Shards like what it will answer, to round 4 bits for; several times."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as stored if not given.")
    ] = None,
    merge: Annotated[
        str | None, typer.Option(help="Fold this adapter into the base weights first, and drop it.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of an evaluation of it, whose tables go into the model card."),
    ] = None,
) -> None:
    """Write a checkpoint in one of the public layouts, or quantised in one of our own, with a model card. MODEL may
    also be a .gguf file of Phi-4-mini, with its tokenizer beside it."""
    import tempfile

    from polyphi.api import as_dtype, make_processor
    from polyphi.batch import Batch
    from polyphi.checkpoints import gguf
    from polyphi.checkpoints.read import files_beside, load_checkpoint, locate
    from polyphi.checkpoints.write import save_checkpoint
    from polyphi.data import calibration
    from polyphi.data.shards import Shards
    from polyphi.processing.tokenizer import Tokenizer
    from polyphi.recipe import model_card

    if model.endswith(".gguf"):
        if merge or results or calibrate or layout not in ("native", "mini"):
            raise ValueError(
                "of a GGUF --quant and --dtype are understood; export what was written once more"
            )
        gguf.convert(model, out, quant=quant, dtype=as_dtype(dtype or "bfloat16"))
        console.print(f"wrote {out} ({quant or 'mini'}), the language model of {model}")
        return
    folder = locate(model)
    text = model_card.card(folder, layout, source=model, merged=merge, results=results, quant=quant)
    cards = model_card.placed(text, out)
    kind = as_dtype(dtype) if dtype else None
    # merged in the type that is written: in float32 nothing is rounded
    loaded = load_checkpoint(folder, dtype=kind if merge else None)
    if merge:
        loaded.merge_adapter(merge)
    rows: list[Batch] = []
    if calibrate:
        processor = make_processor(loaded.config, Tokenizer.load(folder))
        rows = calibration.rows(processor, [Shards(source) for source in calibrate])
    with tempfile.TemporaryDirectory() as made:
        for name, written in cards.items():
            (Path(made) / name).write_text(written, encoding="utf-8")
        beside = [*files_beside(folder, layout), *sorted(Path(made).iterdir())]
        save_checkpoint(
            loaded, out, layout, dtype=kind, quant=quant, calibration=rows, files=beside
        )
    console.print(f"wrote {out} ({quant or layout}), its card in {list(cards)[-1]}")
    if len(cards) > 1:
        console.print(f"{out / 'README.md'} is your own and stays as it was")

"""`polyphi export`: write a checkpoint in another layout, or quantized."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from polyphi.cli.options import (
    ModalityOption,
    ModelArgument,
    PublicOption,
    PushOption,
    console,
)


def export(
    model: ModelArgument,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write.")],
    layout: Annotated[str, Parameter(help="native, original or mini.")] = "native",
    quant: Annotated[
        Literal["int8", "int4", "int8-all", "int4-all"] | None,
        Parameter(help="Quantize as --quant of other commands does, and store the result."),
    ] = None,
    calibrate: Annotated[
        tuple[Path, ...],
        Parameter(help="Shards with typical requests, to calibrate int4 (GPTQ); repeatable."),
    ] = (),
    dtype: Annotated[
        str | None, Parameter(help="float32, bfloat16 or float16; default: as stored.")
    ] = None,
    merge: Annotated[
        str | None,
        Parameter(help="Merge this adapter into the base weights first, and remove it."),
    ] = None,
    modality: ModalityOption = (),
    results: Annotated[
        Path | None,
        Parameter(help="Folder of an evaluation of the model; its tables go into the model card."),
    ] = None,
    push_to_hub: PushOption = None,
    public: PublicOption = False,
) -> None:
    """Write a checkpoint in one of the public layouts, or quantized in polyphi's layout, with a model card. MODEL may
    also be a .gguf file of Phi-4-mini with its tokenizer next to it.

    For example:

        polyphi export runs/nano/model --out exported --layout original
        polyphi export runs/nano/model --out exported --quant int4
    """
    import tempfile

    from polyphi.api import as_dtype
    from polyphi.checkpoints import gguf, hub, modalities, model_card
    from polyphi.checkpoints.processor import make_processor
    from polyphi.checkpoints.read import files_beside, load_checkpoint, locate
    from polyphi.checkpoints.write import save_checkpoint
    from polyphi.model.adapters import merge_adapter
    from polyphi.processing.tokenizer import Tokenizer

    target = hub.target(push_to_hub, public)
    if model.endswith(".gguf"):
        if merge or results or calibrate or target or layout not in ("native", "mini"):
            raise ValueError(
                "a GGUF file supports only --quant and --dtype; for other options export the written checkpoint again"
            )
        gguf.convert(model, out, quant=quant, dtype=as_dtype(dtype or "bfloat16"))
        console.print(f"wrote {out} ({quant or 'mini'}), the language model of {model}")
        return
    if target:
        hub.prepare(target)
    folder = locate(model)
    if out.resolve() == folder.resolve():
        raise ValueError(f"--out {out} is the folder of the model itself; use another one")
    text = model_card.card(
        folder,
        layout,
        source=model,
        merged=merge,
        results=results,
        quant=quant,
        repository=push_to_hub,
    )
    cards = model_card.placed(text, out)
    beside = files_beside(folder, layout)
    stored_dtype = as_dtype(dtype) if dtype else None
    # merged in the dtype that is written; float32 rounds nothing
    loaded = load_checkpoint(folder, dtype=stored_dtype if merge else None)
    if modality or calibrate:
        processor = make_processor(loaded.config, Tokenizer.load(folder))
    for file in modality:
        modalities.load(loaded, processor, file, folder)
    if merge:
        if left := sorted(set(modalities.folders(folder)) - set(loaded.config.further)):
            raise ValueError(
                f"--merge {merge} changes the weights that {left[0]}{modalities.SUFFIX} was trained on; name the file "
                "that defines it, so that its adapter is adjusted: --modality FILE"
            )
        merge_adapter(loaded, merge)
    rows = []
    if calibrate:
        from polyphi.data import calibration
        from polyphi.data.shards import Shards

        rows = calibration.rows(processor, [Shards(source) for source in calibrate])
    with tempfile.TemporaryDirectory() as temporary:
        for name, card in cards.items():
            (Path(temporary) / name).write_text(card, encoding="utf-8")
        files = [*beside, *sorted(Path(temporary).iterdir())]
        save_checkpoint(
            loaded, out, layout, dtype=stored_dtype, quant=quant, calibration=rows, files=files
        )
    console.print(f"wrote {out} ({quant or layout}), its card in {list(cards)[-1]}")
    if len(cards) > 1:
        console.print(f"{out / 'README.md'} was edited and is unchanged")
    if target:
        console.print(f"pushed to {hub.push(out, target)}")

"""`polyphi export`: write a checkpoint in another layout, quantized, or as a GGUF file for llama.cpp."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from polyphi.cli.options import (
    ModalityOption,
    ModelArgument,
    PublicOption,
    PushOption,
    console,
)

if TYPE_CHECKING:
    import torch

    from polyphi.checkpoints.accuracy_file import Measurement
    from polyphi.cli.accuracy import LoadedModel
    from polyphi.data.shards import Shards
    from polyphi.model.multimodal import PhiModel


def export(
    model: ModelArgument,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write, or a .gguf file.")],
    layout: Annotated[
        str | None,
        Parameter(
            name=("--layout", "--to"),
            help="native, original, mini, llama or gguf; default: gguf if --out is a .gguf file, else native, or "
            "llama for a language model of that family.",
        ),
    ] = None,
    quant: Annotated[
        Literal["int8", "int4", "int8-all", "int4-all", "q8_0", "q4_0"] | None,
        Parameter(help="Quantize the weights; in a GGUF file to q8_0 or q4_0."),
    ] = None,
    calibrate: Annotated[
        tuple[Path, ...],
        Parameter(help="Shards with typical requests, which calibrate int4 (GPTQ); repeatable."),
    ] = (),
    measure: Annotated[
        tuple[Path, ...],
        Parameter(
            help="With --quant: shards to measure the accuracy on; repeatable. Default: held-out rows of the model's "
            "run, or else 2,000 tokens of polyphi's own texts."
        ),
    ] = (),
    no_accuracy: Annotated[
        bool,
        Parameter(
            help="With --quant: don't measure the accuracy, which runs the quantized and the unquantized model."
        ),
    ] = False,
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
    """Write a checkpoint in one of the public layouts, or quantized in polyphi's layout, with a model card; or its
    language model as a GGUF file for llama.cpp. A quantized checkpoint is compared with the unquantized one; the
    result is in its accuracy.json and on the card. MODEL may also be a .gguf file of Phi-4-mini, or of a model of the
    Llama family.

    For example:

        polyphi export runs/nano/model --out exported --layout original
        polyphi export runs/nano/model --out exported --quant int4
        polyphi export runs/nano/model --out nano.gguf --merge vision --quant q8_0
    """
    import tempfile
    from functools import partial

    import torch

    from polyphi.api import as_dtype
    from polyphi.checkpoints import accuracy_file, gguf, modalities
    from polyphi.checkpoints.files import ACCURACY
    from polyphi.checkpoints.headers import files_beside, read_config, read_quantization
    from polyphi.checkpoints.names import LAYOUTS, own_layout
    from polyphi.checkpoints.processor import make_processor
    from polyphi.checkpoints.read import load_checkpoint
    from polyphi.checkpoints.write import save_checkpoint
    from polyphi.data import calibration
    from polyphi.data.shards import Shards
    from polyphi.hub import model_card, push
    from polyphi.hub.location import locate
    from polyphi.model.merge import check_mergeable, merge_adapter
    from polyphi.prepared.prepare import prepare
    from polyphi.processing.tokenizer import Tokenizer
    from polyphi.runtime.files import record_file, write_json, write_whole

    target = push.target(push_to_hub, public)
    to_gguf = layout == "gguf" or (layout is None and out.suffix == ".gguf")
    if model.endswith(".gguf"):
        if merge or results or calibrate or measure or target or layout not in (None, *LAYOUTS):
            raise ValueError(
                "a GGUF file supports only --quant and --dtype; for other options export the written checkpoint again"
            )
        _check_folder(out, quant)
        written = gguf.convert(model, out, quant=quant, dtype=as_dtype(dtype or "bfloat16"))
        console.print(f"wrote {out} ({quant or written}), the language model of {model}")
        return
    if to_gguf:
        others: dict[str, object] = {
            "--results": results,
            "--calibrate": calibrate,
            "--measure": measure,
            "--push-to-hub": target,
        }
        if dtype and quant:
            others["--dtype"] = dtype
        _check_file(out, quant, [option for option, value in others.items() if value])
    else:
        _check_folder(out, quant)
    if target:
        push.prepare(target)
    folder = locate(model)
    if out.resolve() == folder.resolve():
        raise ValueError(f"--out {out} is the folder of the model itself; use another one")
    if merge:
        check_mergeable(modalities.with_modalities(read_config(folder), modality, folder), merge)
    layout = layout or own_layout(read_config(folder))
    sources = [Shards(source) for source in calibrate]
    held_out = [Shards(source) for source in measure]
    is_quantized = read_quantization(folder) is not None
    measured = quant is not None and not (to_gguf or no_accuracy or is_quantized)
    _check_measured(folder, measured, measure)
    card_text = partial(
        model_card.card,
        folder,
        layout,
        source=model,
        merged=merge,
        results=results,
        quant=quant,
        repository=push_to_hub,
    )
    cards, beside = {}, []
    if not to_gguf:
        measurement = accuracy_file.read(folder) if is_quantized else None
        cards = model_card.placed(card_text(accuracy=measurement), out)
        beside = files_beside(folder, layout)
    stored_dtype = as_dtype(dtype) if dtype else None
    # merged in the dtype that is written, or quantized from; float32 rounds nothing
    merged_dtype = torch.float32 if to_gguf and quant else stored_dtype
    loaded = load_checkpoint(folder, dtype=merged_dtype if merge else None)
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
    if to_gguf:
        _write_gguf(loaded, out, folder, merge, stored_dtype, quant)
        return
    rows = []
    if calibrate:
        rows = calibration.rows(processor, sources)
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
    if measured and (folder / "tokenizer.json").is_file():
        from polyphi.cli import accuracy

        name = accuracy.display_name(model, folder) + (f" with {merge} merged" if merge else "")
        if not (modality or calibrate):
            processor = make_processor(loaded.config, Tokenizer.load(folder))
        reference = accuracy.LoadedModel(name, folder, prepare(loaded), processor)
        measurement = _measure(reference, out, held_out, modality)
        cards = model_card.placed(card_text(accuracy=measurement), out)
        write_json(out / ACCURACY, measurement.as_json())
        write_whole(out / list(cards)[-1], list(cards.values())[-1])
        for file_name in (ACCURACY, list(cards)[-1]):
            record_file(out, file_name)
    elif measured:
        text = f"the accuracy isn't measured: {folder} has no tokenizer.json"
        console.print(text, soft_wrap=True)
    if target:
        console.print(f"pushed to {push.push(out, target)}")


def _check_folder(out: Path, quant: str | None) -> None:
    """Raise ValueError where options of a checkpoint's folder are those of a GGUF file."""
    if out.suffix == ".gguf":
        raise ValueError(f"expected a folder to write, found --out {out}; use --layout gguf")
    if quant in ("q8_0", "q4_0"):
        raise ValueError(
            f"--quant {quant} is a type of GGUF files: use --layout gguf, or --quant int8 or int4"
        )


def _check_file(out: Path, quant: str | None, others: list[str]) -> None:
    """Raise ValueError where options of a GGUF file are those of a checkpoint's folder (`others`)."""
    if out.suffix != ".gguf":
        raise ValueError(
            f"--layout gguf writes one file; expected --out FILE.gguf, found --out {out}"
        )
    if quant not in (None, "q8_0", "q4_0"):
        raise ValueError(f"--quant {quant} isn't a type of GGUF files; use q8_0 or q4_0")
    if others:
        option = f"{others[0]} beside --quant" if others[0] == "--dtype" else others[0]
        raise ValueError(f"{option} isn't used for a GGUF file; omit it")


def _check_measured(folder: Path, measured: bool, shards: tuple[Path, ...]) -> None:
    """Raise ValueError for shards of --measure where the accuracy isn't measured."""
    if shards and not measured:
        raise ValueError(
            f"--measure {shards[0]} needs an unquantized model, --quant, and no --no-accuracy; omit it"
        )
    if shards and not (folder / "tokenizer.json").is_file():
        raise ValueError(f"--measure {shards[0]} needs a tokenizer; {folder} has no tokenizer.json")


def _measure(
    reference: "LoadedModel", out: Path, shards: "list[Shards]", modality: tuple[str, ...]
) -> "Measurement":
    """The accuracy of the quantized checkpoint in `out` next to the unquantized one; prints it."""
    from polyphi.checkpoints.read import load_checkpoint
    from polyphi.cli import accuracy

    model = load_checkpoint(out)
    files = [file.partition("=")[0] for file in modality]  # their weights are in `out` now
    subject = accuracy.with_processor(out.resolve().name, out, model, files)
    measurement = accuracy.measure(reference, subject, shards)
    console.print(f"accuracy: {measurement}", highlight=False, soft_wrap=True)
    return measurement


def _write_gguf(
    loaded: "PhiModel",
    out: Path,
    folder: Path,
    merge: str | None,
    dtype: "torch.dtype | None",
    quant: str | None,
) -> None:
    from polyphi.checkpoints.gguf_export import write_gguf

    write_gguf(loaded, out, folder, name=out.stem, dtype=dtype, quant=quant)
    config = loaded.config
    merged = f" with the adapter {merge} merged" if merge else ""
    console.print(f"wrote {out}, the language model{merged}", soft_wrap=True)
    encoders = [f"the {name} encoder" for name in ("vision", "audio") if getattr(config, name)]
    if left := [*encoders, *(f"the adapter {name}" for name in config.adapters)]:
        console.print(
            f"not in it: {', '.join(left)}; llama.cpp runs the language model alone", soft_wrap=True
        )

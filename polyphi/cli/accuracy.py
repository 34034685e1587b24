"""Measuring a model's accuracy next to a reference, for `polyphi eval --against` and `polyphi export --quant`.

>>> subject, reference = load("exported"), load_reference("runs/nano/model")
>>> show(measure(reference, subject).accuracy)
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import polyphi.kernels as kernels
from polyphi.checkpoints import gguf, modalities
from polyphi.checkpoints.accuracy_file import Measurement
from polyphi.checkpoints.headers import read_quantization, stored_types
from polyphi.checkpoints.names import empty_model
from polyphi.checkpoints.processor import make_processor
from polyphi.checkpoints.read import load_checkpoint
from polyphi.cli.options import console, error_console
from polyphi.data import accuracy_rows, calibration
from polyphi.data.shards import Shards
from polyphi.devices import memory, placement
from polyphi.hub import cache, pull
from polyphi.hub.fingerprint import fingerprint
from polyphi.hub.location import locate
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.accuracy import compare
from polyphi.runtime.files import sha256
from polyphi.runtime.rendering import table
from polyphi.types.accuracy import COLUMNS, Accuracy
from polyphi.types.batch import Batch

OWN_TEXTS = "texts of polyphi"
"""The source of rows where neither shards nor a run have any."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: its `name` without paths of this machine, its `path` (a folder, or a GGUF file), and its
    processor."""

    name: str
    path: Path
    model: PhiModel
    processor: Processor

    @property
    def fingerprint(self) -> str:
        """A hash that differs between models."""
        return sha256(self.path) if self.path.is_file() else fingerprint(self.path)


def load(
    source: str,
    quant: str | None = None,
    *,
    device: str = "cpu",
    modality: Sequence[str] = (),
) -> LoadedModel:
    """The model of a folder, a hub id, `nano` or a GGUF file, in the dtype in which `polyphi.load` runs it. Raises
    ValueError as `polyphi.load`, and for a GGUF file with `quant`."""
    if source.endswith(".gguf"):
        if quant:
            raise ValueError(
                f"--quant {quant} isn't used for a GGUF file, whose weights are dequantized; convert it first: "
                f"polyphi export {source} --out FOLDER --quant {quant}"
            )
        return _load_gguf(source, device, modality)
    folder, target = pull.find(source, quant), placement.choose(device)
    scheme = quant or read_quantization(folder)
    free = memory.free_memory(target)
    dtype = placement.choose_dtype(stored_types(folder), target, free, scheme)
    model = load_checkpoint(folder, device=target, dtype=dtype, quant=quant)
    name = f"{display_name(source, folder)} in {scheme}" if scheme else display_name(source, folder)
    return with_processor(name, folder, model, modality)


def load_reference(
    source: str, *, device: str = "cpu", modality: Sequence[str] = ()
) -> LoadedModel:
    """The model to compare with, unquantized: in float32 if it is stored in float32, else in bfloat16. Raises
    ValueError for a quantized checkpoint."""
    if source.endswith(".gguf"):
        return _load_gguf(source, device, modality)
    folder = locate(source)
    if scheme := read_quantization(folder):
        raise ValueError(
            f"--against {source} is quantized to {scheme}; expected the unquantized checkpoint that the model comes "
            "from"
        )
    stored = stored_types(folder)
    main = max(stored, key=lambda dtype: stored[dtype])
    dtype = torch.float32 if main.itemsize >= 4 else torch.bfloat16
    model = load_checkpoint(folder, device=placement.choose(device), dtype=dtype)
    return with_processor(display_name(source, folder), folder, model, modality)


def _load_gguf(source: str, device: str, modality: Sequence[str]) -> LoadedModel:
    """The language model of a GGUF file with dequantized weights, in float32, which holds the values of all types."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"expected a GGUF file, found none at {source}; check the path")
    if modality:
        raise ValueError(
            f"--modality {modality[0]} isn't used for {source}: a GGUF file has a language model alone"
        )
    file = gguf.open_model(path)
    model = empty_model(file.config)
    model.load_state_dict(file.tensors(torch.float32), assign=True)
    error_console.print(
        f"{path.name}: weights are dequantized to float32 and run by polyphi, not by llama.cpp",
        highlight=False,
        soft_wrap=True,
    )
    model = prepare(model.to(placement.choose(device)).eval())
    return LoadedModel(path.name, path, model, make_processor(file.config, file.tokenizer()))


def with_processor(
    name: str, folder: Path, model: PhiModel, modality: Sequence[str] = ()
) -> LoadedModel:
    """A model of a folder with its processor and users' modalities that it doesn't have yet."""
    processor = make_processor(model.config.without_further(), Tokenizer.load(folder))
    for file in modality:
        modalities.load(model, processor, file, folder)
    return LoadedModel(name, folder, prepare(model), processor)


def display_name(source: str, folder: Path) -> str:
    """The name of a checkpoint without the path on this machine: a hub id, or its folder's name, for `model` of a run
    with the run's name."""
    if cache.hub_name(source) is not None or not Path(source).expanduser().exists():
        return source
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "model" else folder.name


def measure(
    reference: LoadedModel,
    subject: LoadedModel,
    shards: Sequence[Shards] = (),
    *,
    parts: bool = False,
) -> Measurement:
    """The accuracy of `subject` next to a reference on rows of shards; by default on the held-out rows of the run that
    one of them is of, or else on texts of ours. Prints its progress. Raises ValueError for models with different
    tokenizers, and where no row remains."""
    check_same_tokenizer(reference, subject)
    rows, source = _rows(reference, subject, shards)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=error_console,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("accuracy, rows", total=len(rows))
        accuracy = compare(
            reference.model,
            subject.model,
            rows,
            parts=parts,
            progress=lambda count: bar.update(task, completed=count),
        )
    return Measurement(
        model=subject.name,
        reference=reference.name,
        fingerprint=reference.fingerprint,
        rows=source,
        kernels=kernels.path(),
        accuracy=accuracy,
    )


def check_same_tokenizer(reference: LoadedModel, subject: LoadedModel) -> None:
    """Raise ValueError for two models whose vocabularies or tokenizers differ."""
    sizes = [one.model.config.decoder.vocab_size for one in (reference, subject)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"expected two models with one vocabulary, found {sizes[0]:,} tokens in {reference.name} and "
            f"{sizes[1]:,} in {subject.name}; name the checkpoint that the model comes from"
        )
    first, second = (one.processor.tokenizer for one in (reference, subject))
    texts = json.loads(accuracy_rows.TEXTS.read_text(encoding="utf-8"))["documents"]
    if (
        first.specification["model"]["vocab"] != second.specification["model"]["vocab"]
        or first.controls != second.controls
        or first.marks != second.marks
        or any(first.encode(text) != second.encode(text) for text in texts)
    ):
        raise ValueError(
            f"expected two models with one tokenizer, found another one in {subject.name} than in {reference.name}; "
            "name the checkpoint that the model comes from"
        )


def _rows(
    reference: LoadedModel, subject: LoadedModel, shards: Sequence[Shards]
) -> tuple[list[Batch], str]:
    """Rows with labels that both models can read, and their source."""
    models = (reference.model, subject.model)
    sizes = [model.config.decoder.max_position_embeddings for model in models]
    context = min(calibration.CONTEXT, *sizes)
    source = ", ".join("/".join(Path(str(one.folder)).parts[-2:]) for one in shards)
    if not shards:
        for one in (subject, reference):
            if one.path.is_dir() and (shards := accuracy_rows.held_out(one.path)):
                source = f"held-out rows of {one.path.resolve().parent.name}"
                break
    if not shards:
        return accuracy_rows.own_texts(reference.processor, context), OWN_TEXTS
    rows = calibration.rows(
        reference.processor,
        shards,
        context=context,
        supervise="answers",
        modalities=models[0].towers.keys() & models[1].towers.keys(),
    )
    return rows, source


def show(accuracy: Accuracy) -> None:
    """Print the figures as a table, in Markdown where standard output is no terminal."""
    rows = accuracy.rows()
    if not console.is_terminal:
        print(table(["", *COLUMNS], rows, "l" + "r" * len(COLUMNS)))
        return
    figures = Table("", box=None, padding=(0, 2))
    for title in COLUMNS:
        figures.add_column(title, justify="right")
    for row in rows:
        figures.add_row(*row)
    console.print(figures)

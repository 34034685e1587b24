"""Users' modalities of a checkpoint: encoder, projector and adapter of each in one folder, without code.

    MODEL/motion-modality/modality.json                       placeholder, sizes, the decoder that it belongs to
                          model.safetensors                   encoder.*, projector.*
                          adapter_config.json, adapter_model.safetensors   the LoRA, as PEFT writes it

The folder can be copied into any copy of the same decoder, and removed again; no other file changes.

>>> load(model, processor, "motion.py", folder)
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyphi.checkpoints.adapter_config import describe, object_at, parse_peft, write_peft
from polyphi.checkpoints.files import check_headers
from polyphi.checkpoints.names import PEFT_PREFIX, public_name
from polyphi.checkpoints.peft import CONFIG as ADAPTER_CONFIG
from polyphi.checkpoints.peft import FILE as ADAPTER_WEIGHTS
from polyphi.checkpoints.peft import read_peft
from polyphi.model.adapters import add_adapter, put_adapter
from polyphi.model.config import ModelConfig
from polyphi.model.lora import is_adapter_name
from polyphi.model.multimodal import PhiModel, initial_tower, tower_of
from polyphi.processing.item_reader import ItemReader
from polyphi.processing.processor import Processor
from polyphi.runtime.files import read_object
from polyphi.runtime.rust import panics_are_errors
from polyphi.text.quantity import quantity
from polyphi.types.modality import AdapterConfig, Modality, ModalityEntry, load_modality

SUFFIX = "-modality"
NORM = "decoder.norm.weight"
FILE, WEIGHTS = "modality.json", "model.safetensors"
NORM_VALUES = 16
"""Weights of the decoder's last norm by which a folder recognizes the decoder that it was trained with."""
NORM_ERROR = 0.01
"""Relative tolerance of `NORM_VALUES`; a bfloat16 number is within 0.004."""


def folders(checkpoint: Path) -> dict[str, Path]:
    """The folders of modalities in a checkpoint, by name."""
    files = sorted(checkpoint.glob(f"*{SUFFIX}/{FILE}"))
    return {file.parent.name.removesuffix(SUFFIX): file.parent for file in files}


def find(modality: Modality | str | Path, checkpoint: Path) -> tuple[Modality, Path]:
    """A modality, an object or a Python file, and the folder of its weights: that of a checkpoint, or that of
    FILE=FOLDER. Raises ValueError where there is none."""
    folder: Path | None = None
    if not isinstance(modality, Modality):
        file, _, explicit = str(modality).partition("=")
        modality, folder = load_modality(file), Path(explicit).expanduser() if explicit else None
    stored = folders(checkpoint)
    folder = folder or stored.get(modality.name)
    if folder is None or not (folder / FILE).is_file():
        raise ValueError(
            f"{folder or checkpoint}: expected the modality's weights in {modality.name}{SUFFIX}, found "
            f"{', '.join(p.name for p in stored.values()) or 'none'}; train it (polyphi train), or name the folder: "
            f"--modality FILE=FOLDER"
        )
    return modality, folder


def read(modality: Modality, folder: Path, rows: int) -> ModalityEntry:
    """The sizes and the placeholder of a modality in a folder, for an embedding of `rows` rows. Raises ValueError for
    another modality, unknown sizes, and an id that the embedding doesn't have."""
    values, name = read_object(folder / FILE), modality.name
    if values.get("name") != name:
        raise ValueError(
            f"{folder}: expected the modality {name}, found {describe(values.get('name'))}"
        )
    id = object_at(values, "placeholder").get("id")
    if type(id) is not int or not 0 <= id < rows:
        raise ValueError(
            f"{folder}: expected the placeholder's id from 0 to {rows - 1}, found {describe(id)}"
        )
    return ModalityEntry(modality, _config(modality, object_at(values, "config"), folder), id)


def with_modalities(
    config: ModelConfig, modalities: Iterable[Modality | str | Path], checkpoint: Path
) -> ModelConfig:
    """The configuration of a checkpoint with modalities, without their weights. Raises ValueError as `find` and
    `read`."""
    further, adapters = dict(config.further), dict(config.adapters)
    for source in modalities:
        modality, folder = find(source, checkpoint)
        further[modality.name] = read(modality, folder, config.decoder.vocab_size)
        values = read_object(folder / ADAPTER_CONFIG)
        adapters[modality.name] = parse_peft(values, f"{folder}/{ADAPTER_CONFIG}")
    return dataclasses.replace(config, further=further, adapters=adapters)


def load(
    model: PhiModel, processor: Processor, source: Modality | str | Path, checkpoint: Path
) -> None:
    """Add a modality of a checkpoint to a model and its processor, in place.

    Raises ValueError as `find` and `read`, where the folder is of another decoder, and where tensors are missing,
    unexpected or of another shape.
    """
    modality, folder = find(source, checkpoint)
    own, name = read(modality, folder, model.config.decoder.vocab_size), modality.name
    _check_decoder(model, read_object(folder / FILE).get("decoder"), folder)
    width = model.config.decoder.hidden_size
    with torch.device("meta"):  # no memory for sizes that the tensors don't have
        expected = {k: list(t.shape) for k, t in tower_of(own, width).state_dict().items()}
    try:
        check_headers([folder / WEIGHTS])
        with panics_are_errors(f"{folder / WEIGHTS} is damaged"):
            stored = load_file(folder / WEIGHTS)
    except (SafetensorError, TypeError, OSError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} is not a complete safetensors file ({error}); copy it again"
        ) from None
    shapes = {key: list(tensor.shape) for key, tensor in stored.items()}
    if wrong := [key for key in {**expected, **shapes} if expected.get(key) != shapes.get(key)]:
        key = wrong[0]
        raise ValueError(
            f"{folder}: expected the tensors of {name}'s encoder and projector, found "
            f"{quantity(len(wrong), 'other tensor')}; {key}: expected "
            f"{expected.get(key, 'none')}, found {shapes.get(key, 'none')}"
        )
    adapter = read_peft(folder, model.config)
    tower = initial_tower(own, width, seed=0)  # with the buffers that aren't stored
    tower.load_state_dict(stored)
    tower = tower.to(model.decoder.norm.weight).requires_grad_(False).eval()
    _put(model, processor, own, tower)
    put_adapter(model, name, adapter.config, adapter.factors)


def create(
    model: PhiModel, processor: Processor, modality: Modality, adapter: AdapterConfig, seed: int
) -> None:
    """Add a modality with initial weights to a model and its processor, in place: those of its modules' constructors,
    and a fresh adapter. Raises ValueError where the name or the placeholder is in use, or where no id is unused."""
    tokenizer, name = processor.tokenizer, modality.name
    used = [own.placeholder for own in model.config.further.values()]
    id = next(iter(tokenizer.unused_ids(model.config.decoder.vocab_size, used)), None)
    if id is None:
        raise ValueError(
            f"the tokenizer uses all {model.config.decoder.vocab_size} ids; expected an unused one for {name}"
        )
    own = ModalityEntry(modality, modality.config(), id)
    tower = initial_tower(own, model.config.decoder.hidden_size, seed)
    _put(model, processor, own, tower.to(model.decoder.norm.weight).train(model.training))
    add_adapter(model, name, adapter, seed)


def _put(model: PhiModel, processor: Processor, own: ModalityEntry, tower: torch.nn.Module) -> None:
    name, placeholder = own.modality.name, own.modality.placeholder
    if hasattr(model, name) or name in model.config.adapters or not is_adapter_name(name):
        raise ValueError(
            f"{name!r} can't be a modality: this model has one, an adapter or an attribute of the name; choose another"
        )
    others = [o.modality.name for o in model.config.further.values()]
    texts = [o.modality.placeholder for o in model.config.further.values()]
    if placeholder in texts or placeholder in processor.tokenizer.controls:
        other = others[texts.index(placeholder)] if placeholder in texts else "the tokenizer"
        raise ValueError(
            f"modality {name}: its placeholder {placeholder} is in use by {other}; choose another one"
        )
    model.add_module(name, tower)
    model.config = dataclasses.replace(model.config, further={**model.config.further, name: own})
    processor.add(ItemReader(own.modality), own.placeholder, own.modality.routes)


def write(
    config: ModelConfig,
    name: str,
    tensor: Callable[[str], Tensor],
    folder: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a modality of a model into a new folder; `tensor(our name)` returns the model's tensors."""
    own, adapter = config.further[name], config.adapters[name]
    with torch.device("meta"):
        names = list(PhiModel(config).state_dict())
    values = {
        "name": name,
        "placeholder": {"text": own.modality.placeholder, "id": own.placeholder},
        "config": dataclasses.asdict(own.config),
        "decoder": _norm_values(tensor(NORM)),
    }
    folder.mkdir(parents=True)
    (folder / FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")

    def stored(ours: str) -> Tensor:
        value = tensor(ours).detach()
        return value.to("cpu", dtype if value.is_floating_point() else None).contiguous()

    def save(public: Mapping[str, str], file: str) -> None:
        tensors = {name: stored(ours) for name, ours in public.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})

    save({n.removeprefix(f"{name}."): n for n in names if n.startswith(f"{name}.")}, WEIGHTS)
    factors = [n for n in names if f".lora.{name}." in n]
    public = (public_name(n, "native")[0].partition("/")[2] for n in factors)
    save(dict(zip((PEFT_PREFIX + n for n in public), factors, strict=True)), ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(write_peft(adapter), indent=1))


def _config(modality: Modality, values: Mapping[str, Any], folder: Path) -> Any:
    """The modality's sizes as they are stored in a folder."""
    known = {field.name for field in dataclasses.fields(modality.config)}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{folder}/{FILE} has the size {unknown[0]!r}, which {modality.config.__name__} of {modality.name} doesn't "
            f"have; it has {', '.join(sorted(known))}"
        )
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    try:
        return modality.config(**{**values, **lists})
    except TypeError as error:
        raise ValueError(f"{folder}/{FILE} doesn't fit {modality.name}'s sizes: {error}") from None


def _norm_values(norm: Tensor) -> list[float]:
    places = torch.linspace(0, len(norm) - 1, NORM_VALUES).long()
    return [round(value, 6) for value in norm.detach().float().cpu()[places].tolist()]


def _check_decoder(model: PhiModel, expected: Any, folder: Path) -> None:
    """Raise ValueError where a folder was trained with another decoder."""
    norm = _norm_values(model.decoder.norm.weight)
    fits = isinstance(expected, list) and len(expected) == len(norm)
    if not fits or any(
        abs(a - b) > NORM_ERROR * max(abs(a), abs(b)) for a, b in zip(expected, norm, strict=True)
    ):
        raise ValueError(
            f"{folder} was trained with another decoder than this model's; use the checkpoint that it belongs to"
        )

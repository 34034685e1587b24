"""Reading checkpoints in any of the public layouts, or in the quantized one (docs/quantization.md).

# the layout is detected; the configuration is read from config.json and tensor shapes
>>> model = load_checkpoint("path/to/folder")

Only safetensors are read; they are mapped into memory and copied only for a cast or another device. Pickles are
refused, and the code that a checkpoint's `auto_map` names is never run.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from polyphi.checkpoints.headers import (
    LOOKUP,
    Checkpoint,
    open_checkpoint,
    open_tensors,
    read_quantization,
    read_tensor,
)
from polyphi.checkpoints.names import (
    BYTES,
    QUANTIZED,
    TYPES,
    NamedTensor,
    empty_model,
    entries_of,
    in_pieces,
    public_names,
)
from polyphi.model.multimodal import PhiModel
from polyphi.quantization import quantize
from polyphi.quantization.integer_weights import Quantized
from polyphi.runtime.files import restore
from polyphi.runtime.heap import give_back
from polyphi.text.quantity import quantity

log = logging.getLogger(__name__)
NAMES_SHOWN = 20
"""Names listed per type of mismatch in an error; for the others only the number is given."""


def load_checkpoint(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    adapters: bool = True,
    quant: str | None = None,
    apart: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> PhiModel:
    """The model in a folder (hub/location.py finds that of a hub id), in any of the layouts. `dtype=None` keeps
    the stored dtypes; `adapters=False` omits the LoRAs; `quant` is a scheme of `quantize.py`, for inference. With
    `apart` every tensor is mapped by itself and unmapped when it is dropped, for callers that replace or write tensors
    one by one. `progress` is called with the share of the tensors that are loaded.

    On the CPU, without a cast, the parameters are the mapped file, so memory stays at the checkpoint's size; so are
    weights of a quantized checkpoint in the order of our kernels. Tensors that are quantized, reordered or joined are
    read one at a time and don't stay mapped.
    Raises ValueError for an unknown `quant` or another one than that of a quantized checkpoint; a missing config.json,
    a damaged file, pickles; tensors that are missing, unexpected, or of a wrong shape or dtype, by name; an adapter
    (which may come from any source) with NaN or infinity.
    """
    restore(folder)
    checkpoint = open_checkpoint(folder)
    for note in checkpoint.notes:
        log.warning("%s: %s", folder, note)
    quant = _scheme(checkpoint, quant)
    adapted = bool(checkpoint.config.adapters)
    if not adapters:
        checkpoint = _without_adapters(checkpoint)
    model = empty_model(checkpoint.config)
    parts = {part.name: part for part in quantize.parts(model, quant)} if quant else {}
    expected = _expected(model, checkpoint, parts, adapted)
    checkpoint = _without_tied_head(checkpoint, expected)
    _check(expected, checkpoint)

    loading = _Loading(model, checkpoint, expected, parts, torch.device(device), dtype, progress)
    loading.put_parts()
    if quant:
        give_back()
    loading.put_others(apart, reorders=quant is not None)
    if quant:
        quantize.finish(model, quant)
        give_back()
    # A buffer that isn't in checkpoints would still be on the meta device; modules compute such tables when they run.
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers())), (
        "a tensor was left without values"
    )
    return model.eval()


def _scheme(checkpoint: Checkpoint, quant: str | None) -> str | None:
    """The scheme that the model gets: that of a quantized checkpoint, which can't be another one, or `quant`."""
    if checkpoint.layout != QUANTIZED:
        return quant
    scheme = read_quantization(checkpoint.folder)
    if quant not in (None, scheme):
        raise ValueError(
            f"{checkpoint.folder} is quantized to {scheme} and can't become {quant}: load it without quant, or load "
            f"the unquantized checkpoint with quant={quant!r}"
        )
    return scheme


def _without_adapters(checkpoint: Checkpoint) -> Checkpoint:
    config = replace(checkpoint.config, adapters={})
    stored = {
        name: tensor
        for name, tensor in checkpoint.stored.items()
        if not any(part in name for part in (".lora_A.", ".lora_B.", ".lora."))
    }
    return replace(checkpoint, config=config, stored=stored)


def _expected(
    model: PhiModel,
    checkpoint: Checkpoint,
    parts: Mapping[str, quantize.WeightTarget],
    adapted: bool,
) -> dict[str, NamedTensor]:
    """The tensors that the files must have, by stored name."""
    expected = entries_of(model, checkpoint.layout, adapted=adapted)
    if checkpoint.layout == QUANTIZED:
        expected = in_pieces(expected, parts, checkpoint.stored)
        if LOOKUP in checkpoint.stored and parts[quantize.EMBEDDING].has_table:
            expected[LOOKUP] = NamedTensor(quantize.EMBEDDING, parts[quantize.EMBEDDING].shape)
    return expected


@dataclass(frozen=True)
class _Loading:
    """The tensors of a checkpoint on their way into a model without values. `parts` are those that become or are
    quantized."""

    model: PhiModel
    checkpoint: Checkpoint
    expected: Mapping[str, NamedTensor]
    parts: Mapping[str, quantize.WeightTarget]
    device: torch.device
    dtype: torch.dtype | None
    progress: Callable[[float], None]

    @property
    def quantized(self) -> bool:
        return self.checkpoint.layout == QUANTIZED

    @cached_property
    def names_of(self) -> dict[str, list[str]]:
        """Our name of each tensor -> the stored names of its pieces."""
        names: dict[str, list[str]] = {}
        for name, entry in self.expected.items():
            names.setdefault(entry.ours, []).append(name)
        return names

    def pieces(self, ours: str) -> dict[str, Tensor]:
        """The stored pieces of a tensor, by the last part of their names if it is quantized, else by their names; each
        has its own mapping, which is released with it."""
        stored = self.checkpoint.stored
        names = self.names_of[ours]
        ends = [name.rpartition(".")[2] for name in names] if self.quantized else names
        return {end: read_tensor(stored[name]) for end, name in zip(ends, names, strict=True)}

    def _joined(self, ours: str, tensors: Sequence[Tensor]) -> Tensor:
        """One of our tensors from those that have its rows, or from copies. Raises ValueError where copies differ."""
        names = self.names_of[ours]
        if len(tensors) == 1:
            return tensors[0]
        if self.expected[names[0]].rows is not None:
            return torch.cat(list(tensors))
        for name, tensor in zip(names[1:], tensors[1:], strict=True):
            if not torch.equal(tensors[0], tensor):
                raise ValueError(
                    f"expected equal values in {names[0]} and {name}, since the linears of an adapter share their "
                    "input matrix; found others: an adapter with one for each linear can't be read, merge it first"
                )
        return tensors[0]

    def put_parts(self) -> None:
        """Put the quantized weights into the model, read one at a time."""
        for number, part in enumerate(self.parts.values()):
            self.progress(number / len(self.names_of))
            pieces = self.pieces(part.name)
            if ".lora." in part.name:
                for end, tensor in pieces.items():
                    if tensor.is_floating_point():  # any bytes are valid packed weights
                        _check_finite(f"{part.name} ({end})", tensor)
            if self.quantized:
                part.put(Quantized.stored(pieces, part.shape, self.device))
            else:
                tensor = self._joined(part.name, list(pieces.values()))
                weight = tensor.to(device=self.device, dtype=self.dtype).flatten(1)
                part.put(Quantized(weight, part.form))
            del pieces

    def lookup(self) -> Tensor | None:
        """The embeddings beside a quantized head, mapped a second time for the lookup: only rows that are read take
        memory. None where the head's own weights are looked up, or no head is quantized."""
        if quantize.EMBEDDING not in self.parts:
            return None
        if self.quantized and LOOKUP not in self.checkpoint.stored:
            self.model.decoder.embed_tokens.register_parameter("weight", None)
            head = quantize.head_of(self.model)
            assert head is not None
            if head.table is None:
                packed = max(self.pieces(quantize.EMBEDDING).values(), key=lambda t: t.nbytes)
                head.table = packed.to(self.device)
            return None
        pieces = self.pieces(quantize.EMBEDDING)
        table = pieces[quantize.TABLE] if self.quantized else next(iter(pieces.values()))
        return table if self.device.type == "cpu" else table.to(self.device, self.dtype)

    def put_others(self, apart: bool, reorders: bool) -> None:
        """Put the tensors that are not quantized into the model, file by file. `reorders`: those outside the decoder
        get another order in memory, and are mapped by themselves as all are with `apart`."""
        state: dict[str, Tensor] = {}
        separate: dict[str, dict[str, Tensor]] = {}
        """Tensors that are to be joined, by our name and theirs."""
        if (table := self.lookup()) is not None:
            state[quantize.EMBEDDING] = table
        by_file: dict[Path, list[str]] = {}
        for name, entry in self.expected.items():
            if entry.ours not in self.parts:
                by_file.setdefault(self.checkpoint.stored[name].file, []).append(name)
        for file, members in by_file.items():
            with open_tensors(file) as tensors:
                for name in members:
                    entry, stored = self.expected[name], self.checkpoint.stored[name]
                    # The embedding may be in both.
                    done = (len(self.parts) + len(state)) / len(self.names_of)
                    self.progress(min(1.0, done))
                    own = apart or (reorders and not entry.ours.startswith("decoder."))
                    tensor = read_tensor(stored) if own else tensors.get_tensor(stored.key)
                    if ".lora." in entry.ours:
                        _check_finite(name, tensor)
                    names, unit_axes = public_names(entry.ours, self.checkpoint.layout)
                    separate.setdefault(entry.ours, {})[name] = tensor
                    if len(parts := separate[entry.ours]) == len(names):
                        ordered = [parts[name] for name in self.names_of[entry.ours]]
                        tensor = self._joined(entry.ours, ordered)
                        state[entry.ours] = tensor.reshape(tensor.shape[unit_axes:]).to(
                            device=self.device, dtype=self.dtype
                        )
                        del separate[entry.ours]
        self.model.load_state_dict(state, strict=True, assign=True)


def _without_tied_head(checkpoint: Checkpoint, expected: Mapping[str, NamedTensor]) -> Checkpoint:
    """The checkpoint without a copy of the embedding as head. Raises ValueError where the two differ."""
    stored = checkpoint.stored
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head not in stored or head in expected or embedding not in stored:
        return checkpoint
    if not torch.equal(read_tensor(stored[head]), read_tensor(stored[embedding])):
        raise ValueError(
            f"{head} differs from {embedding}, but config.json has tie_word_embeddings true; set it to false for "
            "a model with an untied head"
        )
    return replace(checkpoint, stored={name: s for name, s in stored.items() if name != head})


def _check(expected: Mapping[str, NamedTensor], checkpoint: Checkpoint) -> None:
    """Raise ValueError where stored tensors are missing, unexpected, or of another shape or type."""
    stored = checkpoint.stored
    misshaped = [
        f"{name} expected {list(entry.shape)} found {list(stored[name].shape)}"
        for name, entry in expected.items()
        if name in stored and entry.shape != stored[name].shape
    ]
    faults = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [name for name in stored if name not in expected],
        "mis-shaped": misshaped,
        "of another type": [
            f"{name} expected {_dtype_text(entry.type)} found {stored[name].type}"
            for name, entry in expected.items()
            if name in stored and not _fits(entry.type, stored[name].type)
        ],
    }
    if not any(faults.values()):
        return
    parts = []
    for fault, names in faults.items():
        if names:
            more = f" ... and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            parts.append(f"{len(names)} {fault}: {', '.join(names[:NAMES_SHOWN])}{more}")
    raise ValueError(
        f"the tensors in {checkpoint.folder} don't match its config.json ({checkpoint.layout} layout, "
        f"{quantity(len(expected), 'tensor')} expected, "
        f"{len(stored)} found). {'; '.join(parts)}"
    )


def _fits(required: torch.dtype | None, stored: str) -> bool:
    if required is None:
        return stored in TYPES
    return (TYPES | BYTES).get(stored) == required


def _dtype_text(required: torch.dtype | None) -> str:
    return "a float" if required is None else str(required).removeprefix("torch.")


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    low, high = tensor.aminmax()  # NaN is propagated
    if not bool((high.float() - low.float()).isfinite()):
        raise ValueError(f"expected finite values in the adapter, found NaN or infinity in {name}")

"""Modalities that a user adds to the model. This module imports no torch.

>>> modality = load_modality("motion.py")                # a user's, which the file defines (docs/modality.md)
>>> x = modality.read("walk.csv")
>>> modality.cost(x).tokens
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from polyphi.runtime.arguments import checked_fields

NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
# fmt: off
RESERVED = frozenset((
    "text", "image", "audio", "video", "vision", "speech", "decoder", "objective", "none", "auto", "type", "role",
    "content", "document", "messages", "question", "answer", "prompt",
))
# fmt: on
"""Names that no further modality can have: those of the model's parts, of adapters and of parts of messages."""


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA on every qkv, o, gate_up and down projection: y = W x + alpha / rank * B(A(dropout(x)))."""

    rank: int
    alpha: float
    dropout: float = 0.0


@checked_fields
@dataclass(frozen=True)
class Cost:
    """What an item costs: its `tokens` in the language model, and, for plans, the FLOPs of a forward of its encoder and
    projector."""

    tokens: int
    flops: float = 0.0


@checked_fields
@dataclass(frozen=True, kw_only=True)
class Modality:
    """A modality that a user adds to the model; everything about it is here.

    `name` is that of its adapter, of its part of a message and of its folder in a checkpoint. `placeholder` is the text
    of the token that stands for it; its id is an unused one of the tokenizer at hand, recorded in the checkpoint.
    `config` is a dataclass of the encoder's sizes with defaults, stored in the checkpoint.

    `read(source)` returns the values of one item from a path or bytes: a float tensor [n ...] of n steps; it raises
    ValueError for what it can't read. `cost(values)` is that of such an item, without running anything.
    `encoder(config)` is a module from `ItemInput` to features, `projector(config, width)` one from features and
    `ItemInput` to tokens [m, width], as many of each item as its cost says. Both treat items apart from each other, so
    that an item's tokens don't depend on what is in the same call.

    `adapter` is the LoRA that its items select; so do items beside the modalities in each of `beside`, such as
    ("image",). A file has at most `max_bytes`, and reading takes at most `seconds`.
    """

    name: str
    placeholder: str
    config: type
    read: Callable[[Path | bytes], Any] = field(repr=False)
    cost: Callable[[Any], Cost] = field(repr=False)
    encoder: Callable[[Any], Any] = field(repr=False)
    projector: Callable[[Any, int], Any] = field(repr=False)
    adapter: AdapterConfig
    beside: Sequence[tuple[str, ...]] = ()
    max_bytes: int = 16 << 20
    seconds: float = 30.0
    file: Path | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        name = self.name
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(
                f"the name of a modality is of letters, digits and _, and none of {', '.join(sorted(RESERVED))}; found "
                f"{name!r}"
            )
        if not self.placeholder:
            raise ValueError(f"modality {name}: expected a text as placeholder, such as <|{name}|>")
        if not is_dataclass(self.config):
            raise ValueError(
                f"modality {name}: expected a dataclass as config, found {self.config!r:.80}"
            )

    @property
    def routes(self) -> dict[frozenset[str], str]:
        """The lines that the modality adds to the table of adapters (routing.ROUTES)."""
        return {frozenset((self.name, *others)): self.name for others in ((), *self.beside)}

    def __reduce__(self) -> Any:
        """A modality of a file is loaded again where it is unpickled, in a worker process."""
        return (load_modality, (self.file,)) if self.file else super().__reduce__()


@dataclass(frozen=True)
class ModalityEntry:
    """A modality of a model beside the report's: its encoder's sizes, and the id of its placeholder."""

    modality: Modality
    config: Any
    placeholder: int


_LOADED: dict[Path, Modality] = {}


def load_modality(file: str | Path) -> Modality:
    """The `modality` of a Python file, which is run once in a process. Raises ValueError where there is none, or where
    running the file fails."""
    path = Path(file).expanduser().resolve()
    if path in _LOADED:
        return _LOADED[path]
    modality = getattr(run_file(path), "modality", None)
    if not isinstance(modality, Modality):
        what = "no modality" if modality is None else f"a {type(modality).__name__}"
        raise ValueError(f"{file}: expected `modality = Modality(...)`, found {what}")
    _LOADED[path] = replace(modality, file=path)
    return _LOADED[path]


def defines(file: Path, name: str) -> bool:
    """Whether a Python file defines `name`; it is run for that. Raises ValueError as `run_file`."""
    return hasattr(run_file(file), name)


def run_file(path: Path) -> Any:
    """The module of a Python file of the user. Raises ValueError where there is none, or where running it fails."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a Python file, found no file")
    name = f"polyphi_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file can raise any exception
        del sys.modules[name]
        raise ValueError(f"{path} could not be run: {type(error).__name__}: {error}") from error
    return module

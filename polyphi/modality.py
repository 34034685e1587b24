"""What the model reads beside tokens: modalities, and the inputs of their encoders.

>>> modality = load_modality("motion.py")                # a user's, which the file defines (docs/modality.md)
>>> x = modality.read("walk.csv")
>>> modality.cost(x).tokens
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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


@dataclass(frozen=True)
class Cost:
    """What an item costs: its `tokens` in the language model, and, for plans, the FLOPs of a forward of its encoder and
    projector."""

    tokens: int
    flops: float = 0.0


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
    read: Callable[[Any], Float[Tensor, "n ..."]]
    cost: Callable[[Float[Tensor, "n ..."]], Cost]
    encoder: Callable[[Any], nn.Module]
    projector: Callable[[Any, int], nn.Module]
    adapter: AdapterConfig
    beside: Sequence[tuple[str, ...]] = ()
    max_bytes: int = 16 << 20
    seconds: float = 30.0
    file: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        name = self.name
        if not (isinstance(name, str) and name.isidentifier() and name.isascii()) or (
            name in RESERVED or hasattr(nn.ModuleDict(), name)
        ):
            raise ValueError(
                f"the name of a modality is of letters, digits and _, and none of {', '.join(sorted(RESERVED))}; found "
                f"{name!r}"
            )
        if not (isinstance(self.placeholder, str) and self.placeholder):
            raise ValueError(f"modality {name}: expected a text as placeholder, such as <|{name}|>")
        if not (isinstance(self.config, type) and is_dataclass(self.config)):
            raise ValueError(
                f"modality {name}: expected a dataclass as config, found {self.config!r:.80}"
            )
        for what in ("read", "cost", "encoder", "projector"):
            if not callable(value := getattr(self, what)):
                raise ValueError(f"modality {name}: {what} is called, found {value!r:.80}")

    @property
    def routes(self) -> dict[frozenset[str], str]:
        """The lines that it adds to the table of adapters (messages.ROUTES)."""
        return {frozenset((self.name, *others)): self.name for others in ((), *self.beside)}

    def __reduce__(self) -> Any:
        """A modality of a file is loaded again where it is unpickled, in a worker process."""
        return (load_modality, (self.file,)) if self.file else super().__reduce__()


@dataclass(frozen=True)
class Further:
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


def tensors(fields_of: Any) -> dict[str, Tensor]:
    """The tensors among the fields of a dataclass, by name."""
    values = ((f.name, getattr(fields_of, f.name)) for f in fields(fields_of))
    return {name: value for name, value in values if isinstance(value, Tensor)}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a modality's encoder: its items (images, clips, ...) in order.

    `layouts` has for each item what decides its number of tokens. `slots` are the positions in `Batch.ids` of the
    placeholders that the items fill, in order. `words`, if a training objective needs them, give the text of items:
    rows (item, ..., token id). All other tensors are values that only the encoder reads.
    """

    NAME: ClassVar[str]
    """The modality, where all inputs of a class have the same one."""
    UNIT: ClassVar[str]
    """What `size` counts."""
    MOST: ClassVar[int]
    """Largest `size` of one call of the encoder; a larger item runs alone."""

    layouts: tuple[Any, ...]
    slots: Int[Tensor, " n"] | None = None
    words: Int[Tensor, "_ _"] | None = None

    @property
    def modality(self) -> str:
        """The name of the modality."""
        return self.NAME

    @property
    def tokens(self) -> list[int]:
        """The number of tokens of each item."""
        raise NotImplementedError

    @property
    def features(self) -> list[int] | None:
        """The number of rows of the encoder's output for each item; None where it isn't known."""
        return self.tokens

    @property
    def size(self) -> int:
        """What the time and memory of the encoder grow with."""
        raise NotImplementedError

    @property
    def blank(self) -> float:
        """Share of what the encoder reads that is padding."""
        return 0.0

    @property
    def identity(self) -> tuple[Tensor, ...]:
        """The tensors that tell items with equal layouts apart."""
        return tuple(t for name, t in self.tensors.items() if name not in ("slots", "words"))

    def ready(self) -> Self:
        """The same items in the form that the encoder reads."""
        return self

    def split(self) -> Iterator[Self]:
        """Each item as its own inputs, without slots and words, and without copying values."""
        raise NotImplementedError

    @classmethod
    def join(cls, parts: Sequence[Self], starts: Sequence[int] = ()) -> Self:
        """The items of several inputs, in order; `starts` is added to the slots of each."""
        tensors: dict[str, list[Tensor]] = {}
        items = 0
        for part, start in zip(parts, starts or [0] * len(parts), strict=True):
            for name, tensor in part.tensors.items():
                if name == "slots":
                    tensor = tensor + start
                if name == "words":
                    tensor = torch.cat([tensor[:, :1] + items, tensor[:, 1:]], dim=1)
                tensors.setdefault(name, []).append(tensor)
            items += len(part.layouts)
        layouts = tuple(layout for part in parts for layout in part.layouts)
        return cls(layouts=layouts, **{name: torch.cat(each) for name, each in tensors.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return tensors(self)

    def to(self, device: torch.device | str) -> Self:
        """The same inputs on a device."""
        return replace(
            self,
            **{n: t.to(device, non_blocking=True) for n, t in self.tensors.items()},  # type: ignore[arg-type]
        )

    def without_values(self) -> "Inputs":
        """The same items without values."""
        return Inputs(layouts=self.layouts, slots=self.slots, words=self.words)

"""Figures of how far a model's next tokens are from a reference's, as `quantization/accuracy.py` measures them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Difference:
    """The difference of a model from a reference over some positions."""

    positions: int
    """Number of positions, which are predictions of one token each."""
    kl: float
    """Mean Kullback-Leibler divergence of the model's distribution from the reference's, in nats."""
    kl_tail: float
    """99.9th percentile of the divergence."""
    same_token: float
    """Share of positions where both have the same most likely token."""
    perplexity: float
    """The model's perplexity."""
    perplexity_ratio: float
    """The model's perplexity, divided by the reference's."""

    def __str__(self) -> str:
        return (
            f"KL {digits(self.kl)} nats (99.9 %: {digits(self.kl_tail)}), same most likely token "
            f"{100 * self.same_token:.1f} %, perplexity {self.perplexity_ratio:.3f} times, "
            f"{self.positions:,} held-out tokens"
        )

    @property
    def cells(self) -> list[str]:
        """The values of the columns COLUMNS."""
        return [
            f"{self.positions:,}",
            digits(self.kl),
            digits(self.kl_tail),
            f"{self.same_token:.2%}",
            f"{self.perplexity:.4g}",
            f"{self.perplexity_ratio:.4f}",
        ]


COLUMNS = ("tokens", "KL, nats", "99.9 %", "same token", "perplexity", "ratio")
"""Titles of `Difference.cells`."""


@dataclass(frozen=True)
class Accuracy:
    """The difference of a model from a reference: in all, by modality (such as "text" or "image+audio", the inputs of a
    row), by adapter ("none" or a name), and on request of the reference with one part of the model alone: a layer of
    the decoder ("layer 0") or the head ("head")."""

    whole: Difference
    modalities: Mapping[str, Difference]
    adapters: Mapping[str, Difference]
    parts: Mapping[str, Difference] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Accuracy":
        """The accuracy that `as_json` describes. Raises ValueError for another value."""
        names = [one.name for one in fields(cls)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            raise ValueError(f"expected an object with {', '.join(names)}, found {value!r:.80}")
        groups = {name: value[name] for name in names[1:]}
        if not all(isinstance(group, dict) for group in groups.values()):
            raise ValueError(f"expected objects in {', '.join(groups)}, found {value!r:.80}")
        inner = {
            name: {key: _difference(one) for key, one in group.items()}
            for name, group in groups.items()
        }
        return cls(_difference(value["whole"]), **inner)

    def rows(self) -> list[list[str]]:
        """The rows of a table: a label, then the cells of COLUMNS. A group with one member is that of the whole."""
        groups = [("", {"all": self.whole})]
        groups += [
            (title, dict(group))
            for title, group in (("", self.modalities), ("adapter ", self.adapters))
            if len(group) > 1
        ]
        groups.append(("only ", dict(self.parts)))
        return [
            [f"{title}{name}", *one.cells] for title, group in groups for name, one in group.items()
        ]


def digits(value: float) -> str:
    """A divergence with two significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:#.2g}".rstrip(".")


def _difference(value: Any) -> Difference:
    """The difference that JSON values describe. Raises ValueError for others."""
    names = [one.name for one in fields(Difference)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise ValueError(f"expected an object with {', '.join(names)}, found {value!r:.80}")
    if not all(type(number) in (int, float) for number in value.values()):
        raise ValueError(f"expected numbers, found {value!r:.80}")
    try:
        numbers = {name: float(number) for name, number in value.items()}
        return Difference(**{**numbers, "positions": int(value["positions"])})  # type: ignore[arg-type]
    except OverflowError as error:
        raise ValueError(f"expected numbers, found {value!r:.80}") from error

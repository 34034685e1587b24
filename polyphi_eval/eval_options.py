"""Options of an evaluation on benchmarks (`polyphi eval`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter, Token
from cyclopts.types import PositiveInt

ACCURACY = Group("Comparison with a reference", sort_key=1)
OTHER_MODELS = Group("Judges, the simulator, and keys", sort_key=2)
MACHINE = Group("Machine (no effect on the result)", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True)
class ComparisonOptions:
    """Options of a comparison of a model's next tokens with a reference's."""

    against: Annotated[str | None, Parameter(metavar="REFERENCE", group=ACCURACY)] = None
    """Compare MODEL's next tokens with those of this unquantized checkpoint; both may be a folder, a hub id, nano, or a
    .gguf file, whose weights are dequantized and run by polyphi."""
    rows: Annotated[tuple[Path, ...], Parameter(group=ACCURACY)] = ()
    """Shards to compare on; repeatable. Default: the held-out rows of the run that one of the models is of, or else
    2,000 tokens of polyphi's own texts."""
    layers: Annotated[bool, Parameter(group=ACCURACY)] = False
    """Also measure the reference with one layer of MODEL alone, and with its head alone."""


def part_of(_: type, tokens: Sequence[Token]) -> tuple[int, int]:
    """(i, k) of "i/k"."""
    number, slash, count = tokens[0].value.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"expected i/k with 1 <= i <= k, such as 2/8; found {tokens[0].value!r}")
    return int(number), int(count)


@Parameter(name="*")
@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation: its samples, and the judges of the answers."""

    limit: PositiveInt | None = None
    """Use the first samples of each row only, up to this number."""
    skip_missing: bool = False
    """Skip benchmarks without data."""
    judges: Annotated[tuple[str, ...], Parameter(name="--judge", group=OTHER_MODELS)] = ()
    """Judge model: http://host/v1#name, self, or azure:PROJECT; repeatable."""
    simulator: Annotated[str | None, Parameter(group=OTHER_MODELS)] = None
    """Model that simulates the user in adversarial dialogues: http://host/v1#name, or self."""
    judge_key_from: Annotated[str | None, Parameter(group=OTHER_MODELS)] = None
    """Environment variable with the judges' and the simulator's API key."""
    part: Annotated[
        tuple[int, int],
        Parameter(
            converter=part_of,
            n_tokens=1,
            metavar="I/K",
            show_default=lambda part: f"{part[0]}/{part[1]}",
            group=MACHINE,
        ),
    ] = (1, 1)
    """i/k: every k-th sample from the i-th on, for one of k machines."""

"""Weights in 4 bits, rounded better than to the nearest level.

    w = row * s * (q - z / 16)              q from 0 to 15; s and z bytes of an output and GROUP inputs; row float32

    four_bits(weight)                       # least squares within each group
    four_bits(weight, hessian)              # least squares of the products, for inputs like those of `hessian`

Without inputs every group's scale and zero are searched: from a few starts that cut the largest weights off, levels
and least-squares lines through them are found in turn, and the best pair is kept. With inputs a group's errors are
made good by the weights that are rounded after it (GPTQ, Frantar et al., 2022), for which the products' squared error
tells how. Both are deterministic.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels.linear import GROUP, Four

Rounding = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Some rows of weights to their levels, scales and zeros."""
STARTS = ((1.0, 0.9), (0.9, 1.0), (0.9, 0.8), (0.8, 0.9))
"""Shares of a group's smallest and largest weight that the levels span at first. One end is cut off more than the
other: on normal weights these four leave an error of 7.1 %, four with equal ends 7.2 %, sixteen more 7.0 %, and the
nearest levels over the whole span 7.8 %."""
FITS = 2
"""Lines fitted to the best of them."""
CHUNK = 4096
"""Groups that are searched at once: what is in work stays in the CPU's cache."""
DAMPING = 0.01
"""Share of its mean that is added to the Hessian's diagonal."""
COLUMNS = 128
"""Inputs after which errors are handed on to all others."""
HEADROOM = 1.25
"""How much wider than at first a group may become while errors of others are handed on to it."""


class Rounded(NamedTuple):
    """A weight in 4 bits with its `row`."""

    four: Four
    row: Float[Tensor, " O"]

    def weight(self) -> Float[Tensor, "O I"]:
        """What it stands for, in float32."""
        q, s, z = self.four
        scale = self.row[:, None] * s.float()
        steps = q.view(*s.shape, GROUP) - z[:, :, None].float() / 16
        return (scale[:, :, None] * steps).view(q.shape)


@torch.no_grad()
def four_bits(weight: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"] | None = None) -> Rounded:
    """`weight` in 4 bits: the squared error of no group is larger than that of the nearest levels (`nearest`). With
    `hessian`, the sum of x x' over inputs x, it is the products' error that is small, and a group's own may grow.
    Raises ValueError for numbers that aren't finite, and for shapes that don't fit."""
    _check(weight, hessian)
    if hessian is None:
        return _by_rows(weight, _groups_apart(search))
    return _by_rows(weight, _inputs_in_turn(_feedback(hessian.float())), CHUNK, HEADROOM)


@torch.no_grad()
def nearest(weight: Float[Tensor, "O I"]) -> Rounded:
    """Round-to-nearest: levels from each group's smallest to its largest weight, 0 among them."""
    _check(weight, None)
    return _by_rows(weight, _groups_apart(span))


def _check(weight: Tensor, hessian: Tensor | None) -> None:
    inputs = weight.shape[1]
    if inputs % GROUP:
        raise ValueError(f"expected weights with a multiple of {GROUP} inputs, found {inputs}")
    if hessian is not None and hessian.shape != (inputs, inputs):
        raise ValueError(
            f"expected a Hessian of {inputs} x {inputs} for weights with {inputs} inputs, found "
            f"{' x '.join(map(str, hessian.shape))}"
        )
    for name, tensor in (("weights", weight), ("Hessian", hessian)):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"the {name} to round hold NaN or infinity; a model that has them answers nothing: look at the "
                "checkpoint"
            )


def _by_rows(weight: Tensor, round_: Rounding, rows: int = 0, headroom: float = 1.0) -> Rounded:
    """Some rows after the other by `round_`; by default so many that they are CHUNK groups."""
    outputs, inputs = weight.shape
    q = torch.empty(outputs, inputs, dtype=torch.uint8, device=weight.device)
    s, z = (torch.empty_like(q[:, : inputs // GROUP]) for _ in range(2))
    row = _row(weight) * headroom
    rows = rows or max(1, CHUNK * GROUP // inputs)
    for at in range(0, outputs, rows):
        part = slice(at, at + rows)
        levels, scale, zero = round_(_in_steps(weight[part], row[part]))
        q[part], s[part], z[part] = levels, scale, zero * 16
    return Rounded(Four(q, s, z), row)


def _groups_apart(find: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Rounding:
    """Each group on its own, its pair by `find`."""

    def round_(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = rows.view(-1, GROUP).t().contiguous()
        s, z = find(v)
        return (
            _levels(v, s, z).t().reshape(rows.shape),
            s.view(len(rows), -1),
            z.view(len(rows), -1),
        )

    return round_


def _row(weight: Float[Tensor, "O I"]) -> Float[Tensor, " O"]:
    """What one step of each row's scales is worth: its widest group takes the largest, 255."""
    low, high = (end.float().div_(15) for end in weight.view(len(weight), -1, GROUP).aminmax(dim=2))
    return (high.clamp_(min=0) - low.clamp_(max=0)).amax(1) / 255


def _in_steps(weight: Float[Tensor, "O I"], row: Float[Tensor, " O"]) -> Float[Tensor, "O I"]:
    """Weights as multiples of their row's step: so that no square leaves float32, however large or small they are."""
    return (weight.float() / row[:, None]).masked_fill_(row[:, None] == 0, 0)


# Below weights are multiples of their row's step; a column is a group; s is 1 to 255 and z a multiple of 1/16.


def _levels(
    v: Float[Tensor, "#g N"], s: Float[Tensor, " N"], z: Float[Tensor, " N"]
) -> Float[Tensor, "#g N"]:
    return (v * s.reciprocal()).add_(z).round_().clamp_(0, 15)


def _pair(s: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The pair that bytes can hold nearest to a scale and a `zero`, the weight of level 0."""
    s = s.round().clamp_(1, 255)
    return s, (zero / s).mul_(-16).round_().clamp_(0, 255).div_(16)


def _error(q: Tensor, v: Tensor, s: Tensor, z: Tensor) -> Float[Tensor, " N"]:
    return (q - z).mul_(s).sub_(v).square_().sum(0)


def span(v: Float[Tensor, "32 N"]) -> tuple[Tensor, Tensor]:
    """Levels from the smallest to the largest weight, 0 among them."""
    low, high = _ends(v)
    return _pair((high - low) / 15, low)


def _ends(v: Tensor) -> tuple[Tensor, Tensor]:
    return v.amin(0).clamp_(max=0), v.amax(0).clamp_(min=0)


def search(v: Float[Tensor, "32 N"]) -> tuple[Tensor, Tensor]:
    """(scale, zero) of small squared error: of `span`, of STARTS, and of lines fitted to them."""
    total = v.sum(0)
    best = span(v)
    least = _error(_levels(v, *best), v, *best)

    def tried(s: Tensor, z: Tensor) -> Tensor:
        """The levels of a pair, which is kept where it is better than what was."""
        nonlocal least, best
        q = _levels(v, s, z)
        error = _error(q, v, s, z)
        better = error < least
        least = torch.where(better, error, least)
        best = (torch.where(better, s, best[0]), torch.where(better, z, best[1]))
        return q

    def fitted(q: Tensor) -> tuple[Tensor, Tensor]:
        """The line through levels and weights with the least squared error."""
        sum_q, sum_qq, sum_qv = q.sum(0), (q * q).sum(0), (q * v).sum(0)
        slope = (GROUP * sum_qv - sum_q * total) / (GROUP * sum_qq - sum_q * sum_q).clamp_(min=1)
        return _pair(slope, (total - slope * sum_q) / GROUP)

    low, high = _ends(v)
    for below, above in STARTS:
        first = _pair((high * above - low * below) / 15, low * below)
        tried(*fitted(tried(*first)))
    for _ in range(FITS):
        tried(*fitted(_levels(v, *best)))
    return best


def _inputs_in_turn(feedback: Float[Tensor, "I I"]) -> Rounding:
    """GPTQ: inputs are rounded one after the other, a group's pair is searched when its turn comes."""

    def round_(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest = rows.t().contiguous()
        inputs = len(rest)
        q, pairs = torch.empty_like(rest), []
        for start in range(0, inputs, COLUMNS):
            end = min(start + COLUMNS, inputs)
            errors = torch.empty_like(rest[start:end])
            for i in range(start, end):
                if i % GROUP == 0:
                    s, z = search(rest[i : i + GROUP])
                    pairs.append((s, z))
                q[i] = _levels(rest[i], s, z)
                errors[i - start] = error = (rest[i] - (q[i] - z) * s) / feedback[i, i]
                rest[i + 1 : end].addr_(feedback[i, i + 1 : end], error, alpha=-1)
            rest[end:].addmm_(feedback[start:end, end:].t(), errors, alpha=-1)
        scales, zeros = (torch.stack(side, 1) for side in zip(*pairs, strict=True))
        return q.t(), scales, zeros

    return round_


def _feedback(hessian: Float[Tensor, "I I"]) -> Float[Tensor, "I I"]:
    """The upper Cholesky factor of the inverse: row i says how those after it make an error at input i good."""
    mean = float(hessian.diagonal().mean()) or 1.0
    damping = DAMPING
    while True:
        damped = hessian / mean
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return upper
        damping *= 10

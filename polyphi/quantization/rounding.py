"""Rounding of weights to 4 bits with less error than round-to-nearest.

    w = row * s * (q - z / 16)              q from 0 to 15; s and z bytes per output and GROUP inputs; row float32

    four_bits(weight)                       # least squared error of each group
    four_bits(weight, hessian)              # least squared error of the products, for inputs like those of `hessian`

Without a Hessian every group's scale and zero are searched: from a few starts that clip the largest weights, levels
and their least-squares lines are computed in turn, and the best pair is used (on a CPU by kernels/rounding.cpp with
the same results). With a Hessian the weights that are rounded later compensate a group's errors, so that the products'
squared error is small (GPTQ, Frantar et al., 2022). Both are deterministic.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.kernels import rounding as kernel
from polyphi.kernels.linear import GROUP, Int4Weight

Rounding = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Rows of weights -> their levels, scales and zeros."""
STARTS = ((1.0, 0.9), (0.9, 1.0), (0.9, 0.8), (0.8, 0.9))
"""Shares of a group's smallest and largest weight that the levels span at first. One end is clipped more than the
other: on normal weights these four leave an error of 7.1 %, four with equal ends 7.2 %, sixteen more 7.0 %, and the
nearest levels over the whole span 7.8 %."""
FITS = 2
"""Iterations of the least-squares fit from the best start."""
CHUNK_ROWS = 4096
"""Groups that are searched at once, so that they stay in the CPU's cache."""
DAMPING = 0.01
"""Share of its mean that is added to the Hessian's diagonal."""
COLUMNS = 128
"""Inputs after which errors are propagated to all later inputs."""
HEADROOM = 1.25
"""Factor by which a group's range may grow while errors are propagated to it."""


class Rounded(NamedTuple):
    """A weight in 4 bits with its `row`."""

    four: Int4Weight
    row: Float[Tensor, " O"]

    def weight(self) -> Float[Tensor, "O I"]:
        """The dequantized weight, in float32."""
        q, s, z = self.four
        scale = self.row[:, None] * s.float()
        steps = q.view(*s.shape, GROUP) - z[:, :, None].float() / 16
        return (scale[:, :, None] * steps).view(q.shape)


@torch.no_grad()
def four_bits(weight: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"] | None = None) -> Rounded:
    """`weight` in 4 bits: no group's squared error is larger than that of `nearest`. With `hessian`, the sum of x x'
    over inputs x, the products' error is minimized instead, and a group's own error may be larger. Raises ValueError
    for values that aren't finite, and for shapes that don't fit."""
    _check(weight, hessian)
    if hessian is None and kernel.supports_search(weight):
        row = _row(weight)
        return Rounded(kernel.search(weight, row, STARTS, FITS), row)
    if hessian is None:
        return _by_rows(weight, _by_groups(search))
    return _by_rows(weight, _gptq(_feedback(hessian.float())), CHUNK_ROWS, HEADROOM)


@torch.no_grad()
def nearest(weight: Float[Tensor, "O I"]) -> Rounded:
    """Round-to-nearest: levels from each group's smallest to its largest weight, with 0 in their range."""
    _check(weight, None)
    return _by_rows(weight, _by_groups(span))


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
                f"the {name} to round hold NaN or infinity, so the model can't answer; check the checkpoint"
            )


def _by_rows(weight: Tensor, round_: Rounding, rows: int = 0, headroom: float = 1.0) -> Rounded:
    """Round chunks of `rows` rows with `round_`; by default as many as have CHUNK_ROWS groups."""
    outputs, inputs = weight.shape
    q = torch.empty(outputs, inputs, dtype=torch.uint8, device=weight.device)
    s, z = (torch.empty_like(q[:, : inputs // GROUP]) for _ in range(2))
    row = _row(weight) * headroom
    rows = rows or max(1, CHUNK_ROWS * GROUP // inputs)
    for at in range(0, outputs, rows):
        part = slice(at, at + rows)
        levels, scale, zero = round_(_in_steps(weight[part], row[part]))
        q[part], s[part], z[part] = levels, scale, zero * 16
    return Rounded(Int4Weight(q, s, z), row)


def _by_groups(find: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Rounding:
    """A rounding that treats groups independently, with scale and zero from `find`."""

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
    """The unit of each row's scales: the group with the widest range has the largest scale, 255."""
    low, high = (end.float().div_(15) for end in weight.view(len(weight), -1, GROUP).aminmax(dim=2))
    return (high.clamp_(min=0) - low.clamp_(max=0)).amax(1) / 255


def _in_steps(weight: Float[Tensor, "O I"], row: Float[Tensor, " O"]) -> Float[Tensor, "O I"]:
    """Weights as multiples of their row's unit, so that no square exceeds the range of float32."""
    return (weight.float() / row[:, None]).masked_fill_(row[:, None] == 0, 0)


# Below weights are multiples of their row's unit; a column is a group; s is 1 to 255 and z a multiple of 1/16.


def _levels(
    v: Float[Tensor, "*g N"], s: Float[Tensor, " N"], z: Float[Tensor, " N"]
) -> Float[Tensor, "*g N"]:
    return (v * s.reciprocal()).add_(z).round_().clamp_(0, 15)


def _pair(s: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The representable (s, z) nearest to a scale and to `zero`, the weight of level 0."""
    s = s.round().clamp_(1, 255)
    return s, (zero / s).mul_(-16).round_().clamp_(0, 255).div_(16)


def _error(q: Tensor, v: Tensor, s: Tensor, z: Tensor) -> Float[Tensor, " N"]:
    return (q - z).mul_(s).sub_(v).square_().sum(0)


def span(v: Float[Tensor, "32 N"]) -> tuple[Tensor, Tensor]:
    """(scale, zero) of levels from the smallest to the largest weight, with 0 in their range."""
    low, high = _ends(v)
    return _pair((high - low) / 15, low)


def _ends(v: Tensor) -> tuple[Tensor, Tensor]:
    return v.amin(0).clamp_(max=0), v.amax(0).clamp_(min=0)


def search(v: Float[Tensor, "32 N"]) -> tuple[Tensor, Tensor]:
    """(scale, zero) with the least squared error among `span`, STARTS, and least-squares fits to these."""
    total = v.sum(0)
    best = span(v)
    least = _error(_levels(v, *best), v, *best)

    def evaluate(s: Tensor, z: Tensor) -> Tensor:
        """The levels of a pair, which replaces `best` where it is better."""
        nonlocal least, best
        q = _levels(v, s, z)
        error = _error(q, v, s, z)
        better = error < least
        least = torch.where(better, error, least)
        best = (torch.where(better, s, best[0]), torch.where(better, z, best[1]))
        return q

    def fit(q: Tensor) -> tuple[Tensor, Tensor]:
        """The pair of the least-squares line of weights over levels."""
        sum_q, sum_qq, sum_qv = q.sum(0), (q * q).sum(0), (q * v).sum(0)
        slope = (GROUP * sum_qv - sum_q * total) / (GROUP * sum_qq - sum_q * sum_q).clamp_(min=1)
        return _pair(slope, (total - slope * sum_q) / GROUP)

    low, high = _ends(v)
    for below, above in STARTS:
        first = _pair((high * above - low * below) / 15, low * below)
        evaluate(*fit(evaluate(*first)))
    for _ in range(FITS):
        evaluate(*fit(_levels(v, *best)))
    return best


def _gptq(feedback: Float[Tensor, "I I"]) -> Rounding:
    """GPTQ: rounds input by input; a group's pair is searched before its first input."""

    def round_(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = rows.t().contiguous()
        inputs = len(v)
        q, pairs = torch.empty_like(v), []
        for start in range(0, inputs, COLUMNS):
            end = min(start + COLUMNS, inputs)
            errors = torch.empty_like(v[start:end])
            for i in range(start, end):
                if i % GROUP == 0:
                    s, z = search(v[i : i + GROUP])
                    pairs.append((s, z))
                q[i] = _levels(v[i], s, z)
                errors[i - start] = error = (v[i] - (q[i] - z) * s) / feedback[i, i]
                v[i + 1 : end].addr_(feedback[i, i + 1 : end], error, alpha=-1)
            v[end:].addmm_(feedback[start:end, end:].t(), errors, alpha=-1)
        scales, zeros = (torch.stack(side, 1) for side in zip(*pairs, strict=True))
        return q.t(), scales, zeros

    return round_


def _feedback(hessian: Float[Tensor, "I I"]) -> Float[Tensor, "I I"]:
    """The upper Cholesky factor of the inverse: row i has the factors by which later inputs compensate an error
    at input i."""
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

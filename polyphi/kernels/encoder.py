"""Pieces of the encoders: attention over bfloat16 (encoder_attention.cpp), and what stands between products of 8 bits
(encoder.cpp).

>>> y = attention(q, k, v, heads, queries, keys)            # [T H*d] each, segment after segment
>>> x, rows = norm(x, weight, bias, eps, raw)               # x + raw, its norm in 8 bits
>>> rows = activate("gelu", raw)

A product is `Raw`: as an int8 kernel leaves it, without the scales of its rows and without bias. What the next one
multiplies is `Rows`: bytes q + 128 and a scale per row. So between two products memory is read and written once.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from polyphi.kernels.native import count, fits, function, number, pointer, pool, real

LANES = 16
"""Columns of all rows are a multiple of so many."""
ABREAST = 4
"""Bands that a convolution makes at once."""
ACTIVATIONS = ("none", "relu", "silu", "gelu", "gated")
"""What `activate` knows: GELU in its tanh form; gated is value * silu(gate), the two beside each other."""


class Rows(NamedTuple):
    """Activations (q - 128) * scale."""

    q: UInt8[Tensor, "T D"]
    scale: Float[Tensor, " T"]


class Raw(NamedTuple):
    """A product y * scale + bias, of which `y` is there, in bfloat16; scale and bias are float32, None where nothing is
    owed."""

    y: Float[Tensor, "T D"]
    scale: Float[Tensor, " T"] | None = None
    bias: Float[Tensor, " D"] | None = None

    def addresses(self) -> tuple[int | None, ...]:
        """As the kernels take it."""
        assert self.y.dtype == torch.bfloat16 and self.y.stride(1) == 1
        return self.y.data_ptr(), self.y.stride(0), _at(self.scale), _at(self.bias)


def attends(weight: Tensor) -> bool:
    """Whether `attention` can replace torch's for a model whose weights are like this one: bfloat16 without gradients,
    on a CPU that has kernels."""
    return weight.dtype == torch.bfloat16 and fits(weight)


_RAW = (pointer, count, pointer, pointer)
_OUT = (pointer, pointer, pointer)
_POOL = (pointer, number)


@cache
def _norm() -> Callable[..., None]:
    where = (real, pointer, pointer, pointer, real, *_OUT, count, count)
    return function("polyphi_layer_norm", number, pointer, *_RAW, *where, *_POOL)


@cache
def _activate() -> Callable[..., None]:
    return function("polyphi_activate", number, number, *_RAW, *_OUT, count, count, *_POOL)


@cache
def _causal() -> Callable[..., None]:
    return function(
        "polyphi_causal", number, *[pointer] * 4, count, *_OUT[:2], count, count, *_POOL
    )


@cache
def _strided() -> Callable[..., None]:
    first = (pointer, count, pointer, pointer)
    rest = (pointer, pointer, pointer, *_OUT, count, count, count)
    return function("polyphi_strided", number, *_RAW, *first, *rest, *_POOL)


def _pool() -> tuple[int | None, int]:
    return pool(), torch.get_num_threads()


def _rows(count: int, width: int) -> Rows:
    return Rows(torch.empty(count, width, dtype=torch.uint8), torch.empty(count))


def norm(
    x: Float[Tensor, "T D"],
    weight: Float[Tensor, " D"],
    bias: Float[Tensor, " D"],
    eps: float,
    raw: Raw | None = None,
    factor: float = 1.0,
    isa: int = -1,
) -> tuple[Float[Tensor, "T D"], Rows]:
    """x + factor * raw in bfloat16, as x is, and LayerNorm of that in 8 bits. `isa` here and below is for tests: a
    place in `PATHS`."""
    out = _rows(*x.shape)
    total = x if raw is None else torch.empty_like(x)
    owed = (None, 0, None, None) if raw is None else raw.addresses()
    _norm()(
        isa,
        x.data_ptr(),
        *owed,
        factor,
        total.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        eps,
        *(t.data_ptr() for t in out),
        None,
        *x.shape,
        *_pool(),
    )
    return total, out


def add(
    x: Float[Tensor, "T D"],
    raw: Raw,
    factor: float = 1.0,
    layer_norm: tuple[Tensor, Tensor, float] | None = None,
    isa: int = -1,
) -> Float[Tensor, "T D"]:
    """x + factor * raw in bfloat16, as x is; LayerNorm of that where its weight, bias and epsilon are given."""
    y = torch.empty_like(x)
    weight, bias, eps = layer_norm or (None, None, 0.0)
    _norm()(
        isa,
        x.data_ptr(),
        *raw.addresses(),
        factor,
        y.data_ptr(),
        _at(weight),
        _at(bias),
        eps,
        None,
        None,
        None if layer_norm is None else y.data_ptr(),
        *x.shape,
        *_pool(),
    )
    return y


def activate(kind: str, raw: Raw, isa: int = -1) -> Rows:
    """An activation of a product, in 8 bits."""
    width = raw.y.shape[1] // (2 if kind == "gated" else 1)
    out = _rows(len(raw.y), width)
    _activated(kind, raw, (*(t.data_ptr() for t in out), None), width, isa)
    return out


def finished(kind: str, raw: Raw, isa: int = -1) -> Float[Tensor, "T D"]:
    """An activation of a product, in bfloat16."""
    width = raw.y.shape[1] // (2 if kind == "gated" else 1)
    y = torch.empty(len(raw.y), width, dtype=torch.bfloat16)
    _activated(kind, raw, (None, None, y.data_ptr()), width, isa)
    return y


def _activated(kind: str, raw: Raw, out: tuple[int | None, ...], width: int, isa: int) -> None:
    number_ = ACTIVATIONS.index(kind)
    _activate()(isa, number_, *raw.addresses(), *out, len(raw.y), width, *_pool())


def causal(
    x: Float[Tensor, "T D"],
    taps: Float[Tensor, "W D"],
    bias: Float[Tensor, " D"],
    age: Int[Tensor, " T"],
    isa: int = -1,
) -> Rows:
    """Each channel of x (bfloat16) over its own last W rows, none of which lies more than `age` back; the present row's
    tap is the last. In 8 bits."""
    out = _rows(*x.shape)
    given = [t.data_ptr() for t in (x, taps, bias, age)]
    _causal()(isa, *given, len(taps), *(t.data_ptr() for t in out), *x.shape, *_pool())
    return out


def strided(
    given: Raw | tuple[Float[Tensor, "F M"], Float[Tensor, "9 D"], Float[Tensor, " D"]],
    heard: Bool[Tensor, " T"],
    weight: Float[Tensor, "9 D"],
    bias: Float[Tensor, " D"],
    eight_bits: bool = True,
    isa: int = -1,
) -> Rows | Float[Tensor, "T D"]:
    """A depthwise convolution 3 x 3 of stride 2 and padding 1 behind relu, in 8 bits or bfloat16, a row for each time
    and band: halves of what comes in, rounded up. That is a product, T times its bands; or a convolution of the same
    kind over one channel, of float32 (frames, weight, bias). Times where `heard` is False are blank to it."""
    times, width = len(heard), weight.shape[1]
    if isinstance(given, Raw):
        bands, owed = len(given.y) // times, given.addresses()
        first: tuple[int | None, ...] = (None, 0, None, None)
    else:
        frames, *convolution = given
        assert -(-len(frames) // 2) == times
        bands, owed = -(-frames.shape[1] // 2), (None, 0, None, None)
        # a blank one before; behind, as many as whole vectors of results look at
        behind = 2 * (-(-bands // ABREAST) * ABREAST) - frames.shape[1]
        frames = F.pad(frames, (1, behind, 1, 1))
        first = (frames.data_ptr(), frames.stride(0), *(t.data_ptr() for t in convolution))
    count = -(-times // 2) * -(-bands // 2)
    out = _rows(count, width) if eight_bits else torch.empty(count, width, dtype=torch.bfloat16)
    _strided()(
        isa,
        *owed,
        *first,
        heard.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        *((_at(out.q), _at(out.scale), None) if isinstance(out, Rows) else (None, None, _at(out))),
        times,
        bands,
        width,
        *_pool(),
    )
    return out


@cache
def _attention() -> Callable[..., None]:
    sizes = (count, count, count, pointer, count)
    start = (number, number, *[pointer] * 3, count)
    return function("polyphi_attention", *start, *[pointer] * 8, *sizes, *_POOL)


def attention(
    q: Float[Tensor, "T HD"],
    k: Float[Tensor, "T HD"],
    v: Float[Tensor, "T HD"],
    heads: int,
    queries: Sequence[int],
    keys: Sequence[int],
    distances: Float[Tensor, "H L"] | None = None,
    scale: Float[Tensor, " T"] | None = None,
    biases: Sequence[Tensor] | None = None,
    isa: int = -1,
    by_pairs: bool = True,
) -> Float[Tensor, "T HD"]:
    """Softmax attention in bfloat16 within segments of `queries` rows each, of which all see the first `keys` rows (no
    rows: the result is 0). `distances` [H 2L-1], for segments of up to L rows, are added to the scaled scores by
    (key - query). `scale` and `biases` (three) are what q, k and v owe, as `Raw` does. `isa` and `by_pairs` are for
    tests: an index in `PATHS`, and False for sums of float32 where the CPU has products of bfloat16."""
    stride = q.stride(0)
    assert all(t.dtype == torch.bfloat16 and t.stride() == (stride, 1) for t in (q, k, v))
    y = torch.empty(q.shape, dtype=q.dtype)
    sizes = torch.tensor([queries, keys])
    starts = sizes[0].cumsum(0) - sizes[0]
    longest = 0
    if distances is not None:
        distances = distances.float().contiguous()
        longest = (distances.shape[1] + 1) // 2
    _attention()(
        isa,
        int(by_pairs),
        *(t.data_ptr() for t in (q, k, v)),
        stride,
        _at(scale),
        *(_at(bias) for bias in biases or (None, None, None)),
        y.data_ptr(),
        starts.data_ptr(),
        sizes[0].data_ptr(),
        sizes[1].data_ptr(),
        len(queries),
        heads,
        q.shape[1] // heads,
        _at(distances),
        longest,
        *_pool(),
    )
    return y


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

"""Kernels of the encoders: attention in bfloat16 (encoder_attention.cpp), and the operations between int8 products
(encoder.cpp).

>>> y = attention(q, k, v, heads, queries, keys)            # [T H*d] each, segments concatenated
>>> x, rows = norm(x, weight, bias, eps, raw)               # x + raw, and its norm as int8 rows
>>> rows = activate("gelu", raw)

A product is a `Raw`: the output of an int8 kernel before the scales of its rows and the bias. The input of the next
product is a `QuantizedRows`: bytes q + 128 and a scale per row. Between two products memory is read and written once.
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
"""The number of columns must be a multiple of this."""
ABREAST = 4
"""Bands that a convolution computes at once."""
ACTIVATIONS = ("none", "relu", "silu", "gelu", "gated")
"""Names for `activate`: GELU in its tanh form; gated is value * silu(gate) of rows [value, gate]."""


class QuantizedRows(NamedTuple):
    """Quantized activations: (q - 128) * scale."""

    q: UInt8[Tensor, "T D"]
    scale: Float[Tensor, " T"]


class Raw(NamedTuple):
    """A product y * scale + bias with `y` in bfloat16, and a float32 scale and bias that are not applied yet
    (or None)."""

    y: Float[Tensor, "T D"]
    scale: Float[Tensor, " T"] | None = None
    bias: Float[Tensor, " D"] | None = None

    def addresses(self) -> tuple[int | None, ...]:
        """The arguments of the kernels."""
        assert self.y.dtype == torch.bfloat16 and self.y.stride(1) == 1
        return self.y.data_ptr(), self.y.stride(0), _address(self.scale), _address(self.bias)


def supports_attention(weight: Tensor) -> bool:
    """Whether `attention` can replace torch's for a model whose weights are like this one: bfloat16 without gradients,
    on a CPU that has kernels."""
    return weight.dtype == torch.bfloat16 and fits(weight)


_RAW = (pointer, count, pointer, pointer)
_OUT = (pointer, pointer, pointer)
_POOL = (pointer, number)


@cache
def _norm() -> Callable[..., None]:
    arguments = (real, pointer, pointer, pointer, real, *_OUT, count, count)
    return function("polyphi_layer_norm", number, pointer, *_RAW, *arguments, *_POOL)


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


def _rows(count: int, width: int) -> QuantizedRows:
    return QuantizedRows(torch.empty(count, width, dtype=torch.uint8), torch.empty(count))


def norm(
    x: Float[Tensor, "T D"],
    weight: Float[Tensor, " D"],
    bias: Float[Tensor, " D"],
    eps: float,
    raw: Raw | None = None,
    factor: float = 1.0,
    isa: int = -1,
) -> tuple[Float[Tensor, "T D"], QuantizedRows]:
    """x + factor * raw in bfloat16 (the dtype of x), and its LayerNorm as int8 rows. `isa` here and below is for tests:
    an index in `PATHS`."""
    out = _rows(*x.shape)
    total = x if raw is None else torch.empty_like(x)
    addend = (None, 0, None, None) if raw is None else raw.addresses()
    _norm()(
        isa,
        x.data_ptr(),
        *addend,
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
    """x + factor * raw in bfloat16 (the dtype of x), or with `layer_norm` (weight, bias, epsilon) its LayerNorm."""
    y = torch.empty_like(x)
    weight, bias, eps = layer_norm or (None, None, 0.0)
    _norm()(
        isa,
        x.data_ptr(),
        *raw.addresses(),
        factor,
        y.data_ptr(),
        _address(weight),
        _address(bias),
        eps,
        None,
        None,
        None if layer_norm is None else y.data_ptr(),
        *x.shape,
        *_pool(),
    )
    return y


def activate(activation: str, raw: Raw, isa: int = -1) -> QuantizedRows:
    """The `activation` of a product, as int8 rows."""
    width = raw.y.shape[1] // (2 if activation == "gated" else 1)
    out = _rows(len(raw.y), width)
    _run_activation(activation, raw, (*(t.data_ptr() for t in out), None), width, isa)
    return out


def activate_bf16(activation: str, raw: Raw, isa: int = -1) -> Float[Tensor, "T D"]:
    """The `activation` of a product, in bfloat16."""
    width = raw.y.shape[1] // (2 if activation == "gated" else 1)
    y = torch.empty(len(raw.y), width, dtype=torch.bfloat16)
    _run_activation(activation, raw, (None, None, y.data_ptr()), width, isa)
    return y


def _run_activation(name: str, raw: Raw, out: tuple[int | None, ...], width: int, isa: int) -> None:
    index = ACTIVATIONS.index(name)
    _activate()(isa, index, *raw.addresses(), *out, len(raw.y), width, *_pool())


def causal(
    x: Float[Tensor, "T D"],
    taps: Float[Tensor, "W D"],
    bias: Float[Tensor, " D"],
    age: Int[Tensor, " T"],
    isa: int = -1,
) -> QuantizedRows:
    """A causal depthwise convolution of x (bfloat16) over the last W rows, at most `age` rows back; the current row's
    tap is the last. The result is int8 rows."""
    out = _rows(*x.shape)
    inputs = [t.data_ptr() for t in (x, taps, bias, age)]
    _causal()(isa, *inputs, len(taps), *(t.data_ptr() for t in out), *x.shape, *_pool())
    return out


def strided(
    source: Raw | tuple[Float[Tensor, "F M"], Float[Tensor, "9 D"], Float[Tensor, " D"]],
    occupied: Bool[Tensor, " T"],
    weight: Float[Tensor, "9 D"],
    bias: Float[Tensor, " D"],
    eight_bits: bool = True,
    isa: int = -1,
) -> QuantizedRows | Float[Tensor, "TB D"]:
    """A depthwise 3 x 3 convolution of stride 2 and padding 1 after relu, as int8 rows or in bfloat16, a row for each
    output time and band (half as many as in the input, rounded up). `source` is a product with T * bands rows, or
    float32 (frames, weight, bias) of a first convolution of the same form over one channel. Input times whose
    `occupied` is False are zero."""
    times, width = len(occupied), weight.shape[1]
    if isinstance(source, Raw):
        bands, product = len(source.y) // times, source.addresses()
        first: tuple[int | None, ...] = (None, 0, None, None)
    else:
        frames, *convolution = source
        assert -(-len(frames) // 2) == times
        bands, product = -(-frames.shape[1] // 2), (None, 0, None, None)
        # One zero band before, and as many after as whole vectors of results read.
        after = 2 * (-(-bands // ABREAST) * ABREAST) - frames.shape[1]
        frames = F.pad(frames, (1, after, 1, 1))
        first = (frames.data_ptr(), frames.stride(0), *(t.data_ptr() for t in convolution))
    count = -(-times // 2) * -(-bands // 2)
    out = _rows(count, width) if eight_bits else torch.empty(count, width, dtype=torch.bfloat16)
    _strided()(
        isa,
        *product,
        *first,
        occupied.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        *(
            (_address(out.q), _address(out.scale), None)
            if isinstance(out, QuantizedRows)
            else (None, None, _address(out))
        ),
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
    """Softmax attention in bfloat16 within segments of `queries` rows each, which attend to the segment's first `keys`
    rows (the result is 0 without keys). `distances` [H 2L-1], for segments of up to L rows, are added to the scaled
    logits by (key - query). `scale` and three `biases` are not yet applied to q, k and v, as in `Raw`. `isa` and
    `by_pairs` are for tests: an index in `PATHS`, and False to use float32 on a CPU with bfloat16 products."""
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
        _address(scale),
        *(_address(bias) for bias in biases or (None, None, None)),
        y.data_ptr(),
        starts.data_ptr(),
        sizes[0].data_ptr(),
        sizes[1].data_ptr(),
        len(queries),
        heads,
        q.shape[1] // heads,
        _address(distances),
        longest,
        *_pool(),
    )
    return y


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

"""Encoders with int8 linears on a CPU with our kernels: the operations between two products are one pass over memory
(polyphi/kernels/encoder), which adds, normalizes, gates or convolves, and rounds to int8 for the next product.

    product of the sums -> * scales + bias -> residual -> norm -> 8 bits -> product

Each class replaces a module of siglip.py or conformer.py, computes the same, and has the replaced one as `plain`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyphi.kernels import encoder as native
from polyphi.kernels.encoder import QuantizedRows, Raw
from polyphi.model import conformer, siglip
from polyphi.model.config import AudioConfig
from polyphi.model.multimodal import PhiModel
from polyphi.model.subsampling import Subsampling
from polyphi.prepared.conformer import PackedWindows
from polyphi.prepared.siglip import PackedPatches
from polyphi.prepared.subsampling import convolutions, in_parts, taps

MLP_PATCHES = 1024
"""Patches of one pass through an MLP: the activations between its linears stay in a cache and reuse memory (glibc
returns blocks over 32 MB to the system, which took a third of the product's time for the 6,208 patches of 1280 x
720)."""


class RowProduct(Protocol):
    """A product of an int8 weight and activations that are rounded already."""

    def rows(self, rows: QuantizedRows) -> Raw:
        """The product in bfloat16, without bias."""
        ...


Make = Callable[[nn.Module], RowProduct]
"""Returns the product of a quantized linear, or of a convolution of width 1."""


class Int8Linear:
    """A linear with bias, its weight in int8."""

    def __init__(self, linear: Any, make: Make) -> None:
        self.product = make(linear)
        self.bias = linear.bias.float()

    def __call__(self, rows: QuantizedRows) -> Raw:
        return self.product.rows(rows)._replace(bias=self.bias)


class Norm:
    """A LayerNorm with float32 parameters."""

    def __init__(self, layer_norm: nn.LayerNorm) -> None:
        self.weight, self.bias = layer_norm.weight.float(), layer_norm.bias.float()
        self.eps = layer_norm.eps

    def __call__(
        self, x: Tensor, raw: Raw | None = None, factor: float = 1.0
    ) -> tuple[Tensor, QuantizedRows]:
        """x + factor * raw, and its norm in int8."""
        return native.norm(x, self.weight, self.bias, self.eps, raw, factor)


class Int8Attention:
    """The projections q, k and v of the same rows, attention, and the output projection."""

    def __init__(self, linears: Sequence[nn.Module], heads: int, make: Make) -> None:
        *self.qkv, self.out = (Int8Linear(linear, make) for linear in linears)
        self.heads = heads

    def __call__(
        self,
        rows: QuantizedRows,
        queries: Sequence[int],
        keys: Sequence[int],
        distances: Tensor | None = None,
    ) -> Raw:
        q, k, v = (linear(rows) for linear in self.qkv)
        biases = [linear.bias for linear in self.qkv]
        x = native.attention(q.y, k.y, v.y, self.heads, queries, keys, distances, q.scale, biases)
        return self.out(native.activate("none", Raw(x)))


# ---------------------------------------------------------------------- SigLIP


class VisionLayer(nn.Module):
    """A layer of the vision tower over packed patches."""

    def __init__(self, plain: siglip.SiglipLayer, make: Make) -> None:
        super().__init__()
        self.plain = plain
        a = plain.self_attn
        self.norms = Norm(plain.layer_norm1), Norm(plain.layer_norm2)
        self.attention = Int8Attention((a.q_proj, a.k_proj, a.v_proj, a.out_proj), a.heads, make)
        self.up, self.down = Int8Linear(plain.mlp.fc1, make), Int8Linear(plain.mlp.fc2, make)

    def forward(self, x: Float[Tensor, "*n D"], keys: Any) -> Float[Tensor, "*n D"]:
        if not isinstance(keys, PackedPatches):
            return self.plain(x, keys)
        _, rows = self.norms[0](x)
        x, rows = self.norms[1](x, self.attention(rows, keys.queries, keys.keys))
        parts = zip(x.split(MLP_PATCHES), *(t.split(MLP_PATCHES) for t in rows), strict=True)
        return torch.cat([self._mlp(part, QuantizedRows(*normed)) for part, *normed in parts])

    def _mlp(self, x: Float[Tensor, "n D"], rows: QuantizedRows) -> Float[Tensor, "n D"]:
        return native.add(x, self.down(native.activate("gelu", self.up(rows))))


# ---------------------------------------------------------------------- Conformer


class Int8FeedForward:
    """The two linears of a feed-forward module, without the norm before them."""

    def __init__(self, plain: conformer.ConformerFeedForward, make: Make) -> None:
        self.norm = Norm(plain.layer_norm)
        self.up, self.down = (
            Int8Linear(plain.value_gate_proj, make),
            Int8Linear(plain.down_proj, make),
        )

    def __call__(self, rows: QuantizedRows) -> Raw:
        return self.down(native.activate("gated", self.up(rows)))


class Convolution:
    """The convolution module, without the norm before it."""

    def __init__(self, plain: conformer.ConvModule, make: Make) -> None:
        glu, conv = plain.glu, plain.dw_sep_conv_1d
        self.norm = Norm(plain.layer_norm)
        self.up = Int8Linear(glu.ext_pw_conv_1d, make)
        self.up.bias = self.up.bias + torch.cat([glu.b1, glu.b2], 1).flatten().float()
        self.taps = conv.dw_conv.weight[:, 0].t().float().contiguous()
        self.bias = conv.dw_conv.bias.float()
        self.middle = Int8Linear(conv.pw_conv, make)
        self.down = Int8Linear(plain.ext_pw_conv_1d, make)

    def __call__(self, rows: QuantizedRows, age: Tensor) -> Raw:
        gated = native.activate_bf16("gated", self.up(rows))
        rows = native.causal(gated, self.taps, self.bias, age)
        return self.down(native.activate("silu", self.middle(rows)))


class AudioBlock(nn.Module):
    """A block of the Conformer."""

    def __init__(self, plain: conformer.ConformerBlock, make: Make) -> None:
        super().__init__()
        self.plain = plain
        a = plain.self_attn
        self.early = Int8FeedForward(plain.feed_forward_in, make)
        self.norm = Norm(plain.layer_norm_att)
        self.attention = Int8Attention((a.q_proj, a.k_proj, a.v_proj, a.o_proj), a.heads, make)
        self.conv = Convolution(plain.conv, make)
        self.late = Int8FeedForward(plain.feed_forward_out, make)
        self.last = Norm(plain.layer_norm)

    def forward(self, x: Float[Tensor, "A D"], windows: conformer.Windows) -> Float[Tensor, "A D"]:
        if not isinstance(windows, PackedWindows):
            return self.plain(x, windows)
        sizes = windows.lengths
        _, rows = self.early.norm(x)
        x, rows = self.norm(x, self.early(rows), 0.5)
        x, rows = self.conv.norm(x, self.attention(rows, sizes, sizes, windows.distances))
        x, rows = self.late.norm(x, self.conv(rows, windows.age))
        last = self.last
        return native.add(x, self.late(rows), 0.5, (last.weight, last.bias, last.eps))


class Int8Subsampling(nn.Module):
    """The convolutions before the blocks, each depthwise one in one pass with the operation before it."""

    def __init__(self, plain: Subsampling, make: Make) -> None:
        super().__init__()
        self.plain = plain
        _, _, up, _, down = convolutions(plain)
        self.taps = taps(plain)
        self.up, self.down = Int8Linear(up, make), Int8Linear(down, make)
        self.last = Int8Linear(plain.out, make)

    @property
    def out(self) -> nn.Linear:
        return self.plain.out

    def forward(self, mels: Float[Tensor, "F M"], lengths: Sequence[int]) -> Float[Tensor, "A D"]:
        if torch.is_grad_enabled():
            return self.plain(mels, lengths)
        linears = (self.up, self.down, self._last)
        return in_parts(mels, lengths, self.taps, linears, eight_bits=True)

    def _last(self, x: Float[Tensor, "A I"]) -> Float[Tensor, "A D"]:
        return native.activate_bf16("none", self.last(native.activate("none", Raw(x))))


def fuse(model: PhiModel, make: Make) -> None:
    """Replace the modules of a model's encoders by this file's classes if their kernels support them: in bfloat16, with
    fitting sizes. The vision tower's last layer stays, since the multimodal model doesn't use it."""
    for tower in model.towers.values():
        encoder = tower.encoder
        if isinstance(encoder, siglip.SiglipEncoder) and _fits(encoder):
            for i, layer in enumerate(encoder.layers[:-1]):
                assert isinstance(layer, siglip.SiglipLayer)
                encoder.layers[i] = VisionLayer(layer, make)
        elif isinstance(encoder, conformer.ConformerEncoder) and _fits(encoder):
            modules: Any = encoder
            for i, block in enumerate(modules.blocks):
                modules.blocks[i] = AudioBlock(block, make)
            modules.subsampling = Int8Subsampling(modules.subsampling, make)


def _fits(encoder: siglip.SiglipEncoder | conformer.ConformerEncoder) -> bool:
    c, weight = encoder.config, next(encoder.parameters())
    widths = [c.hidden_size, c.intermediate_size]
    if isinstance(c, AudioConfig):
        middle = c.ext_pw_out_channel, c.depthwise_separable_out_channel
        widths += [*middle, c.nemo_conv_channels]
    fit = all(width % native.LANES == 0 for width in widths)
    return fit and native.supports_attention(weight)

"""The language model: 32 blocks of grouped-query attention and a gated MLP over packed tokens (report 2.1).

    x = x + o_proj(attention(rms(x)))
    x = x + down_proj(up * silu(gate))          [gate | up] = gate_up_proj(rms(x))

No biases, no norm on queries or keys; the head is the embedding, transposed. Linears are stored fused, as in the
public checkpoints: query, key, value rows in `qkv_proj`, gate rows before up rows in `gate_up_proj`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi import kernels
from polyphi.batch import Batch
from polyphi.kernels import blocks
from polyphi.model.attention import KVCache, packed_attention, working_dtype
from polyphi.model.config import AdapterConfig, DecoderConfig
from polyphi.model.linear import product
from polyphi.model.lora import LoraLinear, Route, routes
from polyphi.model.rope import LongRope, rotate


class Head(Protocol):
    """A separate copy of the tied head in a quantized or inference-only model (`quantize.py`)."""

    shape: tuple[int, int]

    def __call__(self, x: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]: ...

    def rows(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """The embeddings of token ids, which are rows of the head, in float32."""
        ...

    def input_grad(self, y: Float[Tensor, "T V"]) -> Float[Tensor, "T D"]:
        """The gradient of the hidden states for a gradient of their logits."""
        ...


@dataclass(frozen=True)
class ForwardContext:
    """Inputs that all layers of one forward share."""

    cos: Float[Tensor, "T 1 pairs"]
    sin: Float[Tensor, "T 1 pairs"]
    routes: Sequence[Route]
    cu_seqlens: Sequence[int]
    cache: KVCache | None


class RMSNorm(nn.Module):
    """x / rms(x), computed in float32 and rounded back to the input's type *before* the weight multiplies it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        if kernels.fits(x, self.weight):
            return blocks.rms_norm(x, self.weight, self.eps)
        # With the weight as an argument, the fused function would multiply by it in float32 before rounding.
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


class Attention(nn.Module):
    """Grouped-query attention: `num_attention_heads` query heads over `num_key_value_heads` keys and values."""

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = LoraLinear(config.hidden_size, width, adapters)
        self.o_proj = LoraLinear(self.heads * self.head_dim, config.hidden_size, adapters)

    def forward(
        self, x: Float[Tensor, "T D"], shared: ForwardContext, layer: int
    ) -> Float[Tensor, "T D"]:
        heads = self.attend(self.qkv_proj(x, shared.routes), shared, layer)
        return self.o_proj(heads, shared.routes)

    def attend(
        self, qkv: Float[Tensor, "T Q"], shared: ForwardContext, layer: int
    ) -> Float[Tensor, "T H"]:
        """The concatenated outputs of all heads, from concatenated queries, keys and values."""
        qkv = qkv.view(len(qkv), -1, self.head_dim)
        rotated, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        q, k = rotate(rotated, shared.cos, shared.sin).split((self.heads, self.kv_heads), dim=1)
        if shared.cache is None:
            out = packed_attention(q, k, v, shared.cu_seqlens)
        else:
            out = shared.cache.attend(layer, q, k, v, shared.cu_seqlens)
        return out.reshape(len(qkv), -1)


class MLP(nn.Module):
    """down(up * silu(gate)), gate first in the fused projection."""

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.gate_up_proj = LoraLinear(config.hidden_size, 2 * config.intermediate_size, adapters)
        self.down_proj = LoraLinear(config.intermediate_size, config.hidden_size, adapters)

    def forward(self, x: Float[Tensor, "T D"], shared: ForwardContext) -> Float[Tensor, "T D"]:
        return self.down_proj(swiglu(self.gate_up_proj(x, shared.routes)), shared.routes)


def swiglu(x: Float[Tensor, "T I2"]) -> Float[Tensor, "T I"]:
    """up * silu(gate), from gate and up concatenated."""
    if kernels.fits(x):
        return blocks.swiglu(x)
    gate, up = x.chunk(2, dim=-1)
    return up * F.silu(gate)


class Layer(nn.Module):
    """One block of attention and MLP."""

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, adapters)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, adapters)

    def forward(
        self, x: Float[Tensor, "T D"], shared: ForwardContext, layer: int
    ) -> Float[Tensor, "T D"]:
        x = x + self.self_attn(self.input_layernorm(x), shared, layer)
        return x + self.mlp(self.post_attention_layernorm(x), shared)


class Decoder(nn.Module):
    """Embedding, blocks, final norm and the tied head: the whole of Phi-4-mini."""

    def __init__(
        self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig] | None = None
    ) -> None:
        super().__init__()
        if (
            config.sliding_window is not None
            and config.sliding_window < config.max_position_embeddings
        ):
            raise ValueError(
                f"sliding_window {config.sliding_window} is shorter than max_position_embeddings "
                f"{config.max_position_embeddings}; only full attention is supported (the published window never binds)"
            )
        self.config = config
        self.adapters = dict(adapters or {})
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [Layer(config, self.adapters) for _ in range(config.num_hidden_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = LongRope(config)
        self.head: Head | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that aren't quantized."""
        return self.norm.weight.dtype

    def embed(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Token embeddings, not scaled. Where the head is a separate copy, the embedding table has the dtype of the
        checkpoint, or is None; then the rows of the head are used."""
        if self.head is None:
            return self.embed_tokens(ids)
        table: Tensor | None = self.embed_tokens.weight
        return (self.head.rows(ids) if table is None else F.embedding(ids, table)).to(self.dtype)

    def forward(
        self, x: Float[Tensor, "T D"], batch: Batch, cache: KVCache | None = None
    ) -> Float[Tensor, "T D"]:
        """Hidden states after the final norm for embedded tokens `x`. With a `cache`, `batch` has only the new tokens.

        Raises ValueError where the batch names an adapter that the model doesn't have.
        """
        shared = self.shared(x, batch, cache)
        for number, layer in enumerate(self.layers):
            x = layer(x, shared, number)
        return self.norm(x)

    def shared(
        self, x: Float[Tensor, "T D"], batch: Batch, cache: KVCache | None = None
    ) -> ForwardContext:
        """The inputs that all layers share for a batch. Raises ValueError as `forward` does."""
        cos, sin = self.rope(batch, working_dtype(x))
        return ForwardContext(
            cos, sin, routes(batch, self.adapters.keys(), x.device), batch.cu_seqlens, cache
        )

    def logits(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]:
        """Logits of the next token, in the model's dtype (the loss converts them to float32)."""
        return product(hidden, self.embed_tokens.weight) if self.head is None else self.head(hidden)

    def residual_scale(self) -> float:
        """Factor on fresh output projections, so that the residual stream keeps its size over 2 * layers additions."""
        return 1 / math.sqrt(2 * self.config.num_hidden_layers)

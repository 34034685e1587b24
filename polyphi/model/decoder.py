"""The language model: 32 blocks of grouped-query attention and a gated MLP over packed tokens (report 2.1).

    x = x + o_proj(attention(rms(x)))
    x = x + down_proj(up * silu(gate))          [gate | up] = gate_up_proj(rms(x))

No biases, no norm on queries or keys; the head is the embedding, transposed, unless the configuration has an untied
one. Linears are stored fused, as in the public checkpoints of Phi-4: query, key, value rows in `qkv_proj`, gate rows
before up rows in `gate_up_proj`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.model.attention import KVCache, packed_attention, working_dtype
from polyphi.model.config import AdapterConfig, DecoderConfig
from polyphi.model.lora import LoraLinear, Route, routes
from polyphi.model.rope import LongRope, rotate
from polyphi.types.batch import Batch


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
        # With the weight as an argument, the fused function would multiply by it in float32 before rounding.
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


class DecoderAttention(nn.Module):
    """Grouped-query attention: `num_attention_heads` query heads over `num_key_value_heads` keys and values."""

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = LoraLinear(config.hidden_size, width, adapters)
        self.o_proj = LoraLinear(self.heads * self.head_dim, config.hidden_size, adapters)

    def forward(
        self, x: Float[Tensor, "T D"], context: ForwardContext, layer: int
    ) -> Float[Tensor, "T D"]:
        qkv = self.qkv_proj(x, context.routes).view(len(x), -1, self.head_dim)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = (rotate(heads, context.cos, context.sin) for heads in (q, k))
        if context.cache is None:
            out = packed_attention(q, k, v, context.cu_seqlens)
        else:
            out = context.cache.attend(layer, q, k, v, context.cu_seqlens)
        return self.o_proj(out.flatten(1), context.routes)


class DecoderMLP(nn.Module):
    """down(up * silu(gate)), gate first in the fused projection."""

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.gate_up_proj = LoraLinear(config.hidden_size, 2 * config.intermediate_size, adapters)
        self.down_proj = LoraLinear(config.intermediate_size, config.hidden_size, adapters)

    def forward(self, x: Float[Tensor, "T D"], context: ForwardContext) -> Float[Tensor, "T D"]:
        return self.down_proj(swiglu(self.gate_up_proj(x, context.routes)), context.routes)


def swiglu(x: Float[Tensor, "T I2"]) -> Float[Tensor, "T I"]:
    """up * silu(gate), from gate and up concatenated."""
    gate, up = x.chunk(2, dim=-1)
    return up * F.silu(gate)


class DecoderLayer(nn.Module):
    """A block of the decoder: attention and MLP."""

    def __init__(self, config: DecoderConfig, adapters: Mapping[str, AdapterConfig]) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DecoderAttention(config, adapters)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = DecoderMLP(config, adapters)

    def forward(
        self, x: Float[Tensor, "T D"], context: ForwardContext, layer: int
    ) -> Float[Tensor, "T D"]:
        x = x + self.self_attn(self.input_layernorm(x), context, layer)
        return x + self.mlp(self.post_attention_layernorm(x), context)


class Decoder(nn.Module):
    """Embedding, blocks, final norm and the head: the whole of Phi-4-mini, whose head is the embedding."""

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
            [DecoderLayer(config, self.adapters) for _ in range(config.num_hidden_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rope = LongRope(config)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that aren't quantized."""
        return self.norm.weight.dtype

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The weight of the head: the embedding if it is tied."""
        return (self.embed_tokens if self.config.tie_word_embeddings else self.lm_head).weight

    def embed(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Token embeddings, not scaled."""
        return self.embed_tokens(ids)

    def forward(
        self, x: Float[Tensor, "T D"], batch: Batch, cache: KVCache | None = None
    ) -> Float[Tensor, "T D"]:
        """Hidden states after the final norm for embedded tokens `x`. With a `cache`, `batch` has only the new tokens.

        Raises ValueError where the batch names an adapter that the model doesn't have.
        """
        context = self.context(x, batch, cache)
        for number, layer in enumerate(self.layers):
            x = layer(x, context, number)
        return self.norm(x)

    def context(
        self, x: Float[Tensor, "T D"], batch: Batch, cache: KVCache | None = None
    ) -> ForwardContext:
        """The inputs that all layers share for a batch. Raises ValueError as `forward` does."""
        cos, sin = self.rope(batch, working_dtype(x))
        return ForwardContext(
            cos, sin, routes(batch, self.adapters.keys(), x.device), batch.cu_seqlens, cache
        )

    def logits(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]:
        """Logits of the next token, in the model's dtype (the loss converts them to float32)."""
        return F.linear(hidden, self.head_weight)

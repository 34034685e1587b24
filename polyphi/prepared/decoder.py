"""The decoder for inference and training on this machine: the sums of `model/decoder.py` with less work.

>>> decoder(x, batch, cache, indices)                    # hidden states [n D] at the requested positions

The last layer runs only the positions whose logits are requested: of the others it computes keys and values alone. A
quantized linear computes its adapter, and the gate or the residual sum behind it, in the same kernel.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

import polyphi.kernels as kernels
from polyphi.kernels import blocks
from polyphi.model import decoder, rope
from polyphi.model.attention import KVCache
from polyphi.model.decoder import ForwardContext
from polyphi.model.lora import Route
from polyphi.prepared.attention import packed_attention
from polyphi.prepared.linear import PreparedLoraLinear, product
from polyphi.types.batch import Batch


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


class PreparedRMSNorm(decoder.RMSNorm):
    """The norm in one pass over memory."""

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        if kernels.plain(x, self.weight):
            return blocks.rms_norm(x, self.weight, self.eps)
        return super().forward(x)


def rotate(
    heads: Float[Tensor, "T heads d"],
    cos: Float[Tensor, "T 1 pairs"],
    sin: Float[Tensor, "T 1 pairs"],
) -> Float[Tensor, "T heads d"]:
    """`model.rope.rotate` in one pass over memory."""
    plain = kernels.plain(heads, cos, sin)
    return blocks.rotate(heads, cos, sin) if plain else rope.rotate(heads, cos, sin)


class PreparedDecoderLayer(decoder.DecoderLayer):
    """A block of the decoder; with `indices` only its outputs at these positions."""

    def forward(
        self,
        x: Float[Tensor, "T D"],
        context: ForwardContext,
        layer: int,
        indices: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n D"]:
        routes = context.routes
        out_proj, gate_up, down = (
            self.self_attn.o_proj,
            self.mlp.gate_up_proj,
            self.mlp.down_proj,
        )
        assert isinstance(out_proj, PreparedLoraLinear)
        assert isinstance(gate_up, PreparedLoraLinear) and isinstance(down, PreparedLoraLinear)
        heads = self._attend(self.input_layernorm(x), context, layer)
        if indices is not None:
            x, heads = x.index_select(0, indices), heads.index_select(0, indices)
            routes = select_routes(routes, indices)
        x = out_proj.add_to(x, heads, routes)
        gated = gate_up.gated(self.post_attention_layernorm(x), routes)
        return down.add_to(x, gated, routes)

    def _attend(
        self, x: Float[Tensor, "T D"], context: ForwardContext, layer: int
    ) -> Float[Tensor, "T H"]:
        """The concatenated outputs of all heads; queries and keys are rotated in one call."""
        attention = self.self_attn
        both = attention.heads + attention.kv_heads
        qkv = attention.qkv_proj(x, context.routes).view(len(x), -1, attention.head_dim)
        rotated, v = qkv.split((both, attention.kv_heads), dim=1)
        q, k = rotate(rotated, context.cos, context.sin).split(
            (attention.heads, attention.kv_heads), dim=1
        )
        if context.cache is None:
            out = packed_attention(q, k, v, context.cu_seqlens)
        else:
            out = context.cache.attend(layer, q, k, v, context.cu_seqlens)
        return out.reshape(len(x), -1)


class PreparedDecoder(decoder.Decoder):
    """The decoder, whose `head` may be a quantized copy of the embedding, or an untied head that is quantized."""

    head: Head | None = None

    def embed(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Token embeddings, not scaled. Where the head is a separate copy, the embedding table has the dtype of the
        checkpoint, or is None; then the rows of the head are used."""
        if self.head is None:
            return super().embed(ids)
        table: Tensor | None = self.embed_tokens.weight
        return (self.head.rows(ids) if table is None else F.embedding(ids, table)).to(self.dtype)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        batch: Batch,
        cache: KVCache | None = None,
        indices: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n D"]:
        """Hidden states after the final norm for embedded tokens, all or those at `indices`."""
        return self.run(x, self.context(x, batch, cache), indices)

    def run(
        self,
        x: Float[Tensor, "T D"],
        context: ForwardContext,
        indices: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n D"]:
        """`forward` with the inputs that all layers share."""
        *layers, last = self.layers
        for number, layer in enumerate(layers):
            x = layer(x, context, number)
        return self.norm(last(x, context, len(layers), indices))

    def logits(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]:
        if self.head is not None:
            return self.head(hidden)
        return product(hidden, self.head_weight)


def select_routes(routes: Sequence[Route], indices: Int[Tensor, " n"]) -> list[Route]:
    """The routes of the tokens at `indices`, which are neighbours then."""
    selected = []
    for route in routes:
        if route.tokens is None:
            selected.append(route)
        elif len(tokens := torch.isin(indices, route.tokens).nonzero().flatten()):
            selected.append(Route(route.adapter, tokens))
    return selected

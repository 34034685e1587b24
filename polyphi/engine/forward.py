"""The decoder's forward in serving: the same sums as `model/decoder.py`, with less work.

>>> forward(decoder, x, batch, cache, indices)           # hidden states [n D] at the requested positions

The last layer runs only the positions whose logits are requested: of the others it computes keys and values alone. A
quantized linear computes its adapter, and the gate or the residual sum behind it, in the same kernel.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi.batch import Batch
from polyphi.model.attention import KVCache
from polyphi.model.decoder import Decoder, ForwardContext, Layer, swiglu
from polyphi.model.lora import LoraLinear, Route


def forward(
    decoder: Decoder,
    x: Float[Tensor, "T D"],
    batch: Batch,
    cache: KVCache | None = None,
    indices: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n D"]:
    """Hidden states after the final norm for embedded tokens, all or those at `indices`."""
    return run_layers(decoder, x, decoder.shared(x, batch, cache), indices)


def run_layers(
    decoder: Decoder,
    x: Float[Tensor, "T D"],
    shared: ForwardContext,
    indices: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n D"]:
    """`forward` with what the layers share."""
    last = len(decoder.layers) - 1
    for number, layer in enumerate(decoder.layers):
        assert isinstance(layer, Layer)
        x = _layer(layer, x, shared, number, indices if number == last else None)
    return decoder.norm(x)


def _layer(
    layer: Layer,
    x: Float[Tensor, "T D"],
    shared: ForwardContext,
    number: int,
    indices: Int[Tensor, " n"] | None,
) -> Float[Tensor, "n D"]:
    routes, attention = shared.routes, layer.self_attn
    qkv = _linear(attention.qkv_proj, layer.input_layernorm(x), routes)
    heads = attention.attend(qkv, shared, number)
    if indices is not None:
        x, heads = x.index_select(0, indices), heads.index_select(0, indices)
        routes = select_routes(routes, indices)
    x = _linear(attention.o_proj, heads, routes, onto=x)
    gated = _linear(layer.mlp.gate_up_proj, layer.post_attention_layernorm(x), routes, gated=True)
    return _linear(layer.mlp.down_proj, gated, routes, onto=x)


def _linear(
    linear: LoraLinear,
    x: Float[Tensor, "T I"],
    routes: Sequence[Route],
    *,
    onto: Float[Tensor, "T O"] | None = None,
    gated: bool = False,
) -> Float[Tensor, "T O_"]:
    """A linear with its adapters, added to `onto` or gated (`swiglu`)."""
    if (result := _fused(linear, x, routes, onto, gated)) is not None:
        return result
    y = linear(x, routes)
    if gated:
        return swiglu(y)
    return y if onto is None else onto + y


def _fused(
    linear: LoraLinear, x: Tensor, routes: Sequence[Route], onto: Tensor | None, gated: bool
) -> Tensor | None:
    """The same in one kernel, or None: for a quantized weight whose tokens all use one adapter, quantized too."""
    if linear.kernel is None:
        return None
    if not routes:
        return linear.kernel.fused(x, None, onto, gated)
    route, *others = routes
    if not others and route.adapter not in linear.lora:
        return linear.kernel.fused(x, None, onto, gated)
    if others or route.tokens is not None or route.adapter not in linear.lora:
        return None
    pair = linear.pair(route.adapter)
    if pair.down is None or pair.up is None:
        return None
    return linear.kernel.fused(x, (pair.down, pair.up, pair.scale), onto, gated)


def select_routes(routes: Sequence[Route], indices: Int[Tensor, " n"]) -> list[Route]:
    """The routes of the tokens at `indices`, which are neighbours then."""
    selected = []
    for route in routes:
        if route.tokens is None:
            selected.append(route)
        elif len(tokens := torch.isin(indices, route.tokens).nonzero().flatten()):
            selected.append(Route(route.adapter, tokens))
    return selected

"""The vision tower on a CPU with our kernels: attention over the patches that affect the result, packed; in slices of
a layer over a few crops, between which a server answers others."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import polyphi.kernels as kernels
from polyphi.kernels import bf16, blocks, training_attention
from polyphi.kernels import encoder as native
from polyphi.model import siglip
from polyphi.prepared.linear import autocast_input, product
from polyphi.runtime.steps import Steps, result_of

BATCH_PATCHES = 4096
"""Patches of a layer's batch on a CPU without gradients (four crops of the published size): enough rows for fast
products, few enough that a slice takes a fraction of a second and little memory."""


class PackedPatches(NamedTuple):
    """The patches of all crops that affect the result, packed: of each crop first the valid ones (`keys` of them), then
    masked ones that share a cell of 2 x 2 with a valid one (`queries` in all). `rows` are their indices among all
    patches, None where they are all of them."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    rows: Int[Tensor, " T"] | None

    @staticmethod
    def of(masks: Bool[Tensor, "N G G"]) -> "PackedPatches":
        count, side, _ = masks.shape
        cells = masks.view(count, side // 2, 2, side // 2, 2).any(4).any(2)
        used = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
        keys, queries = masks.flatten(1).sum(1).tolist(), used.sum(1).tolist()
        if min(keys) == side**2:
            return PackedPatches(tuple(queries), tuple(keys), None)
        # 0 valid, 1 in a cell with a valid one, 2 unused; stable, so that patches stay in order within each class
        order = (2 - used.int() - masks.flatten(1).int()).argsort(dim=1, stable=True)
        indices = order + side**2 * torch.arange(count)[:, None]
        rows = torch.cat([indices[i, :n] for i, n in enumerate(queries)])
        return PackedPatches(tuple(queries), tuple(keys), rows)


class PreparedSiglipAttention(siglip.SiglipAttention):
    """Attention over the patches of a crop, or over packed rows by our kernel."""

    def forward(
        self, x: Float[Tensor, "*n D"], keys: Bool[Tensor, "N 1 1 P"] | PackedPatches | None
    ) -> Float[Tensor, "*n D"]:
        if not isinstance(keys, PackedPatches):
            return super().forward(x, keys)
        x = autocast_input(x)
        q, k, v = (p(x) for p in (self.q_proj, self.k_proj, self.v_proj))
        if native.supports_attention(q):
            out = native.attention(q, k, v, self.heads, keys.queries, keys.keys)
        else:
            q, k, v = (y.unflatten(1, (self.heads, -1)) for y in (q, k, v))
            sizes, visible = keys.queries, keys.keys
            out = training_attention.attention(q, k, v, sizes, key_lengths=visible).flatten(1)
        return self.out_proj(out)


class PreparedSiglipMLP(siglip.SiglipMLP):
    """The MLP of a block; with gradients GELU is our kernel, a fraction of the time of torch's."""

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        x = self.fc1(x)
        ours = torch.is_grad_enabled() and kernels.plain(x)
        return self.fc2(blocks.gelu(x) if ours else self.act(x))


class PreparedSiglipLayer(siglip.SiglipLayer):
    """A block of the vision tower, for crops or packed rows."""

    def forward(
        self, x: Float[Tensor, "*n D"], keys: Bool[Tensor, "N 1 1 P"] | PackedPatches | None
    ) -> Float[Tensor, "*n D"]:
        x = x + self.self_attn(self.layer_norm1(x), keys)
        return x + self.mlp(self.layer_norm2(x))


class PreparedSiglipEncoder(siglip.SiglipEncoder):
    """The vision tower. Where our kernel runs, features of cells that the projector doesn't use are 0."""

    def forward(
        self, crops: Float[Tensor, "N 3 C C"], masks: Bool[Tensor, "N G G"]
    ) -> Float[Tensor, "N P D"]:
        return result_of(self.slices(crops, masks))

    def slices(
        self, crops: Float[Tensor, "N 3 C C"], masks: Bool[Tensor, "N G G"]
    ) -> Steps[Float[Tensor, "N P D"]]:
        """The result of `forward`, in slices of one layer over `BATCH_PATCHES` patches."""
        if torch.is_grad_enabled() or crops.is_cuda:
            return (yield from self._layers(crops, masks))
        count = max(1, BATCH_PATCHES // self.config.grid**2)
        features = []
        for pair in zip(crops.split(count), masks.split(count), strict=True):
            features.append((yield from self._layers(*pair)))
        return features[0] if len(features) == 1 else torch.cat(features)

    def _layers(
        self, crops: Float[Tensor, "N 3 C C"], masks: Bool[Tensor, "N G G"]
    ) -> Steps[Float[Tensor, "N P D"]]:
        return (yield from self._run(self.embed(crops, masks), masks, slice(-1)))

    def _run(
        self, x: Float[Tensor, "N P D"], masks: Bool[Tensor, "N G G"], layers: slice
    ) -> Steps[Float[Tensor, "N P D"]]:
        packed = PackedPatches.of(masks) if self._attends() else None
        keys, shape = packed or self.keys(masks), x.shape
        if packed is not None:
            x = x.flatten(0, 1)
            x = x if packed.rows is None else x.index_select(0, packed.rows)
        for layer in self.layers[layers]:
            x = layer(x, keys)
            yield
        if packed is not None and packed.rows is not None:
            empty = x.new_zeros(shape[0] * shape[1], shape[2])
            x = empty.index_copy_(0, packed.rows, x)
        return x.view(shape)

    def last(
        self, features: Float[Tensor, "N P D"], masks: Bool[Tensor, "N G G"]
    ) -> Float[Tensor, "N P D"]:
        return result_of(self._run(features, masks, slice(-1, None)))

    def embed(
        self, crops: Float[Tensor, "N 3 C C"], masks: Bool[Tensor, "N G G"]
    ) -> Float[Tensor, "N P D"]:
        """Patches with their positions; where torch's bfloat16 convolution is slow, by our kernel's product."""
        weight = self.patch_embedding.weight
        if not (native.supports_attention(weight) and bf16.needed()):
            return super().embed(crops, masks)
        convolution, side = self.patch_embedding, self.config.patch_size
        crops = crops.to(convolution.weight.dtype)
        patches = crops.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
        weight = convolution.weight.flatten(1)
        x = product(patches.flatten(3).flatten(1, 2), weight, convolution.bias)
        return x + self.position_embedding(siglip.position_ids(masks))

    def _attends(self) -> bool:
        """Whether one of our attention kernels supports this tower. With gradients there is one for float32, too."""
        weight = self.patch_embedding.weight
        return kernels.plain(weight) and (
            torch.is_grad_enabled() or native.supports_attention(weight)
        )

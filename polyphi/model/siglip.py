"""SigLIP vision tower: a crop of 448 x 448 pixels becomes 32 x 32 patch features (report 2.2.1).

A pre-norm transformer, bidirectional over one crop, with two peculiarities. Positions are stretched: where only n x m
patches of a crop aren't padding, they are spread over the whole 32 x 32 grid of learned positions. And the features are
those of the second-last layer, so the multimodal model doesn't use the last layer, the final norm and the pooling head;
they are parameters because the checkpoint has them and contrastive pre-training (`pooled`) trains them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyphi.model.attention import MAX_EXPLICIT, explicit_attention
from polyphi.model.config import VisionConfig


def position_ids(masks: Bool[Tensor, "N G G"]) -> Int[Tensor, "N P"]:
    """Index of each patch's learned position: floor(G i / n) * G + floor(G j / m) for patch (i, j) of a crop whose
    first n rows and m columns are valid, 0 where masked. The integer formula equals the reference's bucketing of
    fractions for all n."""
    grid = masks.shape[-1]
    rows, columns = masks[:, :, 0].sum(1, keepdim=True), masks[:, 0, :].sum(1, keepdim=True)
    steps = grid * torch.arange(grid, device=masks.device)
    down, across = steps // rows.clamp(min=1), steps // columns.clamp(min=1)
    return torch.where(masks, down[:, :, None] * grid + across[:, None, :], 0).flatten(1)


class SiglipAttention(nn.Module):
    """Bidirectional attention over the patches of a crop, to those where `keys` is True."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(size, size) for _ in range(4)
        )

    def forward(
        self, x: Float[Tensor, "N P D"], keys: Bool[Tensor, "N 1 1 P"] | None
    ) -> Float[Tensor, "N P D"]:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        if q.shape[2] <= MAX_EXPLICIT and not q.is_cuda:
            masked = torch.zeros(1, dtype=torch.bool) if keys is None else ~keys
            out = explicit_attention(q, k, v, masked)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class SiglipMLP(nn.Module):
    """fc2(gelu(fc1(x))), the tanh form of GELU."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, inner)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(inner, size)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        return self.fc2(self.act(self.fc1(x)))


class SiglipLayer(nn.Module):
    """A pre-norm block of the vision tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Float[Tensor, "N P D"], keys: Bool[Tensor, "N 1 1 P"] | None
    ) -> Float[Tensor, "N P D"]:
        x = x + self.self_attn(self.layer_norm1(x), keys)
        return x + self.mlp(self.layer_norm2(x))


class CrossAttention(nn.Module):
    """Attention of one learned query to all patches; parameters have the names of `nn.MultiheadAttention`."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * size, size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * size))
        self.out_proj = nn.Linear(size, size)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self,
        query: Float[Tensor, "N 1 D"],
        x: Float[Tensor, "N P D"],
        keys: Bool[Tensor, "N 1 1 P"] | None,
    ) -> Float[Tensor, "N 1 D"]:
        size = x.shape[-1]
        q = F.linear(query, self.in_proj_weight[:size], self.in_proj_bias[:size])
        k, v = F.linear(x, self.in_proj_weight[size:], self.in_proj_bias[size:]).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class PoolingHead(nn.Module):
    """Attention pooling: a learned query over all valid patches, then an MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.attention = CrossAttention(config.hidden_size, config.num_attention_heads)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Float[Tensor, "N P D"], keys: Bool[Tensor, "N 1 1 P"] | None
    ) -> Float[Tensor, "N D"]:
        pooled = self.attention(self.probe.expand(len(x), -1, -1), x, keys)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class SiglipEncoder(nn.Module):
    """The vision tower: crops to patch features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.crop_size % config.patch_size or config.grid % 2:
            raise ValueError(
                f"a crop of {config.crop_size} pixels must have an even number of patches of {config.patch_size} "
                f"pixels per side (they are pooled 2 x 2), found {config.crop_size / config.patch_size:g}"
            )
        self.config = config
        size, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, size, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Embedding(config.grid**2, size)
        self.layers = nn.ModuleList([SiglipLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.head = PoolingHead(config)

    def unused(self) -> frozenset[str]:
        """Names of the parameters that the multimodal forward doesn't use: last layer, final norm, head."""
        prefixes = (f"layers.{len(self.layers) - 1}.", "post_layernorm.", "head.")
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(prefixes))

    def embed(
        self, crops: Float[Tensor, "N 3 C C"], masks: Bool[Tensor, "N G G"]
    ) -> Float[Tensor, "N P D"]:
        """Patches with their positions."""
        x = self.patch_embedding(crops.to(self.patch_embedding.weight.dtype))
        # contiguous, a row per patch: a strided tensor would be copied in every norm
        x = x.flatten(2).transpose(1, 2).contiguous()
        return x + self.position_embedding(position_ids(masks))

    def keys(self, masks: Bool[Tensor, "N G G"]) -> Bool[Tensor, "N 1 1 P"] | None:
        """Attention mask of the patches that are keys, None for all. Masked patches are still queries: half-empty cells
        of the 2 x 2 pooling include them. On a GPU, checking that nothing is masked would need a synchronization."""
        all_valid = masks.device.type == "cpu" and bool(masks.all())
        return None if all_valid else masks.flatten(1)[:, None, None, :]

    def forward(
        self, crops: Float[Tensor, "N 3 C C"], masks: Bool[Tensor, "N G G"]
    ) -> Float[Tensor, "N P D"]:
        """Features of the second-last layer, not normalized. `masks` is False at padding patches."""
        x, keys = self.embed(crops, masks), self.keys(masks)
        for layer in self.layers[:-1]:
            x = layer(x, keys)
        return x

    def pooled(
        self, crops: Float[Tensor, "N 3 C C"], masks: Bool[Tensor, "N G G"]
    ) -> Float[Tensor, "N D"]:
        """One vector per crop from all layers, the final norm and the head, for contrastive training."""
        return self.pool(self(crops, masks), masks)

    def pool(
        self, features: Float[Tensor, "N P D"], masks: Bool[Tensor, "N G G"]
    ) -> Float[Tensor, "N D"]:
        """One vector per crop from its features: the last layer, the final norm and the head."""
        return self.head(self.post_layernorm(self.last(features, masks)), self.keys(masks))

    def last(
        self, features: Float[Tensor, "N P D"], masks: Bool[Tensor, "N G G"]
    ) -> Float[Tensor, "N P D"]:
        """The last layer."""
        x: Tensor = self.layers[-1](features, self.keys(masks))
        return x

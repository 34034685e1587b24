"""The Conformer against transformers for clips alone, and against plain numpy formulas for clips packed together (where
transformers' mask is added to the scores instead of hiding keys, and windows of several clips crash)."""

import numpy as np
import pytest
import torch

from polyphi.types.inputs.audio import AudioLayout
from tests.core.parity import oracle
from tests.fixtures.variants import few

# Same formulas in float32, sums in another order. Measured 3e-6 on features of spread 1; a swapped sign of the relative
# distance moves them by 0.3.
ROUNDING = 2e-5


@pytest.fixture
def models(tiny_config):
    reference = oracle.multimodal(tiny_config)
    return reference, oracle.ours(reference, tiny_config)


@pytest.mark.parametrize("features", few([499, 500, 501, 1000, 1001], 3))
@pytest.mark.parametrize("dropped", few([7, 0], 1))
@torch.no_grad()
def test_windows_of_500_features(models, features, dropped):
    reference, model = models
    mels = oracle.mels(8 * features - dropped, seed=features)
    expected = reference.model.embed_tokens_extend.audio_embed.encoder(mels[None], None)[0]
    encoded = model.audio.encoder(mels, [AudioLayout(len(mels), "speech")])
    torch.testing.assert_close(encoded, expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8, 9, 15, 16, 17, 98, 351])
@torch.no_grad()
def test_short_clips(models, frames):
    reference, model = models
    mels = oracle.mels(frames, seed=frames)
    expected = reference.model.embed_tokens_extend.audio_embed.encoder(mels[None], None)[0]
    features = model.audio.encoder(mels, [AudioLayout(frames, "speech")])
    torch.testing.assert_close(features, expected, atol=ROUNDING, rtol=0)


class Formulas:
    """A Conformer in numpy float64, one clip, straight from the description: convolutions as loops over their taps, one
    window at a time."""

    def __init__(
        self, weights: dict[str, torch.Tensor], heads: int, blocks: int, window: int = 500
    ) -> None:
        self.w = {name: tensor.double().numpy() for name, tensor in weights.items()}
        self.heads, self.blocks, self.window = heads, blocks, window

    def linear(self, x, name):
        weight = self.w[f"{name}.weight"]
        return x @ weight.reshape(len(weight), -1).T + self.w[f"{name}.bias"]

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred
            / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )

    @staticmethod
    def swish(x):
        return x / (1 + np.exp(-x))

    def strided(self, x, name):
        """[channels time frequency], width 3, stride 2, padding 1, one input channel per output channel."""
        weight, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        t, f = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
        taps = [
            weight[:, 0, i, j][:, None, None] * padded[:, i : i + 2 * t : 2, j : j + 2 * f : 2]
            for i in range(3)
            for j in range(3)
        ]
        return sum(taps) + bias[:, None, None]

    def pointwise(self, x, name):
        return np.moveaxis(self.linear(np.moveaxis(x, 0, -1), name), -1, 0)

    def subsample(self, mels):
        x = ((mels - self.w["global_mean"]) * self.w["global_invstd"])[None]
        x = np.maximum(self.strided(x, "subsampling.conv.0"), 0)
        x = np.maximum(
            self.pointwise(self.strided(x, "subsampling.conv.2"), "subsampling.conv.3"), 0
        )
        x = np.maximum(
            self.pointwise(self.strided(x, "subsampling.conv.5"), "subsampling.conv.6"), 0
        )
        return self.linear(x.transpose(1, 0, 2).reshape(x.shape[1], -1), "subsampling.out")

    def feed_forward(self, x, name):
        both = self.linear(self.norm(x, f"{name}.layer_norm"), f"{name}.value_gate_proj")
        value, gate = np.split(both, 2, axis=-1)
        return self.linear(value * self.swish(gate), f"{name}.down_proj")

    def attention(self, x, name):
        q, k, v = (
            self.linear(x, f"{name}.{p}_proj").reshape(len(x), self.heads, -1) for p in "qkv"
        )
        t = np.arange(len(x))
        distance = np.clip(t[None, :] - t[:, None], -500, 499) + 500  # key minus query
        scores = np.einsum("qhd,khd->hqk", q / np.sqrt(q.shape[-1]), k)
        scores = scores + self.w["relative_attention_bias.weight"][distance].transpose(2, 0, 1)
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        return self.linear(
            np.einsum("hqk,khd->qhd", chances, v).reshape(len(x), -1), f"{name}.o_proj"
        )

    def convolution(self, x, name):
        x = self.linear(self.norm(x, f"{name}.layer_norm"), f"{name}.glu.ext_pw_conv_1d")
        value, gate = np.split(x, 2, axis=-1)
        x = (value + self.w[f"{name}.glu.b1"].ravel()) * self.swish(
            gate + self.w[f"{name}.glu.b2"].ravel()
        )
        taps = self.w[f"{name}.dw_sep_conv_1d.dw_conv.weight"][:, 0]
        padded = np.pad(x, ((2, 0), (0, 0)))
        x = (
            sum(taps[:, i] * padded[i : i + len(x)] for i in range(3))
            + self.w[f"{name}.dw_sep_conv_1d.dw_conv.bias"]
        )
        x = self.swish(self.linear(x, f"{name}.dw_sep_conv_1d.pw_conv"))
        return self.linear(x, f"{name}.ext_pw_conv_1d")

    def block(self, x, name):
        x = x + 0.5 * self.feed_forward(x, f"{name}.feed_forward_in")
        x = x + self.attention(self.norm(x, f"{name}.layer_norm_att"), f"{name}.self_attn")
        x = x + self.convolution(x, f"{name}.conv")
        x = x + 0.5 * self.feed_forward(x, f"{name}.feed_forward_out")
        return self.norm(x, f"{name}.layer_norm")

    def encode(self, mels):
        x = self.subsample(np.asarray(mels, dtype=np.float64))
        n = len(x)
        if n > self.window:  # filled up with zero frames, which attention sees
            x = np.pad(x, ((0, -n % self.window), (0, 0)))
        windows = np.split(x, range(self.window, len(x), self.window))
        for i in range(self.blocks):
            windows = [self.block(window, f"blocks.{i}") for window in windows]
        return np.concatenate(windows)[:n]


@torch.no_grad()
def test_packed_clips_against_plain_formulas(models, tiny_config):
    _, model = models
    a = tiny_config.audio
    formulas = Formulas(model.audio.encoder.state_dict(), a.num_attention_heads, a.num_blocks)
    # Long among short, one frame among thousands, equal lengths, and padding in the last window only.
    mels = [oracle.mels(frames, seed=frames) for frames in (41, 1, 4001, 300, 300, 9, 4000, 320)]
    clips = [AudioLayout(len(m), "speech") for m in mels]
    features = model.audio.encoder(torch.cat(mels), clips).numpy()
    expected = np.concatenate([formulas.encode(m.numpy()) for m in mels])
    np.testing.assert_allclose(features, expected, atol=ROUNDING, rtol=0)


@torch.no_grad()
def test_a_swapped_relative_distance_is_noticed(models, tiny_config):
    _, model = models
    a = tiny_config.audio
    weights = model.audio.encoder.state_dict()
    name = "relative_attention_bias.weight"
    weights[name] = weights[name].flip(0)
    formulas = Formulas(weights, a.num_attention_heads, a.num_blocks)
    mels = oracle.mels(300, seed=1)
    features = model.audio.encoder(mels, [AudioLayout(300, "speech")]).numpy()
    assert np.abs(features - formulas.encode(mels.numpy())).max() > 1000 * ROUNDING


@pytest.mark.parametrize("branch", ["speech", "vision"])
@torch.no_grad()
def test_projectors(models, tiny_config, branch):
    reference, model = models
    embed = reference.model.embed_tokens_extend.audio_embed
    mels = oracle.mels(100, seed=2)
    clip = AudioLayout(100, branch)
    ids = torch.full((1, clip.tokens), tiny_config.audio.audio_token_id)
    expected = embed(
        ids,
        torch.zeros(1, clip.tokens, tiny_config.decoder.hidden_size),
        mels[None],
        torch.tensor([clip.tokens]),
        audio_projection_mode=branch,
    )[0]
    tokens = model.audio.projector(model.audio.encoder(mels, [clip]), [clip])
    torch.testing.assert_close(tokens, expected, atol=ROUNDING, rtol=0)

"""A batch is only a way to compute: every sequence gives what it gives alone, cached or not, in any batch."""

import random
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.attention import ragged_attention
from polyphi.types.batch import Batch, pack, row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.image import ImageInput, ImageLayout
from tests.fixtures.variants import few

# Packed or alone, matrix products have other shapes and so other sums. On hidden states of spread 1 and 12 draws,
# measured 2.4e-5 at most with MKL's products for AVX-512, and 5.3e-5 with those for AVX2 (the other draws: 2e-5).
ROUNDING = 1e-4

# The same in float64, where a true difference can't hide behind rounding: measured 1e-13 on hidden states of spread 1
# and less on gradients, relative to the model's largest (a key's bias has none but rounding: softmax cancels it).
DOUBLE = 1e-11


@pytest.fixture
def model(tiny_config):
    """Fresh weights plus noise, so that nothing is silent: LoRA B, biases and relative distances start at zero."""
    model = PhiModel(tiny_config)
    model.initialise(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            size = p[0].numel() ** -0.5 if p.dim() > 1 else 0.1
            p.add_(torch.randn(p.shape, generator=generator) * size)
        model.audio.encoder.global_mean.fill_(8.0)
        model.audio.encoder.global_invstd.fill_(0.3)
    return model.eval()


def sample(config: ModelConfig, dice: random.Random) -> Batch:
    """A random row: some text around up to two pictures and up to two clips."""
    generator = torch.Generator().manual_seed(dice.randrange(2**31))
    size, grid = config.vision.crop_size, config.vision.grid
    ids, slots, inputs = [], {"image": [], "audio": []}, []

    def text() -> None:
        ids.extend(
            dice.randrange(20, config.decoder.vocab_size) for _ in range(dice.randrange(1, 12))
        )

    def placeholders(kind: str, token: int, count: int) -> None:
        slots[kind].extend(range(len(ids), len(ids) + count))
        ids.extend([token] * count)

    text()
    layouts, masks = [], []
    for _ in range(dice.choice([0, 0, 1, 2])):
        rows, cols = dice.randrange(1, 3), dice.randrange(1, 4)
        high, wide = (
            grid * (rows - 1) + dice.randrange(1, grid + 1),
            grid * (cols - 1) + dice.randrange(1, grid + 1),
        )
        full = torch.zeros(grid * rows, grid * cols, dtype=torch.bool)
        full[:high, :wide] = True
        tiles = full.view(rows, grid, cols, grid).transpose(1, 2).reshape(-1, grid, grid)
        masks += [torch.ones(1, grid, grid, dtype=torch.bool), tiles]
        layouts.append(ImageLayout(rows, cols, -(-high // 2), -(-wide // 2)))
        placeholders("image", config.vision.image_token_id, layouts[-1].tokens(config.vision.cells))
        text()
    if layouts:
        masks = torch.cat(masks)
        crops = torch.randn(len(masks), 3, size, size, generator=generator)
        image_slots = torch.tensor(slots["image"])
        inputs.append(
            ImageInput(layouts=tuple(layouts), slots=image_slots, crops=crops, masks=masks)
        )
    clips = [
        AudioLayout(dice.choice([1, 7, 8, 60, 61, 300, 4100]), "vision" if layouts else "speech")
        for _ in range(dice.choice([0, 0, 1, 2]))
    ]
    for clip in clips:
        placeholders("audio", config.audio.audio_token_id, clip.tokens)
        text()
    if clips:
        mels = 8 + 3 * torch.randn(
            sum(c.frames for c in clips), config.audio.input_size, generator=generator
        )
        audio_slots = torch.tensor(slots["audio"])
        inputs.append(AudioInput(layouts=tuple(clips), slots=audio_slots, mels=mels))
    own = "vision" if layouts else "speech" if clips else None
    return row(ids, *inputs, adapter=dice.choice([own, own, own, "vision", "speech", None]))


@pytest.mark.parametrize("seed", few(range(6), 3))
def test_pack_equals_each_alone_forward_and_gradients(model, tiny_config, seed):
    model.double()
    dice = random.Random(seed)
    rows = [sample(tiny_config, dice) for _ in range(6)]
    lengths = [len(r) for r in rows]
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(
        sum(lengths), tiny_config.decoder.hidden_size, generator=generator, dtype=torch.float64
    )

    batched = model(pack(rows))
    (batched * weights).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    for alone, output, weight in zip(
        rows, batched.split(lengths), weights.split(lengths), strict=True
    ):
        hidden = model(alone)
        torch.testing.assert_close(output, hidden, atol=DOUBLE, rtol=0)
        (hidden * weight).sum().backward()  # gradients of all rows add up

    added = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == added.keys()
    largest = max(gradient.abs().max().item() for gradient in added.values())
    worst = {name: (gradients[name] - added[name]).abs().max().item() / largest for name in added}
    assert max(worst.values()) < DOUBLE, max(worst.items(), key=lambda item: item[1])


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_pack_equals_each_alone_in_float32(model, tiny_config, seed):
    dice = random.Random(100 + seed)
    rows = [sample(tiny_config, dice) for _ in range(6)]
    expected = torch.cat([model(alone) for alone in rows])
    torch.testing.assert_close(model(pack(rows)), expected, atol=ROUNDING, rtol=0)


class GrowingCache:
    """The simplest cache: concatenate."""

    def __init__(self) -> None:
        self.cache: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, layer, sequence, k, v):
        if (layer, sequence) in self.cache:
            before = self.cache[layer, sequence]
            k, v = torch.cat([before[0], k]), torch.cat([before[1], v])
        self.cache[layer, sequence] = (k, v)
        return k, v

    def attend(self, layer, q, k, v, cu_seqlens, live=None):
        """`live` are the sequences of the batch, all of them if it isn't given."""
        lengths = [end - start for start, end in pairwise(cu_seqlens)]
        live = range(len(lengths)) if live is None else live
        parts = zip(live, k.split(lengths), v.split(lengths), strict=True)
        cache = [self.update(layer, s, *pair) for s, *pair in parts]
        return ragged_attention(q, *zip(*cache, strict=True), lengths)


def part(batch: Batch, start: int, end: int) -> Batch:
    """Tokens start to end of one text row, as the next piece of a cached sequence."""
    return replace(
        batch,
        ids=batch.ids[start:end],
        positions=batch.positions[start:end],
        cu_seqlens=(0, end - start),
    )


@pytest.mark.parametrize("lengths", [(40, 3, 60), (90, 70)], ids=["short table", "long table"])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_cached_equals_uncached(model, lengths, seed):
    """Text in pieces of random size, single tokens among them, several sequences side by side.

    `seq_lens` is the final length throughout: a sequence that crosses the LongRoPE switch must be run again, which
    is the engine's work."""
    dice = random.Random(seed)
    rows = [
        row([dice.randrange(20, 1000) for _ in range(n)], adapter=adapter)
        for n, adapter in zip(lengths, (None, "vision", "speech"), strict=False)
    ]
    done, cache, pieces = [0] * len(rows), GrowingCache(), [[] for _ in rows]
    while any(d < len(r) for d, r in zip(done, rows, strict=True)):
        ends = [
            min(d + dice.choice([1, 1, 2, 9, 30]), len(r)) for d, r in zip(done, rows, strict=True)
        ]
        live = [s for s in range(len(rows)) if ends[s] > done[s]]
        batch = pack([part(rows[s], done[s], ends[s]) for s in live])

        # Sequence numbers count within the batch; finished sequences have left it.
        live_ones = SimpleNamespace(attend=partial(cache.attend, live=live))
        for s, hidden in zip(
            live, model(batch, live_ones).split([ends[s] - done[s] for s in live]), strict=True
        ):
            pieces[s].append(hidden)
        done = ends
    for alone, cached in zip(rows, pieces, strict=True):
        torch.testing.assert_close(torch.cat(cached), model(alone), atol=ROUNDING, rtol=0)


@torch.no_grad()
def test_cached_media_prompt_equals_uncached(model, tiny_config):
    dice = random.Random(3)
    prompts = [sample(tiny_config, dice) for _ in range(8)]
    prompt = next(p for p in prompts if len(p.inputs) == 2)
    tail = [30, 31, 32]
    whole = replace(
        prompt,
        ids=torch.cat([prompt.ids, torch.tensor(tail)]),
        positions=torch.arange(len(prompt) + 3),
        cu_seqlens=(0, len(prompt) + 3),
        seq_lens=(len(prompt) + 3,),
    )
    cache = GrowingCache()
    hidden = [model(replace(prompt, seq_lens=whole.seq_lens), cache)]
    for i, token in enumerate(tail):
        step = replace(row([token], adapter=prompt.adapters[0]), seq_lens=whole.seq_lens)
        hidden.append(model(replace(step, positions=torch.tensor([len(prompt) + i])), cache))
    torch.testing.assert_close(torch.cat(hidden), model(whole), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_adapters_off_is_the_language_model_bit_for_bit(model, tiny_config, dtype):
    mini = PhiModel(ModelConfig(tiny_config.decoder, vision=None, audio=None, adapters={}))
    mini.load_state_dict({n: t for n, t in model.state_dict().items() if n in mini.state_dict()})
    model.to(dtype)
    mini.to(dtype).eval()
    text = pack([row(list(range(20, 20 + n))) for n in (5, 64, 65, 1)])
    assert torch.equal(model.logits(model(text)), mini.logits(mini(text)))


@torch.no_grad()
def test_a_neighbours_adapter_does_not_touch_text_bit_for_bit(model):
    rows = [row(list(range(20, 50))), row(list(range(60, 80))), row(list(range(100, 140)))]
    text = slice(0, 30)
    plain = model(pack(rows))
    mixed = model(replace(pack(rows), adapters=(None, "vision", "speech")))
    assert torch.equal(plain[text], mixed[text])
    assert not torch.equal(plain[30:50], mixed[30:50])
    assert not torch.equal(plain[50:], mixed[50:])

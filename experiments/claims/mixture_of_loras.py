"""C2: a mixture of LoRAs is about as good as full fine-tuning on the new modality, without being worse on text, and
better than cross-attention layers (report 2.2, 4.1.1).

    python -m experiments claims C2 --out runs/nano

Four designs are trained on the same samples for the same number of steps, all by AdamW, each at the best of its swept
learning rates:

| design | trained beside encoder and projector | tokens of an image |
|---|---|---|
| LoRA | the vision adapter | in the sequence |
| cross-attention | layers between those of the decoder | attended to |
| control | an MLP behind the projector | in the sequence |
| full fine-tuning | the language model | in the sequence |

The first three train equally many parameters; full fine-tuning can't.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from experiments.claims.claim import Claim, Effect, Vectors, contrast, paired
from experiments.claims.runner import Arm, ClaimRunner
from polyphi.model.attention import KVCache, working_dtype
from polyphi.model.config import ModelConfig
from polyphi.model.decoder import ForwardContext, RMSNorm
from polyphi.model.multimodal import PhiModel
from polyphi.train.loss import owners
from polyphi.train.stage import Budget, Stage
from polyphi.types.batch import Batch
from polyphi.types.inputs.encoder import Inputs
from polyphi.types.inputs.image import ImageInput
from polyphi_recipe import stages

STAGE = "vision_3_generative"
STEP_SHARE = 0.2  # of the stage's steps
LAYERS_PER_CROSS_ATTENTION = 2  # a cross-attention layer before every second layer of the decoder
GATE_INIT = 0.1  # tanh of it is the factor on the output of a fresh layer
MARGIN = 3.0  # points
IMAGE_ROWS, TEXT_ROWS = 600, 400  # held-out samples
CHOICE_ROWS = 200  # other held-out pictures, which choose the learning rate
RATES = (0.3, 1.0, 3.0)  # times a design's rate; where the best is at an end, the sweep goes on
MOST_RATES = 5
ADAPTER = "decoder.*.lora.vision.*"
WHOLE = "decoder.*.weight"  # without the adapters, which stay at zero

Build = Callable[[PhiModel, int], PhiModel]
"""`build` of a trial: a model around the given one, with fresh weights by a seed."""


class GatedCrossAttention(nn.Module):
    """Cross-attention of text to the image tokens of its sequence, then an MLP, both of width `inner` and each
    multiplied by a gate tanh(g) that starts near 0 (at 0, the encoder would get no gradient). Text without an image is
    unchanged."""

    def __init__(self, width: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.q, self.k, self.v, self.up = (nn.Linear(width, inner, bias=False) for _ in range(4))
        self.o, self.down = (nn.Linear(inner, width, bias=False) for _ in range(2))
        self.gates = nn.Parameter(torch.full((2,), GATE_INIT))

    def forward(
        self, x: Float[Tensor, "T D"], images: Float[Tensor, "I D"], mask: Bool[Tensor, "T I"]
    ) -> Float[Tensor, "T D"]:
        def split(y: Tensor) -> Tensor:
            return y.view(1, len(y), self.heads, -1).transpose(1, 2)

        has_image = mask.any(1, keepdim=True)
        attended = F.scaled_dot_product_attention(
            split(self.q(self.norm(x))),
            split(self.k(images)),
            split(self.v(images)),
            attn_mask=mask | ~has_image,  # a row without keys would be 0 / 0; it is zeroed below
        )
        update = self.o(attended.transpose(1, 2).reshape(len(x), -1))
        gates = self.gates.tanh()
        x = x + torch.where(has_image, gates[0] * update, 0)
        mlp_output = self.down(F.silu(self.up(self.mlp_norm(x))))
        return x + torch.where(has_image, gates[1] * mlp_output, 0)


class CrossAttended(PhiModel):
    """The frozen language model with gated cross-attention layers between its layers; of an image's tokens only the
    first placeholder is in the decoder's sequence."""

    def __init__(self, config: ModelConfig, parameters: int) -> None:
        super().__init__(config)
        d = config.decoder
        layers = -(-d.num_hidden_layers // LAYERS_PER_CROSS_ATTENTION)
        per_head = 6 * layers * d.hidden_size * d.num_attention_heads
        inner = max(1, round(parameters / per_head)) * d.num_attention_heads
        self.cross = nn.ModuleList(
            [
                GatedCrossAttention(d.hidden_size, inner, d.num_attention_heads, d.rms_norm_eps)
                for _ in range(layers)
            ]
        )

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Float[Tensor, "T D"]:
        """Hidden states; zeros at the placeholders that aren't in the sequence. Without a cache: answers are scored."""
        assert cache is None, "this model is only trained and scored"
        images, in_sequence = batch.of(ImageInput), torch.ones(len(batch), dtype=torch.bool)
        if images is not None:
            assert images.slots is not None
            pictures, sizes = self.encode(images.NAME, images), torch.tensor(images.tokens)
            firsts = images.slots[sizes.cumsum(0) - sizes]
            in_sequence[images.slots] = False
            in_sequence[firsts] = True
            of_picture = owners(batch, firsts).repeat_interleave(sizes)
        text = _only(batch, in_sequence)
        x = self.decoder.embed(text.ids)
        of_token = owners(text, torch.arange(len(x)))
        cos, sin = self.decoder.rope(text, working_dtype(x))
        shared = ForwardContext(cos, sin, [], text.cu_seqlens, None)
        for number, layer in enumerate(self.decoder.layers):
            if images is not None and number % LAYERS_PER_CROSS_ATTENTION == 0:
                cross = self.cross[number // LAYERS_PER_CROSS_ATTENTION]
                x = cross(x, pictures.to(x.dtype), of_token[:, None] == of_picture)
            x = layer(x, shared, number)
        x = self.decoder.norm(x)
        return x.new_zeros(len(batch), x.shape[1]).index_copy(0, in_sequence.nonzero().flatten(), x)


def _only(batch: Batch, tokens: Bool[Tensor, " T"]) -> Batch:
    """Some tokens of a pack, without media and labels."""
    lengths = [int(tokens[start:end].sum()) for start, end in pairwise(batch.cu_seqlens)]
    return replace(
        batch,
        ids=batch.ids[tokens],
        positions=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=(0, *accumulate(lengths)),
        seq_lens=tuple(lengths),
        adapters=(None,) * len(lengths),
        inputs={},
        labels=None,
        supervised=None,
    )


class Control(PhiModel):
    """The frozen language model behind a projector with a residual MLP: what the tower alone can learn."""

    def __init__(self, config: ModelConfig, parameters: int) -> None:
        super().__init__(config)
        width = config.decoder.hidden_size
        inner = max(1, round(parameters / (2 * width)))
        down = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(down.weight)  # as an adapter's b
        norm = RMSNorm(width, config.decoder.rms_norm_eps)
        up = nn.Linear(width, inner, bias=False)
        self.further = nn.Sequential(norm, up, nn.SiLU(), down)

    def encode(self, modality: str, inputs: Inputs) -> Float[Tensor, "n D"]:
        """Tokens of all items of a modality, in order."""
        tokens = super().encode(modality, inputs)
        if modality != ImageInput.NAME:
            return tokens
        more: Tensor = self.further(tokens)
        return tokens + more


def extended(make: Callable[[ModelConfig, int], PhiModel]) -> Build:
    """A `Build` whose model has about as many fresh weights as the vision adapter has."""

    def build(model: PhiModel, seed: int) -> PhiModel:
        adapter = sum(p.numel() for n, p in model.named_parameters() if ".lora.vision." in n)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            larger = make(model.config, adapter)
        larger.load_state_dict({**larger.state_dict(), **model.state_dict()})
        return larger

    return build


@dataclass(frozen=True)
class Design:
    """A way to train a modality: its stage, the glob whose rate is swept, and `build` of its trials."""

    name: str
    stage: Stage
    glob: str
    build: Build | None = None

    def at(self, factor: float) -> Stage:
        """The stage with the swept rate times a factor."""
        rates = self.stage.trainable
        return replace(self.stage, trainable={**rates, self.glob: factor * rates[self.glob]})


def designs(runner: ClaimRunner) -> list[Design]:
    """The designs, each with the rate from which its sweep starts: that of the adapter, or text 3's for the whole
    language model."""
    stage = stages.without_auxiliary(runner.stage(STAGE))
    text = runner.stage("text_3_post")
    # The budget multiplies learning rates; the product must be the language model's post-training learning rate.
    factor = runner.budget(text).lr_factor / runner.budget(stage).lr_factor
    whole, fresh = max(text.trainable.values()) * factor, stage.trainable[ADAPTER]
    tower = {glob: rate for glob, rate in stage.trainable.items() if glob != ADAPTER}
    plain = replace(stage.data, adapter={})

    def design(name: str, glob: str, rate: float, build: Build | None = None) -> Design:
        changed = replace(stage, trainable={glob: rate, **tower}, data=plain)
        return Design(name, changed, glob, build)

    return [
        Design("LoRA", stage, ADAPTER),
        design("cross-attention", "cross.*", fresh, extended(CrossAttended)),
        design("control", "further.*", fresh, extended(Control)),
        design("full fine-tuning", WHOLE, whole),
    ]


def budget(runner: ClaimRunner, stage: Stage) -> Budget:
    """The budget of every design: AdamW alone, since Muon isn't for adapters."""
    return replace(runner.budget(stage, STEP_SHARE), muon_lr_factor=0.0)


def best_rate(runner: ClaimRunner, design: Design, choose: Callable[[Arm], float]) -> float:
    """The factor of the rates with the lowest loss by `choose`, of the first seed."""
    losses: dict[float, float] = {}
    factors = list(RATES)
    while factors:
        for factor in factors:
            losses[factor] = choose(train(runner, design, factor, 0))
        best, step = min(losses, key=lambda factor: losses[factor]), RATES[-1] / RATES[-2]
        beyond = {max(losses): best * step, min(losses): best / step}
        factors = [beyond[best]] if best in beyond and len(losses) < MOST_RATES else []
    listed = ", ".join(f"{factor:g}: {losses[factor]:.3f}" for factor in sorted(losses))
    runner.report(f"  {design.name}: loss by factor of the rate {listed}")
    return best


def train(runner: ClaimRunner, design: Design, factor: float, number: int) -> Arm:
    """The model of a design, trained with a factor of its rates and a seed."""
    stage, name = design.at(factor), f"C2-{design.name.replace(' ', '-')}-{factor:.3g}"
    return runner.arm(name, stage, budget(runner, stage), number, build=design.build)


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Exact answers to questions about held-out images, and the loss of held-out text answers."""
    held_out = runner.held_out("image_qa", IMAGE_ROWS + CHOICE_ROWS)
    count = len(held_out) * CHOICE_ROWS // (IMAGE_ROWS + CHOICE_ROWS)
    chosen, pictures = {"image_qa": held_out[:count]}, {"image_qa": held_out[count:]}
    texts = {"instructions": runner.held_out("instructions", TEXT_ROWS)}
    exact: dict[str, list] = {}
    losses: dict[str, list] = {}
    for design in designs(runner):
        # As in inference: text uses no adapter.
        plain = replace(design.stage, data=replace(design.stage.data, adapter={}))

        def choose(arm: Arm, plain: Stage = plain) -> float:
            nats, tokens = zip(*runner.matched(arm, plain, chosen)[1].values(), strict=True)
            return sum(nats) / sum(tokens)

        factor = best_rate(runner, design, choose)
        arms = [train(runner, design, factor, number) for number in range(runner.seeds)]
        exact[design.name] = [runner.matched(arm, plain, pictures)[0] for arm in arms]
        losses[design.name] = [runner.matched(arm, plain, texts)[1] for arm in arms]
        accuracies = [_mean(scores) for scores in exact[design.name]]
        runner.report(f"  {design.name}: accuracy {', '.join(f'{s:.1%}' for s in accuracies)}")

    def lead(first: Sequence, second: Sequence) -> tuple[str, Vectors]:
        return "accuracy", paired(first, second)

    for name, above in (("full fine-tuning", -MARGIN), ("cross-attention", 0.0), ("control", 0.0)):
        yield contrast(
            f"pictures: LoRA minus {name}", lead(exact[name], exact["LoRA"]), above=above
        )
    yield contrast(
        "text: loss of full fine-tuning minus that of LoRA",
        lead(losses["LoRA"], losses["full fine-tuning"]),
        unit="nats",
    )
    before = [runner.matched(runner.after("text_4_align"), runner.stage("text_3_post"), texts)[1]]
    same = all(scores == before[0] for scores in losses["LoRA"])
    share = float(same)
    yield Effect(
        "text: the losses with LoRA equal those before training", share, share, share, "", above=0.5
    )


def _mean(scores: dict[str, list[float]]) -> float:
    return sum(v for v, _ in scores.values()) / max(1, len(scores))


claim = Claim(
    name="C2",
    title="A mixture of LoRAs",
    says=(
        "Adapters on a frozen language model are nearly as good on a new modality as full fine-tuning, aren't worse on "
        "text, and are better than cross-attention layers."
    ),
    where="2.2, 4.1.1",
    experiment=(
        f"Vision 3 from vision 2, on the same samples, {STEP_SHARE:.0%} of its steps, AdamW, each at the best of its "
        "swept learning rates: LoRA; gated cross-attention and MLP before every second layer, and as a control an MLP "
        "behind the projector, with as many parameters; full fine-tuning; exact answers on "
        f"{IMAGE_ROWS} held-out pictures (margin {MARGIN:g} points), loss on {TEXT_ROWS} held-out text answers"
    ),
    run=run,
)

"""C2: a mixture of LoRAs is about as good as full fine-tuning on the new modality, without being worse on text, and
better than cross-attention layers (report 2.2, 4.1.1).

    python -m experiments claims C2 --out runs/nano
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from experiments.claims.claim import Claim, Effect, Vectors, contrast, paired
from experiments.claims.runner import Arm, ClaimRunner
from polyphi.data.sample import Sample
from polyphi.model.attention import KVCache, working_dtype
from polyphi.model.config import ModelConfig
from polyphi.model.decoder import ForwardContext, RMSNorm
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.train.loss import NextToken, owners
from polyphi.train.stage import Stage
from polyphi.types.batch import Batch, row
from polyphi.types.inputs.image import ImageInput

STAGE = "vision_3_generative"
STEP_SHARE = 0.2  # of the stage's steps
LAYERS_PER_CROSS_ATTENTION = 2  # a cross-attention layer before every second layer of the decoder
GATE_INIT = 0.1  # tanh of it is the factor on the output of a fresh layer
MARGIN = 3.0  # points
IMAGE_ROWS, TEXT_ROWS = 600, 400  # held-out samples


class GatedCrossAttention(nn.Module):
    """Cross-attention of text to the image tokens of its sequence, then an MLP, each multiplied by a gate tanh(g) that
    starts near 0 (at 0, the encoder would get no gradient). Text without an image is unchanged."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = (
            nn.Linear(width, 2 * width, bias=False),
            nn.Linear(2 * width, width, bias=False),
        )
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
    """The frozen language model with gated cross-attention layers between its layers; image tokens aren't part of the
    sequence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.decoder
        self.cross = nn.ModuleList(
            [
                GatedCrossAttention(d.hidden_size, d.num_attention_heads, d.rms_norm_eps)
                for _ in range(-(-d.num_hidden_layers // LAYERS_PER_CROSS_ATTENTION))
            ]
        )

    @classmethod
    def around(cls, model: PhiModel, seed: int) -> "CrossAttended":
        """A model with the weights of `model` and fresh cross-attention layers."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            crossed = cls(model.config)
            fresh = {n: p.clone() for n, p in crossed.named_parameters() if n.startswith("cross.")}
        crossed.load_state_dict({**model.state_dict(), **fresh})
        return crossed

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Float[Tensor, "T D"]:
        """Hidden states; the single placeholder of an image keeps its embedding. Without a cache: answers are
        scored."""
        assert cache is None, "this model is only trained and scored"
        x = self.decoder.embed(batch.ids)
        if (images := batch.of(ImageInput)) is not None:
            assert images.slots is not None
            pictures, sizes = self.encode(images.NAME, images), torch.tensor(images.tokens)
            of_picture = owners(batch, images.slots).repeat_interleave(sizes)
            of_token = owners(batch, torch.arange(len(x)))
            mask = of_token[:, None] == of_picture
        cos, sin = self.decoder.rope(batch, working_dtype(x))
        shared = ForwardContext(cos, sin, [], batch.cu_seqlens, None)
        for number, layer in enumerate(self.decoder.layers):
            if images is not None and number % LAYERS_PER_CROSS_ATTENTION == 0:
                x = self.cross[number // LAYERS_PER_CROSS_ATTENTION](x, pictures.to(x.dtype), mask)
            x = layer(x, shared, number)
        return self.decoder.norm(x)


@dataclass(frozen=True)
class SinglePlaceholder(NextToken):
    """Rows in which each image has one placeholder, the first of its run: its tokens aren't part of the sequence."""

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        (whole,) = super().rows(sample, processor, context, None)
        images = whole.of(ImageInput)
        if images is None or images.slots is None or whole.labels is None:
            return [whole]
        sizes = torch.tensor(images.tokens)
        firsts = images.slots[sizes.cumsum(0) - sizes]
        keep = torch.ones(len(whole), dtype=torch.bool)
        keep[images.slots] = False
        keep[firsts] = True
        supervise = torch.zeros(len(whole), dtype=torch.bool)
        supervise[1:] = whole.labels[:-1] >= 0
        shorter = row(
            whole.ids[keep].tolist(),
            replace(images, slots=keep.cumsum(0)[firsts] - 1, label_ids=None),
            supervise=supervise[keep].tolist(),
        )
        return [shorter]


def designs(runner: ClaimRunner) -> dict[str, tuple[Stage, list[Arm]]]:
    """The three designs, trained on the same samples for the same number of steps."""
    stage = runner.stage(STAGE)
    text = runner.stage("text_3_post")
    assert isinstance(stage.objective, NextToken)
    # The budget multiplies learning rates; the product must be the language model's post-training learning rate.
    whole = (
        max(text.trainable.values())
        * runner.budget(text).lr_factor
        / runner.budget(stage).lr_factor
    )
    vision = {glob: rate for glob, rate in stage.trainable.items() if glob.startswith("vision.")}
    fresh = max(stage.trainable.values())
    mix = replace(stage.data, adapter={})
    full = replace(stage, trainable={"decoder.*": whole, **vision}, data=mix)
    cross = replace(
        stage,
        trainable={"cross.*": fresh, **vision},
        data=mix,
        objective=SinglePlaceholder(max_crops=stage.objective.max_crops),
    )
    return {
        "LoRA": (stage, runner.arms("C2-lora", stage, runner.budget(stage, STEP_SHARE))),
        "full fine-tuning": (full, runner.arms("C2-full", full, runner.budget(stage, STEP_SHARE))),
        "cross-attention": (
            cross,
            runner.arms(
                "C2-cross", cross, runner.budget(stage, STEP_SHARE), build=CrossAttended.around
            ),
        ),
    }


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Exact answers to questions about held-out images, and the loss of held-out text answers."""
    pictures = {"image_qa": runner.held_out("image_qa", IMAGE_ROWS)}
    texts = {"instructions": runner.held_out("instructions", TEXT_ROWS)}
    exact: dict[str, list] = {}
    losses: dict[str, list] = {}
    for name, (stage, arms) in designs(runner).items():
        # As in inference: text uses no adapter.
        plain = replace(stage, data=replace(stage.data, adapter={}))
        exact[name] = [runner.matched(arm, plain, pictures)[0] for arm in arms]
        losses[name] = [runner.matched(arm, plain, texts)[1] for arm in arms]
        accuracies = [_mean(scores) for scores in exact[name]]
        runner.report(f"  {name}: accuracy {', '.join(f'{s:.1%}' for s in accuracies)} by seed")

    def lead(first: Sequence, second: Sequence) -> tuple[str, Vectors]:
        return "accuracy", paired(first, second)

    yield contrast(
        "pictures: LoRA minus full fine-tuning",
        lead(exact["full fine-tuning"], exact["LoRA"]),
        above=-MARGIN,
    )
    yield contrast(
        "pictures: LoRA minus cross-attention", lead(exact["cross-attention"], exact["LoRA"])
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
        f"Vision 3 three times from vision 2, on the same samples, {STEP_SHARE:.0%} of its steps: LoRA, full "
        "fine-tuning (with text 3's learning rate), gated cross-attention and MLP before every second layer; exact "
        f"answers on {IMAGE_ROWS} held-out pictures (margin {MARGIN:g} points), loss on {TEXT_ROWS} held-out "
        "text answers"
    ),
    run=run,
)

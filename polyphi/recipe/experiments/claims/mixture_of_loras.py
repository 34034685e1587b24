"""C2: a mixture of LoRAs is about as good as full fine-tuning on the new modality, without its loss on text, and better
than cross-attention layers (report 2.2, 4.1.1).

    polyphi claims C2 --out runs/nano
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyphi import stages
from polyphi.batch import Batch, row
from polyphi.data.shards import Sample
from polyphi.model.attention import KVCache, working_dtype
from polyphi.model.config import ModelConfig
from polyphi.model.decoder import RMSNorm, Shared
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.recipe.experiments.claims.claim import Claim, Effect, Vectors, contrast, paired
from polyphi.recipe.experiments.claims.laboratory import Arm, Laboratory
from polyphi.train.loss import NextToken, owners
from polyphi.train.stage import Stage

STAGE = "vision_3_generative"
SHARE = 0.2  # of the stage's steps
EVERY = 2  # a cross-attention layer before every second layer of the decoder
GATE = 0.1  # tanh of it is how much of a fresh layer comes through
MARGIN = 3.0  # points
PICTURES, TEXTS = 600, 400  # held-out samples


class GatedCrossAttention(nn.Module):
    """Text looks at its own sequence's picture tokens: attention and an MLP, each behind a gate tanh(g) that starts
    nearly shut (shut, it would let no gradient through to the encoder). Text without a picture passes unchanged."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = (
            nn.Linear(width, 2 * width, bias=False),
            nn.Linear(2 * width, width, bias=False),
        )
        self.gates = nn.Parameter(torch.full((2,), GATE))

    def forward(
        self, x: Float[Tensor, "T D"], pictures: Float[Tensor, "I D"], sees: Bool[Tensor, "T I"]
    ) -> Float[Tensor, "T D"]:
        def split(y: Tensor) -> Tensor:
            return y.view(1, len(y), self.heads, -1).transpose(1, 2)

        looking = sees.any(1, keepdim=True)
        attended = F.scaled_dot_product_attention(
            split(self.q(self.norm(x))),
            split(self.k(pictures)),
            split(self.v(pictures)),
            attn_mask=sees | ~looking,  # a row that sees nothing would be 0 / 0; it is zeroed below
        )
        seen = self.o(attended.transpose(1, 2).reshape(len(x), -1))
        gates = self.gates.tanh()
        x = x + torch.where(looking, gates[0] * seen, 0)
        thought = self.down(F.silu(self.up(self.mlp_norm(x))))
        return x + torch.where(looking, gates[1] * thought, 0)


class CrossAttended(PhiModel):
    """The frozen language model with gated cross-attention layers between its own; pictures don't join the sequence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.decoder
        self.cross = nn.ModuleList(
            [
                GatedCrossAttention(d.hidden_size, d.num_attention_heads, d.rms_norm_eps)
                for _ in range(-(-d.num_hidden_layers // EVERY))
            ]
        )

    @classmethod
    def around(cls, model: PhiModel, seed: int) -> "CrossAttended":
        """The same weights, with fresh layers between."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = cls(model.config)
            fresh = {n: p.clone() for n, p in made.named_parameters() if n.startswith("cross.")}
        made.load_state_dict({**model.state_dict(), **fresh})
        return made

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Float[Tensor, "T D"]:
        """Hidden states; a picture's one placeholder stays what its embedding is. No cache: answers are scored."""
        assert cache is None, "this model is only trained and scored"
        x = self.decoder.embed(batch.ids)
        if batch.images:
            assert batch.image_slots is not None and self.config.vision is not None
            pictures = self.image_tokens(batch)
            sizes = torch.tensor([i.tokens(self.config.vision.cells) for i in batch.images])
            of_picture = owners(batch, batch.image_slots).repeat_interleave(sizes)
            of_token = owners(batch, torch.arange(len(x)))
            sees = of_token[:, None] == of_picture
        cos, sin = self.decoder.rope(batch, working_dtype(x))
        shared = Shared(cos, sin, [], batch.bounds, None)
        for number, layer in enumerate(self.decoder.layers):
            if batch.images and number % EVERY == 0:
                x = self.cross[number // EVERY](x, pictures.to(x.dtype), sees)
            x = layer(x, shared, number)
        return self.decoder.norm(x)


@dataclass(frozen=True)
class BesideText(NextToken):
    """Rows whose pictures stand beside the text: of each run of placeholders the first one stays."""

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        (made,) = super().rows(sample, processor, context, None)
        if made.image_slots is None or made.labels is None:
            return [made]
        sizes = torch.tensor([i.tokens(processor.cells) for i in made.images])
        firsts = made.image_slots[sizes.cumsum(0) - sizes]
        keep = torch.ones(len(made), dtype=torch.bool)
        keep[made.image_slots] = False
        keep[firsts] = True
        wanted = torch.zeros(len(made), dtype=torch.bool)
        wanted[1:] = made.labels[:-1] >= 0
        shorter = row(
            made.ids[keep].tolist(),
            supervise=wanted[keep].tolist(),
            image_slots=keep.cumsum(0)[firsts] - 1,
            crops=made.crops,
            views=made.views,
            crop_masks=made.crop_masks,
            images=made.images,
        )
        return [shorter]


def designs(lab: Laboratory) -> dict[str, tuple[Stage, list[Arm]]]:
    """The three designs, trained on the same samples for the same steps."""
    stage = stages.load(STAGE)
    text = stages.load("text_3_post")
    assert isinstance(stage.objective, NextToken)
    # Rates are multiplied by the vision stage's budget; the language model's own post-training rate shall come out.
    whole = max(text.learn.values()) * lab.budget(text).rate / lab.budget(stage).rate
    vision = {glob: rate for glob, rate in stage.learn.items() if glob.startswith("vision.")}
    fresh = max(stage.learn.values())
    mix = replace(stage.data, adapter={})
    full = replace(stage, learn={"decoder.*": whole, **vision}, data=mix)
    cross = replace(
        stage,
        learn={"cross.*": fresh, **vision},
        data=mix,
        objective=BesideText(max_crops=stage.objective.max_crops),
    )
    return {
        "LoRA": (stage, lab.arms("C2-lora", stage, lab.budget(stage, SHARE))),
        "full fine-tuning": (full, lab.arms("C2-full", full, lab.budget(stage, SHARE))),
        "cross-attention": (
            cross,
            lab.arms("C2-cross", cross, lab.budget(stage, SHARE), build=CrossAttended.around),
        ),
    }


def run(lab: Laboratory) -> Iterator[Effect]:
    """Exact answers to questions about held-out pictures, and the loss of held-out text answers."""
    pictures = {"image_qa": lab.held_out("image_qa", PICTURES)}
    texts = {"instructions": lab.held_out("instructions", TEXTS)}
    seen: dict[str, list] = {}
    said: dict[str, list] = {}
    for name, (stage, arms) in designs(lab).items():
        # As in use: text goes through no adapter.
        plain = replace(stage, data=replace(stage.data, adapter={}))
        seen[name] = [lab.matched(arm, plain, pictures)[0] for arm in arms]
        said[name] = [lab.matched(arm, plain, texts)[1] for arm in arms]
        shown = [_mean(scores) for scores in seen[name]]
        lab.tell(f"  {name}: right {', '.join(f'{s:.1%}' for s in shown)} by seed")

    def lead(first: Sequence, second: Sequence) -> tuple[str, Vectors]:
        return "accuracy", paired(first, second)

    yield contrast(
        "pictures: LoRA less full fine-tuning",
        lead(seen["full fine-tuning"], seen["LoRA"]),
        above=-MARGIN,
    )
    yield contrast(
        "pictures: LoRA less cross-attention", lead(seen["cross-attention"], seen["LoRA"])
    )
    yield contrast(
        "text: loss of full fine-tuning less LoRA's",
        lead(said["LoRA"], said["full fine-tuning"]),
        unit="nats",
    )
    before = [lab.matched(lab.after("text_4_align"), stages.load("text_3_post"), texts)[1]]
    same = all(scores == before[0] for scores in said["LoRA"])
    share = float(same)
    yield Effect("text: LoRA's losses are those before", share, share, share, "", above=0.5)


def _mean(scores: dict[str, list[float]]) -> float:
    return sum(v for v, _ in scores.values()) / max(1, len(scores))


claim = Claim(
    name="C2",
    title="A mixture of LoRAs",
    says=(
        "Adapters beside a frozen language model do nearly as well on a new modality as full fine-tuning, lose nothing "
        "on text, and do better than cross-attention layers."
    ),
    where="2.2, 4.1.1",
    experiment=(
        f"Vision 3 three times from vision 2, on the same samples, {SHARE:.0%} of its steps: LoRA, full fine-tuning "
        "(at text 3's rate), gated cross-attention and MLP before every second layer; exact answers on "
        f"{PICTURES} held-out pictures (margin {MARGIN:g} points), loss on {TEXTS} held-out text answers"
    ),
    run=run,
)

"""What a stage's step costs: rows and pictures to FLOPs, bytes of memory and bytes sent.

Everything is worked out from the model itself, built on the meta device, from who learns in it, and from what a
batch holds. Where there is no batch, samples are imagined as `ROWS` has them.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import Any, Literal, NamedTuple

import torch

from polyphi.batch import Batch, Clip, row
from polyphi.model.config import ModelConfig, VisionConfig
from polyphi.model.multimodal import PhiModel
from polyphi.planning.vocabulary import VocabularyOnly
from polyphi.processing import image
from polyphi.stages import lineage
from polyphi.stages.sizes import Size
from polyphi.train.aed import AttentionDecoder
from polyphi.train.contrastive import GLOBAL_VIEW, Contrastive
from polyphi.train.loss import CHUNK_LOGITS
from polyphi.train.optim import groups
from polyphi.train.preference import DPO
from polyphi.train.stage import Budget, Stage, matching

# ------------------------------------------------------------------------------ who learns


@dataclass(frozen=True)
class Subject:
    """A stage's model without memory, and who learns in it: glob -> names."""

    stage: Stage
    budget: Budget
    config: ModelConfig
    tensors: Mapping[str, torch.Tensor]
    learners: Mapping[str, Sequence[str]]
    vision: VisionConfig | None = None
    """Of the size, also where the stage has no image encoder: images in words have as many tokens."""

    @cached_property
    def learned(self) -> frozenset[str]:
        return frozenset(name for names in self.learners.values() for name in names)

    def learns(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.learned)

    def size(self, names: Iterable[str]) -> int:
        """Parameters."""
        return sum(self.tensors[name].numel() for name in names)

    @cached_property
    def decoder(self) -> Literal["learns", "looks on", "is not asked"]:
        """Gradients pass through the language model, or it only gives the embeddings of captions, or it isn't run."""
        kind = type(self.stage.objective)
        return (
            "looks on"
            if kind is Contrastive
            else "is not asked"
            if kind is AttentionDecoder
            else "learns"
        )

    def through(self, name: str) -> bool:
        """Whether a matrix hands a gradient on to its input: something below it learns."""
        part = name.split(".", maxsplit=1)[0]
        if part == "decoder":
            return self.decoder == "learns"
        if part == "objective":
            return not name.startswith("objective.text.")
        if ".projector." in name:
            return self.learns(f"{part}." if ".down." in name else f"{part}.encoder.")
        bottom = name.endswith(("patch_embedding.weight", "subsampling.conv.0.weight"))
        return self.learns(f"{part}.encoder.") and not bottom

    @cached_property
    def matrices(self) -> Counter["Kind"]:
        """Parameters of all matrices by what becomes of them."""
        globs, found = list(rows(self, Counter())), Counter[Kind]()
        for name, tensor in self.tensors.items():
            if tensor.ndim > 1:
                glob = next(g for g in globs if fnmatch.fnmatchcase(name, g))
                repeated = ".layers." in name or ".blocks." in name
                kind = Kind(glob, name in self.learned, self.through(name), repeated)
                found[kind] += tensor.numel()
        return found


class Kind(NamedTuple):
    """Matrices alike: the glob of `rows` that they fall under, whether they learn, hand a gradient on, and stand in a
    repeated block."""

    glob: str
    learned: bool
    through: bool
    repeated: bool


def subject(name: str, size: Size) -> Subject:
    """A stage at a size. Raises ValueError where a glob of `learn`, `start` or `copy` matches nothing."""
    stage = size.stage(name)
    config = lineage.configuration(stage, size.model, None)
    with torch.device("meta"):
        model = PhiModel(config)
        module = stage.objective.build(model, VocabularyOnly(config.decoder.vocab_size))
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    for glob in (*stage.start, *stage.copy):
        matching(glob, tensors)
    if module is not None:
        tensors |= {f"objective.{n}": p for n, p in module.named_parameters()}
    return Subject(
        stage, size.budget(stage), config, tensors, groups(stage, tensors), size.model.vision
    )


HEAD = "decoder.embed_tokens.*"

# ------------------------------------------------------------------------------ what a batch holds


@dataclass(frozen=True)
class Row:
    """One sample of a corpus at full size: tokens of the text, of which the last `learned` are supervised (None: all,
    a document), pictures (width, height in pixels) and a clip (seconds)."""

    text: int
    learned: int | None = None
    pictures: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.0


# [ours] The report gives no lengths but the bounds: 1344 x 1344 in vision pre-training (3.2), 30 s of sound and 30
# minutes for summaries (2.2.2). Summaries stand here with their longest clip, for memory; others with a middling one.
ROWS = {
    "documents": Row(1500),
    "code": Row(1500),
    "math": Row(1500),
    "copying": Row(200, 100),
    "translation": Row(300),
    "long_documents": Row(131_072),
    "instructions": Row(500, 350),
    "sums": Row(500, 350),
    "written_speech": Row(300, 100),
    "tools": Row(600, 100),
    "summaries": Row(1800, 150),
    "fim": Row(900, 100),
    "preferences": Row(500, 350),
    "reasoning_documents": Row(4000),
    "reasoning_sft": Row(6000, 5800),
    "reasoning_pairs": Row(6000, 5800),
    "captions": Row(60, 50, ((896, 672),)),
    "interleaved": Row(900, 880, ((672, 448),) * 3),
    "grounding": Row(100, 60, ((896, 672),)),
    "ocr": Row(900, 880, ((1344, 1344),)),
    "charts": Row(100, 60, ((896, 672),)),
    "image_qa": Row(160, 100, ((1344, 1008),)),
    "multi_image": Row(200, 120, ((896, 672),) * 8),
    "asr": Row(70, 50, seconds=15),
    "ast": Row(90, 60, seconds=15),
    "sqa": Row(130, 120, seconds=10),
    "speech_summary": Row(250, 220, seconds=1800),
    "audio_understanding": Row(80, 60, seconds=15),
    "audio_safety": Row(80, 60, seconds=10),
    "vision_speech": Row(130, 100, ((1344, 1008),), seconds=8),
}


def imagined(it: Subject, corpus: str) -> list[Batch]:
    """The rows that one sample of a corpus makes in a stage, as `ROWS` has it; pictures shrink with the size of a
    crop."""
    stage, config, given, media = it.stage, it.config, ROWS[corpus], dict[str, Any]()
    before = 0
    vision, contrastive = config.vision, isinstance(stage.objective, Contrastive)
    in_words = corpus in stage.data.in_words
    if in_words:
        vision = it.vision
    if given.pictures and vision is not None:
        side, patch = vision.crop_size, vision.patch_size
        most = getattr(stage.objective, "max_crops", None) or vision.max_crops
        sizes = [tuple(round(n * side / image.CROP) for n in size) for size in given.pictures]
        layouts = (
            [GLOBAL_VIEW]
            if contrastive
            else [
                image.plan(w, h, crop_size=side, patch_size=patch, max_crops=most).layout
                for w, h in sizes
            ]
        )
        before = 0 if contrastive else sum(layout.tokens(vision.cells) for layout in layouts)
    if given.pictures and vision is not None and not in_words:  # words are embedded as text is
        crops = sum(layout.crops for layout in layouts)
        media = {
            "images": tuple(layouts),
            "image_slots": None if contrastive else torch.arange(before),
            "crops": torch.zeros(crops, 3, side, side),
            "crop_masks": torch.ones(crops, vision.grid, vision.grid, dtype=torch.bool),
        }
    if given.seconds and config.audio is not None:
        clip = Clip(round(100 * given.seconds), "vision" if media else "speech")
        media |= {
            "clips": (clip,),
            "mels": torch.zeros(clip.frames, config.audio.input_size),
            "audio_slots": torch.arange(before, before + clip.tokens),
        }
        before += clip.tokens
    length = max(before + 2, min(before + given.text, it.budget.context))
    learned = min(length - 1, given.text if given.learned is None else given.learned)
    adapter = stage.data.adapter.get(
        corpus, "vision" if given.pictures else "speech" if given.seconds else None
    )
    made = row(
        [0] * length,
        supervise=[t >= length - learned for t in range(length)],
        adapter=adapter if adapter in config.adapters else None,
        **media,
    )
    return [made] * (2 if isinstance(stage.objective, DPO) else 1)


Work = Counter[str]
"""What a batch makes the model do: `tokens`, `pairs` (of a token and one that it sees), `supervised`, `crops` ..."""


def work(batches: Sequence[Batch], config: ModelConfig) -> Work:
    """Counted on batches."""
    found: Work = Counter()
    for batch in batches:
        lengths = [end - start for start, end in pairwise(batch.bounds)]
        found["tokens"] += len(batch)
        found["sequences"] += len(lengths)
        found["pairs"] += sum(n * (n + 1) // 2 for n in lengths)
        found["supervised"] += 0 if batch.supervised is None else len(batch.supervised)
        found["crops"] += batch.crop_count
        found["picture tokens"] += 0 if batch.image_slots is None else len(batch.image_slots)
        for adapter, n in zip(batch.adapters, lengths, strict=True):
            found[f"lora.{adapter}"] += n
        for clip in batch.clips:
            assert config.audio is not None
            window = config.audio.window
            windows = (
                [clip.tokens] if clip.tokens <= window else [window] * ceil(clip.tokens / window)
            )
            found["mels"] += clip.frames
            found["features"] += sum(windows)
            found["window pairs"] += sum(n * n for n in windows)
            found[f"heard.{clip.branch}"] += clip.tokens
    return found


def times(done: Work, factor: float) -> Work:
    """So much of it."""
    return Counter({key: value * factor for key, value in done.items()})  # type: ignore[misc]


# ------------------------------------------------------------------------------ FLOPs


def rows(it: Subject, done: Work) -> dict[str, float]:
    """Glob -> how many rows its matrices multiply; of the globs that match a name the first one counts."""
    contrastive, language = it.decoder == "looks on", it.decoder == "learns"
    vision, audio = it.config.vision, it.config.audio
    written, features = done["supervised"], done["features"]
    table = {
        "*.b[12]": 0.0,
        "decoder.embed_tokens.*": written * language,
        **{f"decoder.*.lora.{name}.*": done[f"lora.{name}"] for name in it.config.adapters},
        "decoder.layers.*": done["tokens"] * (it.decoder != "is not asked"),
    }
    if vision is not None:
        crops, patches = done["crops"], done["crops"] * vision.grid**2
        table |= {
            "vision.encoder.position_embedding.*": 0,
            "vision.encoder.head.probe": 0,
            "vision.encoder.head.*.in_proj_weight": (2 * patches + crops) / 3 * contrastive,
            "vision.encoder.head.*": crops * contrastive,
            f"vision.encoder.layers.{vision.num_hidden_layers - 1}.*": patches * contrastive,
            "vision.encoder.*": patches,
            "vision.projector.*": done["picture tokens"],
        }
    if audio is not None:
        # Positions in time and frequency after one, two and three convolutions of stride 2.
        first, second, third = (done["mels"] * audio.input_size / 4**n for n in (1, 2, 3))
        table |= {
            "audio.encoder.relative_attention_bias.*": 0,
            "audio.encoder.subsampling.conv.0.*": first,
            "audio.encoder.subsampling.conv.[23].*": second,
            "audio.encoder.subsampling.conv.[56].*": third,
            "audio.encoder.*.dw_conv.*": 0,  # worked out element by element
            "audio.encoder.*": features,
            **{
                f"audio.projector.{b}.*": done[f"heard.{b}"] * language
                for b in ("speech", "vision")
            },
        }
    return table | {
        "objective.positions.*": 0,
        "objective.ctc.*": features,
        "objective.*.multihead_attn.in_proj_weight": (written + 2 * features) / 3,
        "objective.*": done["sequences"] if contrastive else written,
        "*": 0,
    }


def flops(
    it: Subject, done: Work, recompute: bool = False, backward: bool = True
) -> dict[str, float]:
    """FLOPs of forward and `backward`: of `products` (of matrices, convolutions too) and of `attention`. A frozen
    matrix has no gradient of its own, yet hands one on where something below it learns. Causal attention counts the
    pairs that see each other, half of the square; what fused kernels work out twice isn't counted."""
    found = {"products": 0.0, "attention": 0.0}
    multiplied = rows(it, done)
    for kind, size in it.matrices.items():
        back = (kind.learned + kind.through) * backward
        again = recompute and back > 0 and kind.repeated
        found["products"] += 2 * size * multiplied[kind.glob] * (1 + back + again)

    def attend(pairs: float, width: int, layers: int, learns: bool) -> None:
        share = 1 + (2 + recompute) * learns * backward
        found["attention"] += 4 * pairs * width * layers * share

    d, vision, audio = it.config.decoder, it.config.vision, it.config.audio
    if it.decoder != "is not asked":
        width = d.num_attention_heads * d.head_dim
        attend(done["pairs"], width, d.num_hidden_layers, it.decoder == "learns")
    if vision is not None:
        layers = vision.num_hidden_layers - (it.decoder != "looks on")
        pairs = done["crops"] * vision.grid**4
        attend(pairs, vision.hidden_size, layers, it.learns("vision.encoder."))
    if audio is not None:
        pairs = done["window pairs"]
        attend(pairs, audio.hidden_size, audio.num_blocks, it.learns("audio.encoder."))
    return found


# ------------------------------------------------------------------------------ memory


@dataclass(frozen=True)
class Switches:
    """What the command line may set: how many devices share the decoder's layers, tokens of a pack, activations kept
    or worked out again, how many devices share a pack."""

    shard: int = 1
    micro_tokens: int = 8192
    activations: Literal["keep", "recompute"] = "keep"
    context: int = 1


def layer_bytes(it: Subject, part: str, adapter: str | None = None, cpu: bool = False) -> float:
    """Bytes that a layer keeps of a row (a token, a patch, a feature) for its backward pass under bf16 autocast, as
    the forward of `polyphi/model` runs it: the stream between layers is float32 (4 bytes), what matrices read and
    write is bf16 (2)."""
    d, vision, audio = it.config.decoder, it.config.vision, it.config.audio
    if part == "decoder":
        if it.decoder != "learns":
            return 0
        size, inner, heads = d.hidden_size, d.intermediate_size, d.num_attention_heads
        q, kv = heads * d.head_dim, d.num_key_value_heads * d.head_dim
        found = 2 * 4 * size + 6 * inner  # what the norms read; gate, up and silu(gate)
        # Queries, keys, values and what comes out; the CPU has each key once per query head.
        found += 2 * 4 * q if cpu else 2 * (2 * q + 2 * kv) + 4 * heads
        read = 2 * (2 * size + inner) + 2 * q * cpu  # what the matrices read
        if it.learns("decoder.norm"):
            found += 2 * 4 * size + read  # and the normed stream
        elif adapter is not None and it.learns(f"decoder.layers.0.mlp.down_proj.lora.{adapter}"):
            lora = it.config.adapters[adapter]
            found += read + 4 * 2 * lora.rank
            if lora.dropout:  # which inputs stay: a byte each, on the CPU a number
                found += (4 if cpu else 1) * (2 * size + q + inner) + 2 * q * (not cpu)
        return found
    if part == "vision":
        assert vision is not None
        return 24 * vision.hidden_size + 4 * vision.intermediate_size
    assert audio is not None
    # The bias on the scores learns, so the CPU keeps the scores themselves; here of a clip of 15 s.
    scores = 3 * audio.num_attention_heads * 188 * cpu
    return 72 * audio.hidden_size + 16 * audio.intermediate_size + scores


def key_bytes(it: Subject) -> int:
    """A token's key and value in a layer, bf16."""
    d = it.config.decoder
    return 2 * 2 * d.num_key_value_heads * d.head_dim


def memory(
    it: Subject, done: Work, on: Switches, world: int = 1, cpu: bool = False
) -> dict[str, float]:
    """Bytes of one device by part while its part of a pack is learned, after the first step, with gradients of an
    earlier pack in place; `peak` is the most at one time. Where devices share a pack, the last one has the keys and
    values of all of it."""
    d = it.config.decoder
    layers = [n for n in it.tensors if n.startswith("decoder.layers.")]
    cut = it.size(layers) * (1 - 1 / on.shard)  # of the layers, what lies on other devices
    cut_learned = cut if it.learns("decoder.norm") else 0.0
    learned, every = it.size(it.learned), it.size(it.tensors)
    found = {
        "weights, frozen": 4 * (every - learned - cut + cut_learned),
        "weights, learned": 4 * (learned - cut_learned),
        "gradients": 4 * (learned - cut_learned),
        "optimiser": 8 * (learned - cut_learned),
    }

    # bf16 copies of the matrices, kept until their backward; a shard's layers are gathered two at a time.
    recompute, multiplied, copied = on.activations == "recompute", rows(it, done), 0.0
    for kind, size in it.matrices.items():
        used = multiplied[kind.glob] > 0 and (kind.learned or kind.through)
        again = recompute and kind.repeated and not kind.learned
        elsewhere = on.shard > 1 and kind.glob == "decoder.layers.*"
        if used and not (again or elsewhere or kind.glob == HEAD):
            copied += size
    layer = it.size(layers) / d.num_hidden_layers
    gathered = (2 * 2 + 2 + 4) * layer * (on.shard > 1)  # and a layer's gradients, bf16 and float32
    found["bf16 copies"] = 2 * copied + gathered

    # What is kept of each row of a tower's layers; worked out again, of all layers but one only the stream into them.
    vision, audio = it.config.vision, it.config.audio
    towers = [
        (done[f"lora.{a}"], layer_bytes(it, "decoder", a, cpu), d.hidden_size, d.num_hidden_layers)
        for a in (None, *it.config.adapters)
    ]
    found["activations"] = 0.0
    if vision is not None and it.learns("vision.encoder."):
        count = vision.num_hidden_layers - (it.decoder != "looks on")
        kept = layer_bytes(it, "vision", None, cpu)
        towers.append((done["crops"] * vision.grid**2, kept, vision.hidden_size, count))
    if audio is not None and it.learns("audio.encoder."):
        kept = layer_bytes(it, "audio", None, cpu)
        towers.append((done["features"], kept, audio.hidden_size, audio.num_blocks))
        # Three convolutions: what they read, in float32 on the CPU.
        positions = (1 / 4 + 2 / 16 + 2 / 64) * audio.input_size * audio.nemo_conv_channels
        found["activations"] += (4 if cpu else 2) * done["mels"] * positions
    for many, kept, size, count in towers:
        between = 4 * size * (kept > 0)
        found["activations"] += many * (count * between + kept if recompute else count * kept)

    others = (on.context - 1) * done["tokens"] * key_bytes(it)
    found["activations"] += others * (1 if recompute else d.num_hidden_layers)

    written, symbols = done["supervised"], d.vocab_size
    if it.decoder == "learns":
        # A chunk's scores and their gradient; hidden states and theirs; the head in bf16, or twice its gradient.
        scores = min(CHUNK_LOGITS["cpu" if cpu else "cuda"], written * symbols)
        head = (8 if it.learns(HEAD[:-1]) else 2) * symbols * d.hidden_size
        found["logits"] = 10 * scores + 8 * written * d.hidden_size + head
    elif it.decoder == "is not asked":
        # All scores of both decoders: bf16, float32, logarithms, gradients.
        found["logits"] = 14 * (written + done["features"]) * symbols
    else:
        found["logits"] = 12 * done["sequences"] ** 2
    # Afterwards the gradients of replicas are laid side by side to be summed.
    replicas = learned - (it.size(layers) if on.shard > 1 and it.learns("decoder.norm") else 0)
    found["exchange"] = 4 * replicas * (world > 1)
    passing = found["bf16 copies"] + found["activations"] + found["logits"]
    standing = sum(
        found[k] for k in ("weights, frozen", "weights, learned", "gradients", "optimiser")
    )
    return found | {"peak": standing + max(passing, found["exchange"])}


def precomputes_reference(it: Subject) -> bool:
    """Whether the stage computes reference log-probabilities before training (`polyphi/train/reference.py`)."""
    return isinstance(it.stage.objective, DPO)


# ------------------------------------------------------------------------------ communication


def traffic(it: Subject, on: Switches, world: int, packs: int) -> dict[str, float]:
    """Bytes that one device sends in a step of `packs` packs: `gradients` of replicas, in one sum at the end; of
    `shards` (layers gathered for forward and backward in bf16, gradients scattered in float32), behind the
    arithmetic; of `context`, keys and values gathered in each layer, and their gradients scattered, which the layer
    waits for."""
    layers = sum(t.numel() for n, t in it.tensors.items() if n.startswith("decoder.layers."))
    cut = on.shard > 1
    replicas = it.size(it.learned) - cut * layers
    found = {"gradients": 2 * 4 * replicas * (world - 1) / world, "shards": 0.0}
    if cut:
        gathers = 2 + precomputes_reference(it)
        within = (2 * gathers + 4) * layers * (on.shard - 1) / on.shard
        groups = world / on.shard
        found["shards"] = packs * (within + 2 * 4 * layers / on.shard * (groups - 1) / groups)
    asked = 2 + (on.activations == "recompute")
    pack = on.micro_tokens * key_bytes(it) * it.config.decoder.num_hidden_layers
    found["context"] = packs * asked * pack * (on.context - 1) / on.context
    return found

"""The cost of a stage's step: FLOPs, bytes of memory and bytes sent, computed from rows and images.

All numbers are computed from the model, built on the meta device, its trainable parameters and the content of a batch.
Where there is no batch, typical samples (example_rows.py) are used.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from math import ceil, prod
from typing import Literal, NamedTuple

import torch

from polyphi.kernels.unpack import outputs_at_once
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.planning.assumptions import Switches
from polyphi.planning.vocabulary import VocabularyOnly
from polyphi.quantization import quantize
from polyphi.train.aed import AttentionDecoder
from polyphi.train.contrastive import Contrastive
from polyphi.train.loss import CHUNK_LOGITS, CHUNK_ROWS
from polyphi.train.optimizer import groups
from polyphi.train.preference import DPO
from polyphi.train.stage import Budget, Stage, matching
from polyphi.types.batch import Batch
from polyphi.types.inputs.audio import AudioInput
from polyphi.types.inputs.image import ImageInput
from polyphi.types.inputs.item import ItemInput

# ------------------------------------------------------------------------------ trainable parameters


@dataclass(frozen=True, eq=False)
class StageModel:
    """A stage's model on the meta device, and its trainable parameters: `trainable_groups` maps globs to names."""

    stage: Stage
    budget: Budget
    config: ModelConfig
    tensors: Mapping[str, torch.Tensor]
    trainable_groups: Mapping[str, Sequence[str]]

    @cached_property
    def trainable(self) -> frozenset[str]:
        return frozenset(name for names in self.trainable_groups.values() for name in names)

    @cached_property
    def sharded(self) -> list[str]:
        """Names of the parameters that `parallel.shard` shards: those of the decoder's layers, without adapters."""
        return [n for n in self.tensors if n.startswith("decoder.layers.") and ".lora." not in n]

    def trains(self, prefix: str) -> bool:
        """Whether a parameter whose name begins with `prefix` is trainable."""
        return any(name.startswith(prefix) for name in self.trainable)

    def size(self, names: Iterable[str]) -> int:
        """Number of elements of the named parameters."""
        return sum(self.tensors[name].numel() for name in names)

    @cached_property
    def decoder(self) -> Literal["backward", "forward", "unused"]:
        """Use of the language model: forward and backward, forward only (the embeddings of captions), or none."""
        if isinstance(self.stage.objective, Contrastive):
            return "forward"
        return "unused" if isinstance(self.stage.objective, AttentionDecoder) else "backward"

    def passes_gradient(self, name: str) -> bool:
        """Whether the backward pass computes the gradient of a matrix's input, since a parameter before it is
        trainable."""
        part = name.split(".", maxsplit=1)[0]
        if part == "decoder":
            return self.decoder == "backward"
        if part == "objective":
            return not name.startswith("objective.text.")
        if ".projector." in name:
            return self.trains(f"{part}." if ".down." in name else f"{part}.encoder.")
        bottom = name.endswith(("patch_embedding.weight", "subsampling.conv.0.weight"))
        return self.trains(f"{part}.encoder.") and not bottom

    @cached_property
    def matrices(self) -> Counter["MatrixGroup"]:
        """Number of elements of all matrices, grouped by their properties."""
        globs, sizes = list(rows(self, Counter())), Counter[MatrixGroup]()
        for name, tensor in self.tensors.items():
            if tensor.ndim > 1:
                glob = next(g for g in globs if fnmatch.fnmatchcase(name, g))
                repeated = ".layers." in name or ".blocks." in name
                passes = self.passes_gradient(name)
                sizes[MatrixGroup(glob, name in self.trainable, passes, repeated)] += tensor.numel()
        return sizes


class MatrixGroup(NamedTuple):
    """Matrices with equal properties: the glob of `rows` that matches them, whether they are trainable, need the
    gradient of their input, and are in a repeated block."""

    glob: str
    trainable: bool
    passes_gradient: bool
    repeated: bool


def stage_model(stage: Stage, budget: Budget, config: ModelConfig) -> StageModel:
    """The model of a stage: `config` has the parts that it needs. Raises ValueError if a glob of the stage matches
    nothing."""
    with torch.device("meta"):
        model = PhiModel(config)
        module = stage.objective.build(model, VocabularyOnly(config.decoder.vocab_size))
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    for glob in (*stage.start, *stage.copy):
        matching(glob, tensors)
    if module is not None:
        tensors |= {f"objective.{n}": p for n, p in module.named_parameters()}
    return StageModel(stage, budget, config, tensors, groups(stage, tensors))


HEAD = "decoder.embed_tokens.*"

# ------------------------------------------------------------------------------ amounts of a batch


Work = Counter[str]
"""Amounts that determine the cost of a batch: `tokens`, `pairs` (of query and key), `supervised`, `crops` ..."""


def work(batches: Sequence[Batch], config: ModelConfig) -> Work:
    """The amounts of batches."""
    amounts: Work = Counter()
    for batch in batches:
        lengths = [end - start for start, end in pairwise(batch.cu_seqlens)]
        amounts["tokens"] += len(batch)
        amounts["sequences"] += len(lengths)
        amounts["pairs"] += sum(n * (n + 1) // 2 for n in lengths)
        amounts["supervised"] += 0 if batch.supervised is None else len(batch.supervised)
        if (images := batch.of(ImageInput)) is not None:
            amounts["images"] += len(images.layouts)
            amounts["crops"] += images.size
            amounts["picture tokens"] += 0 if images.slots is None else len(images.slots)
        for adapter, n in zip(batch.adapters, lengths, strict=True):
            amounts[f"lora.{adapter}"] += n
        for name, own in config.further.items():
            if isinstance(inputs := batch.inputs.get(name), ItemInput):
                costs = (own.modality.cost(values) for values in inputs.items)
                amounts[f"{name} flops"] += sum(cost.flops for cost in costs)  # type: ignore[assignment]
        audio = batch.of(AudioInput)
        for clip in audio.layouts if audio is not None else ():
            assert config.audio is not None
            window = config.audio.window
            windows = (
                [clip.tokens] if clip.tokens <= window else [window] * ceil(clip.tokens / window)
            )
            amounts["clips"] += 1
            amounts["mels"] += clip.frames
            amounts["features"] += sum(windows)
            amounts["window pairs"] += sum(n * n for n in windows)
            amounts[f"audio_tokens.{clip.branch}"] += clip.tokens
    return amounts


def scaled(amounts: Work, factor: float) -> Work:
    """The amounts multiplied by `factor`."""
    return Counter({key: value * factor for key, value in amounts.items()})  # type: ignore[misc]


ENCODED = {"images": ("crops",), "clips": ("mels", "features", "window pairs")}
"""Number of items -> the amounts that encoders read of them (`Work`)."""


def divided(amounts: Work, parts: int) -> Work:
    """The amounts of the device that has most where `parts` share a pack: its tokens are divided evenly, its images and
    clips one by one (`parallel.Context`)."""
    share = scaled(amounts, 1 / parts)
    for items, keys in ENCODED.items():
        if count := amounts[items]:
            share |= {key: amounts[key] * min(1, ceil(count / parts) / count) for key in keys}  # type: ignore[misc]
    return share


# ------------------------------------------------------------------------------ FLOPs


def rows(target: StageModel, amounts: Work) -> dict[str, float]:
    """Glob -> number of rows that its matrices multiply; where several globs match a name, the first one counts."""
    contrastive, language = target.decoder == "forward", target.decoder == "backward"
    vision, audio = target.config.vision, target.config.audio
    written, features = amounts["supervised"], amounts["features"]
    table = {
        "*.b[12]": 0.0,
        "decoder.embed_tokens.*": written * language,
        **{f"decoder.*.lora.{name}.*": amounts[f"lora.{name}"] for name in target.config.adapters},
        "decoder.layers.*": amounts["tokens"] * (target.decoder != "unused"),
    }
    if vision is not None:
        crops, patches = amounts["crops"], amounts["crops"] * vision.grid**2
        table |= {
            "vision.encoder.position_embedding.*": 0,
            "vision.encoder.head.probe": 0,
            "vision.encoder.head.*.in_proj_weight": (2 * patches + crops) / 3 * contrastive,
            "vision.encoder.head.*": crops * contrastive,
            f"vision.encoder.layers.{vision.num_hidden_layers - 1}.*": patches * contrastive,
            "vision.encoder.*": patches,
            "vision.projector.*": amounts["picture tokens"],
        }
    if audio is not None:
        # Positions in time and frequency after one, two and three convolutions of stride 2.
        first, second, third = (amounts["mels"] * audio.input_size / 4**n for n in (1, 2, 3))
        table |= {
            "audio.encoder.relative_attention_bias.*": 0,
            "audio.encoder.subsampling.conv.0.*": first,
            "audio.encoder.subsampling.conv.[23].*": second,
            "audio.encoder.subsampling.conv.[56].*": third,
            "audio.encoder.*.dw_conv.*": 0,  # computed element by element
            "audio.encoder.*": features,
            **{
                f"audio.projector.{b}.*": amounts[f"audio_tokens.{b}"] * language
                for b in ("speech", "vision")
            },
        }
    table |= {f"{name}.*": 0.0 for name in target.config.further}  # `flops` has theirs
    return table | {
        "objective.positions.*": 0,
        "objective.ctc.*": features,
        "objective.*.multihead_attn.in_proj_weight": (written + 2 * features) / 3,
        "objective.*": amounts["sequences"] if contrastive else written,
        "*": 0,
    }


def flops(
    target: StageModel, amounts: Work, recompute: bool = False, backward: bool = True
) -> dict[str, float]:
    """FLOPs of forward and `backward`: of `products` (of matrices, convolutions included) and of `attention`. A frozen
    matrix has no gradient, but the backward pass computes that of its input where a parameter before it is trainable.
    Causal attention counts the pairs of query and visible key, half of the square; what fused kernels recompute isn't
    counted."""
    counts = {"products": 0.0, "attention": 0.0}
    row_counts = rows(target, amounts)
    for group, size in target.matrices.items():
        back = (group.trainable + group.passes_gradient) * backward
        again = recompute and back > 0 and group.repeated
        counts["products"] += 2 * size * row_counts[group.glob] * (1 + back + again)

    def attend(pairs: float, width: int, layers: int, trains: bool) -> None:
        share = 1 + (2 + recompute) * trains * backward
        counts["attention"] += 4 * pairs * width * layers * share

    for name in target.config.further:
        share = 1 + 2 * target.trains(f"{name}.") * backward
        counts["products"] += amounts[f"{name} flops"] * share
    d, vision, audio = target.config.decoder, target.config.vision, target.config.audio
    if target.decoder != "unused":
        width = d.num_attention_heads * d.head_dim
        attend(amounts["pairs"], width, d.num_hidden_layers, target.decoder == "backward")
    if vision is not None:
        layers = vision.num_hidden_layers - (target.decoder != "forward")
        pairs = amounts["crops"] * vision.grid**4
        attend(pairs, vision.hidden_size, layers, target.trains("vision.encoder."))
    if audio is not None:
        pairs = amounts["window pairs"]
        attend(pairs, audio.hidden_size, audio.num_blocks, target.trains("audio.encoder."))
    return counts


# ------------------------------------------------------------------------------ memory


@cache
def frozen_bytes(target: StageModel, base: str, cpu: bool = False) -> float:
    """Bytes of all frozen weights with the given `Switches.base`. Of a quantized base a CPU maps the table of
    embeddings, which is only looked up. Raises ValueError for a quantized base whose weights the stage trains."""
    total = target.size(target.tensors) - target.size(target.trainable)
    if base in ("fp32", "bf16"):
        return total * (4 if base == "fp32" else 2)
    device = torch.device("cpu" if cpu else "cuda")
    with torch.device("meta"):
        parts = quantize.frozen_parts(PhiModel(target.config), base, target.trainable, device)
    quantized = sum(prod(part.shape) for part in parts)
    return sum(quantize.size(part) for part in parts) + 2 * (total - quantized)


def layer_bytes(
    target: StageModel, part: str, adapter: str | None = None, cpu: bool = False
) -> float:
    """Bytes that a layer stores per row (a token, a patch, a feature) for its backward pass under bf16 autocast, for
    the forward of `polyphi/model`, on a CPU with our kernels: the residual stream is float32 (4 bytes), inputs and
    outputs of matrices are bf16 (2)."""
    d, vision, audio = target.config.decoder, target.config.vision, target.config.audio
    if part == "decoder":
        if target.decoder != "backward":
            return 0
        size, inner, heads = d.hidden_size, d.intermediate_size, d.num_attention_heads
        q, kv = heads * d.head_dim, d.num_key_value_heads * d.head_dim
        # Inputs of the norms; gate and up, elsewhere than in our kernels also silu(gate).
        total = 2 * 4 * size + (4 if cpu else 6) * inner
        # Queries, keys, values, the output, and a sum per query and head.
        total += 2 * (2 * q + 2 * kv) + 4 * heads
        inputs = 2 * (2 * size + inner)  # inputs of the matrices
        if target.trains("decoder.norm"):
            normalized = 0 if cpu else 2 * 4 * size  # our kernels compute it again
            total += normalized + inputs
        elif adapter is not None and target.trains(
            f"decoder.layers.0.mlp.down_proj.lora.{adapter}"
        ):
            lora = target.config.adapters[adapter]
            total += inputs + 4 * 2 * lora.rank
            if lora.dropout:  # the dropout mask: a byte per input, on the CPU a factor in bf16
                total += (2 if cpu else 1) * (2 * size + q + inner) + 2 * q * (not cpu)
        return total
    if part == "vision":
        assert vision is not None
        # With our kernels queries, keys and values share one bf16 copy of their input.
        return (20 if cpu else 24) * vision.hidden_size + 4 * vision.intermediate_size
    assert audio is not None
    return 72 * audio.hidden_size + 16 * audio.intermediate_size


def key_bytes(target: StageModel) -> int:
    """Bytes of a token's key and value in a layer, bf16."""
    d = target.config.decoder
    return 2 * 2 * d.num_key_value_heads * d.head_dim


def memory(
    target: StageModel, amounts: Work, on: Switches, world: int = 1, cpu: bool = False
) -> dict[str, float]:
    """Bytes of one device by part during forward and backward of its part of a pack, after the first step, with the
    gradients of an earlier pack; `peak` is the maximum at one time. Where devices share a pack, the last one has the
    keys and values of all tokens. Where samples are compared, `amounts["compared"]` are those of the whole step."""
    d = target.config.decoder
    layers = target.size(target.sharded)
    other_devices = layers * (1 - 1 / on.fsdp)  # parameters of layers elsewhere
    learns = target.trains("decoder.norm")
    other_trainable = other_devices if learns else 0.0
    trainable = target.size(target.trainable)
    frozen_elsewhere = (4 if on.base == "fp32" else 2) * (other_devices - other_trainable)
    parts = {
        "weights, frozen": frozen_bytes(target, on.base, cpu) - frozen_elsewhere,
        "weights, learned": 4 * (trainable - other_trainable),
        "gradients": 4 * (trainable - other_trainable),
        "optimiser": 8 * (trainable - other_trainable),
    }

    # bf16 copies of the matrices, kept until their backward; a shard's layers are gathered two at a time.
    recompute, row_counts, bf16_copies = on.activations == "recompute", rows(target, amounts), 0.0
    for group, size in target.matrices.items():
        used = row_counts[group.glob] > 0 and (group.trainable or group.passes_gradient)
        again = recompute and group.repeated and not group.trainable
        elsewhere = on.fsdp > 1 and group.glob == "decoder.layers.*"
        as_stored = on.base != "fp32" and not group.trainable
        if used and not (again or elsewhere or as_stored or group.glob == HEAD):
            bf16_copies += size
    layer = layers / d.num_hidden_layers
    gradients = (2 + 4) * learns  # of a layer, bf16 and float32
    gathered = (2 * 2 + gradients) * layer * (on.fsdp > 1)
    parts["bf16 copies"] = 2 * bf16_copies + gathered

    # Bytes stored per row of a tower's layers; with recomputation only the inputs of all layers but one are stored.
    vision, audio = target.config.vision, target.config.audio
    size, count = d.hidden_size, d.num_hidden_layers
    towers = [
        (amounts[f"lora.{a}"], layer_bytes(target, "decoder", a, cpu), size, count)
        for a in (None, *target.config.adapters)
    ]
    parts["activations"] = 0.0
    if vision is not None and target.trains("vision.encoder."):
        count = vision.num_hidden_layers - (target.decoder != "forward")
        row_bytes = layer_bytes(target, "vision", None, cpu)
        towers.append((amounts["crops"] * vision.grid**2, row_bytes, vision.hidden_size, count))
    if audio is not None and target.trains("audio.encoder."):
        row_bytes = layer_bytes(target, "audio", None, cpu)
        towers.append((amounts["features"], row_bytes, audio.hidden_size, audio.num_blocks))
        # Inputs of the three convolutions, in float32 on the CPU.
        positions = (1 / 4 + 2 / 16 + 2 / 64) * audio.input_size * audio.nemo_conv_channels
        parts["activations"] += (4 if cpu else 2) * amounts["mels"] * positions
    for row_count, row_bytes, size, count in towers:
        between = 4 * size * (row_bytes > 0)
        parts["activations"] += row_count * (
            count * between + row_bytes if recompute else count * row_bytes
        )

    others = (on.context_parallel - 1) * amounts["tokens"] * key_bytes(target)
    parts["activations"] += others * (1 if recompute else d.num_hidden_layers)
    if on.context_parallel > 1:  # the tokens of all items, with their gradients
        tokens = amounts["picture tokens"] + sum(
            n for key, n in amounts.items() if key.startswith("audio_tokens.")
        )
        parts["activations"] += 2 * 4 * on.context_parallel * tokens * d.hidden_size

    written, symbols = amounts["supervised"], d.vocab_size
    if target.decoder == "backward":
        # A chunk's logits, on a CPU replaced by their gradient; hidden states with theirs; a copy of the head in bf16,
        # or twice its gradient.
        at_once = max(CHUNK_ROWS, CHUNK_LOGITS["cpu" if cpu else "cuda"] // symbols)
        logits = min(at_once, written) * symbols
        head_bytes = 8 if target.trains(HEAD[:-1]) else 2 * (on.base == "fp32")
        head = head_bytes * symbols * d.hidden_size
        if on.base in ("int8", "int4") and cpu:
            head = 2 * d.hidden_size * min(outputs_at_once(d.hidden_size), symbols)  # at a time
        parts["logits"] = (4 if cpu else 10) * logits + 8 * written * d.hidden_size + head
        # The auxiliary loss has the directions of all words (train/alignment.py).
        if getattr(target.stage.objective, "align", 0.0):
            parts["logits"] += 4 * symbols * d.hidden_size
    elif target.decoder == "unused":
        # All logits of both decoders: bf16, float32, logarithms, gradients.
        parts["logits"] = 14 * (written + amounts["features"]) * symbols
    else:
        # A tile of logits with their gradients; embeddings of the device's captions, and directions of all.
        compared, width = amounts["compared"] or amounts["sequences"], Contrastive.width
        tile = min(CHUNK_LOGITS["cpu" if cpu else "cuda"], compared**2 / world)
        parts["logits"] = 4 * (
            5 * tile + 4 * d.hidden_size * compared / world + 3 * width * compared
        )
    # After the backward pass the gradients of replicas are concatenated for the sum over processes.
    replicas = trainable - (layers if on.fsdp > 1 and learns else 0)
    parts["exchange"] = 4 * replicas * (world > 1)
    temporary = parts["bf16 copies"] + parts["activations"] + parts["logits"]
    permanent = sum(
        parts[k] for k in ("weights, frozen", "weights, learned", "gradients", "optimiser")
    )
    return parts | {"peak": permanent + max(temporary, parts["exchange"])}


def precomputes_reference(target: StageModel) -> bool:
    """Whether the stage computes reference log-probabilities before training (`polyphi/train/preference.py`)."""
    return isinstance(target.stage.objective, DPO)


# ------------------------------------------------------------------------------ communication


def traffic(target: StageModel, on: Switches, world: int, packs: int) -> dict[str, float]:
    """Bytes that one device sends in a step of `packs` packs: `gradients` of replicas, in one sum at the end; `shards`:
    layers gathered for forward and backward in bf16 and gradients scattered in float32, in parallel with the
    arithmetic; `context`: keys and values gathered in each layer and their gradients scattered, for which the layer
    waits."""
    layers, learns = target.size(target.sharded), target.trains("decoder.norm")
    sharded = on.fsdp > 1
    replicas = target.size(target.trainable) - sharded * learns * layers
    sent = {"gradients": 2 * 4 * replicas * (world - 1) / world, "shards": 0.0}
    if sharded:
        gathers = 1 + (target.decoder == "backward") + precomputes_reference(target)
        within = (2 * gathers + 4 * learns) * layers * (on.fsdp - 1) / on.fsdp
        groups = world / on.fsdp
        between = 2 * 4 * learns * layers / on.fsdp * (groups - 1) / groups
        sent["shards"] = packs * (within + between)
    collectives = 2 + (on.activations == "recompute")
    pack = on.micro_tokens * key_bytes(target) * target.config.decoder.num_hidden_layers
    sent["context"] = packs * collectives * pack * (on.context_parallel - 1) / on.context_parallel
    return sent

"""Training against a plain transformers + PEFT loop (peers/transformers_peft.py), on the same rows in the same steps:

- vision: the parameters that vision 3 trains (LoRA, encoder, projector) in the report's model at a quarter of every
  width and depth, its vocabulary of 200,064 whole: a decoder of 768 x 8
- speech: the parameters that speech 2 trains (LoRA, projector) in the same model
- text: the whole language model of nano, on rows of text 1's corpora

    polyphi bench train [--json]
    polyphi bench train --profile [--only vision speech text muon int4]   # seconds of a step by part (step_profile.py)

A profile has two works more, without a peer: muon trains text with the optimizer of nano, int4 fine-tunes a LoRA of
rank 16 on text, on a base in 4 bits.

Ours is the trainer of polyphi/train/trainer.py as a stage runs it, its end with hashes and files included in the peak
of memory.
Speed is supervised tokens per second after the first step, memory the peak of a process; both sides have the
same threads and AdamW. Ours trains in the precision that `polyphi train` chooses on this machine
(polyphi/devices/precision.py), the peer in the one that is faster in a short run. [ours] The lengths of
questions, answers, pictures and clips: about 6 % and 13 % of the padded positions are supervised, as in instruction
data of these kinds.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image as Picture
from planned_rows import image_values, objective, read_batches, same_work, write_steps
from sidebyside import (
    Row,
    alternate,
    console,
    matmul_rate,
    median,
    peak_bytes,
    peer_precision,
    show,
)
from step_profile import ProfiledTrainer, show_profiles
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from polyphi.data import shards
from polyphi.data.loader import Loader
from polyphi.devices import precision
from polyphi.kernels import training_attention
from polyphi.model.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.matrix_products import matrix_products
from polyphi.processing import image
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.quantize import quantize_frozen
from polyphi.runtime.files import cache_folder
from polyphi.runtime.progress import read_metrics
from polyphi.train.context import RunContext
from polyphi.train.loss import NextToken
from polyphi.train.options import TrainOptions
from polyphi.train.stage import Budget, Mix, Stage
from polyphi.train.trainer import Trainer
from polyphi.types.inputs.audio import AudioLayout
from polyphi.types.inputs.image import ImageInput
from polyphi_recipe import stages
from polyphi_recipe.corpora import code, copying, fim, instructions
from polyphi_recipe.pipeline import corpus as corpora
from polyphi_recipe.stages import sizes

HERE = Path(__file__).parent
QUARTER = ModelConfig(
    decoder=DecoderConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
    ),
    vision=VisionConfig(
        hidden_size=288, intermediate_size=1076, num_hidden_layers=7, num_attention_heads=4
    ),
    audio=AudioConfig(
        hidden_size=256,
        intermediate_size=384,
        num_attention_heads=4,
        num_blocks=6,
        nemo_conv_channels=256,
        ext_pw_out_channel=256,
        depthwise_separable_out_channel=256,
    ),
    adapters={"vision": AdapterConfig(64, 128.0), "speech": AdapterConfig(80, 160.0, 0.01)},
)
PICTURES = ((448, 448), (300, 700), (640, 480), (896, 448))
"""Width and height in pixels: 545, 753, 1065 and 801 tokens."""


@dataclass(frozen=True)
class Work:
    """One comparison. `adapter` is the trained one ("" for the whole language model); `steps` counts the first,
    which is not timed; `base` is the form of a quantized base, `muon` Muon's factor on the learning rate."""

    name: str
    adapter: str
    config: ModelConfig
    stage: str
    batch_tokens: int
    steps: int
    base: str | None = None
    muon: float = 0.0


NANO = ModelConfig(
    replace(sizes.NANO.model.decoder, bos_token_id=0, pad_token_id=0), None, None, adapters={}
)
WORKS = (
    Work("vision", "vision", QUARTER, "vision_3_generative", batch_tokens=2048, steps=3),
    Work("speech", "speech", QUARTER, "speech_2_post", batch_tokens=1024, steps=4),
    Work("text", "", NANO, "text_1_pretrain", batch_tokens=1024, steps=41),
)
OWN = ModelConfig(QUARTER.decoder, None, None, {"own": AdapterConfig(16, 32.0)})
PROFILED = (
    *WORKS,
    replace(WORKS[-1], name="muon", muon=sizes.NANO.budgets[WORKS[-1].stage].muon_lr_factor),
    Work("int4", "own", OWN, "finetune", batch_tokens=2048, steps=4, base="int4"),
)


# ------------------------------------------------------------------------------ rows, the same for both sides


def spoken_or_seen(work: Work, count: int) -> list[dict[str, Any]]:
    """Rows about noise of usual sizes: a picture, a clip or nothing, a question, an answer; ids drawn at random."""
    random, rows = Random(0), []
    vision, audio = work.config.vision, work.config.audio
    for _ in range(count):
        generator = torch.Generator().manual_seed(random.randrange(1 << 30))
        media: dict[str, Any]
        if vision is None or audio is None:
            media, placeholders = {}, []
            answer = random.randint(50, 400)
        elif work.adapter == "vision":
            width, height = random.choice(PICTURES)
            noise = torch.randint(
                256, (height, width, 3), dtype=torch.uint8, generator=generator
            ).numpy()
            plan = image.plan(
                width, height, crop_size=vision.crop_size, patch_size=vision.patch_size
            )
            crops, view, masks, layout = image.cut(Picture.fromarray(noise), plan)
            media = image_values(
                ImageInput(layouts=(layout,), crops=crops, views=view, masks=masks)
            )
            placeholders = [vision.image_token_id] * layout.tokens(vision.cells)
            answer = random.randint(16, 96)
        else:
            frames = random.randint(200, 1500)  # 2 to 15 s
            media = {"mels": 8 + 3 * torch.randn(frames, 80, generator=generator)}
            placeholders = [audio.audio_token_id] * AudioLayout(frames, "speech").tokens
            answer = round(frames * 0.027)  # tokens of 10 ms of speech
        text = [random.randrange(work.config.decoder.vocab_size - 100) for _ in range(answer + 16)]
        ids = placeholders + text
        supervise = [False] * (len(ids) - answer) + [True] * answer
        slots = torch.arange(len(placeholders))
        rows.append({"ids": ids, "supervise": supervise, "slots": slots, **media})
    return rows


def written(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Rows of text 1's corpora in its proportions, code standing for all pages; by a separate tokenizer. (A help
    page is as long as a whole step: with it a padded batch would be almost empty.)"""
    mix = {"copying": 40, "instructions": 57.4, "code": 0.6}
    cache = cache_folder()
    # Training rows are checked against held-out ones, those of code against fim's too.
    for corpus, rows in (
        (fim.corpus, {"test": 50}),
        (copying.corpus, {"train": 2000, "test": 50}),
        (instructions.corpus, {"train": 2000, "test": 50}),
        (code.corpus, {"train": 200, "test": 50}),
    ):
        corpora.build(
            corpus, corpora.Work(rows, seed=0, cache=cache, data=folder, report=console.print)
        )
    texts = (
        message.text
        for name in mix
        for sample in shards.Shards(folder / name / "train")
        for message in sample.messages
    )
    processor = Processor(Tokenizer.train(texts, work.config.decoder.vocab_size))
    stage = stages.load(work.stage)
    loader = Loader(
        mix,
        folder,
        lambda _, sample: stage.objective.rows(sample, processor, work.batch_tokens),
        batch_tokens=(work.steps + 1) * work.batch_tokens,
        seed=0,
    )
    return [
        {
            "ids": batch.ids.tolist(),
            "supervise": [False, *(batch.labels[:-1] != -100).tolist()],
        }
        for rows in loader.step().samples
        for batch in rows
        if batch.labels is not None
    ]


def plan(work: Work) -> Stage:
    """The stage of a work, or a fine-tune of its adapter."""
    if work.stage != "finetune":
        return stages.load(work.stage)
    trainable = {f"decoder.*.lora.{work.adapter}.*": 3e-4}
    return Stage(
        name=work.stage,
        start={"*": "random weights"},
        trainable=trainable,
        data=Mix({"rows": 1.0}),
        objective=NextToken(),
    )


def write(work: Work, folder: Path) -> None:
    """Write the files for both sides: `rows.pt`, `work.json` (sizes, learning rate, rows of each step) and `rows`, a
    corpus of their indices."""
    rows = (
        spoken_or_seen(work, 10 * work.steps) if work.adapter else written(work, folder / "corpora")
    )
    steps = write_steps(rows, folder, work.adapter or None, work.batch_tokens, work.steps)
    rate = max(plan(work).trainable.values())
    settings = {**for_peer(work), "rate": rate, "steps": steps}
    (folder / "work.json").write_text(json.dumps(settings))


def for_peer(work: Work) -> dict[str, Any]:
    """The model's configuration in the names of the peer."""
    d, v, a = work.config.decoder, work.config.vision, work.config.audio
    decoder = asdict(d)
    factors = {k: list(decoder.pop(k)) for k in ("short_factor", "long_factor")}
    decoder.pop("eos_token_ids")
    decoder |= {
        "rope_scaling": {"type": "longrope", **factors},
        "tie_word_embeddings": True,
        "eos_token_id": d.bos_token_id,
    }
    settings: dict[str, Any] = {"decoder": decoder, "adapter": work.adapter}
    if v is None or a is None:
        return settings
    vision = {**asdict(v), "image_size": v.crop_size}
    audio = asdict(a)
    vision.pop("max_crops")
    for key in ("window", "input_size", "time_reduction", "kernel_size"):
        audio.pop(key)  # the library's defaults are the same
    adapter = work.config.adapters[work.adapter]
    trainable = {
        "vision": ["*.lora_?.vision.*", "*.image_embed.*"],
        "speech": ["*.lora_?.speech.*", "*.audio_embed.*_for_speech.*"],
    }
    lora = {"r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout}
    return {
        **settings,
        "vision": vision,
        "audio": audio,
        "lora": lora,
        "learn": trainable[work.adapter],
    }


# ------------------------------------------------------------------------------ our side


def configuration(work: Work) -> ModelConfig:
    """The configuration of the stage's model."""
    if not work.adapter:
        return work.config
    return replace(
        work.config,
        adapters={work.adapter: work.config.adapters[work.adapter]},
        vision=work.config.vision if work.adapter == "vision" else None,
        audio=work.config.audio if work.adapter == "speech" else None,
    )


def make_trainer(
    work: Work, folder: Path, out: Path, dtype: precision.Requested, kind: type[Trainer] = Trainer
) -> Trainer:
    """The trainer of a stage on the rows in `folder`, set up."""
    batches = read_batches(folder, work.adapter or None)
    model = PhiModel(configuration(work))
    model.initialise(0)
    mix = Mix({"rows": 1.0}, curriculum=("rows",))
    stage = replace(plan(work), data=mix, objective=objective(batches))
    if work.base:
        quantize_frozen(
            model, work.base, stage.learning_rates(n for n, _ in model.named_parameters())
        )
    budget = Budget(work.steps, work.batch_tokens, work.batch_tokens, muon_lr_factor=work.muon)
    options = TrainOptions(precision=dtype, base=work.base)
    trainer = kind(
        stage, budget, model, None, folder, out, options, RunContext(report=lambda _: None)
    )
    trainer.start()
    return trainer


def ours(
    work: Work,
    folder: Path,
    *,
    count_flops: bool = False,
    dtype: precision.Requested = "auto",
) -> dict[str, Any]:
    """Train as a stage does; return the object that `sidebyside.alternate` reads."""
    attention = CountedAttention() if count_flops else None
    with tempfile.TemporaryDirectory(dir=folder) as out:
        trainer = make_trainer(work, folder, Path(out), dtype)
        counter = FlopCounterMode(display=False) if count_flops else None
        with counter or torch.enable_grad(), attention or nullcontext():
            trainer.loop()
            manifest = trainer.finish()
        records = read_metrics(Path(out) / "metrics.jsonl")
    seconds = sum(r["tokens"] / r["tokens_per_second"] for r in records[1:])
    supervised = sum(r["supervised"] for r in records[1:])
    return {
        "supervised": supervised,
        "speed": supervised / seconds,
        "memory": peak_bytes() / 2**30,
        "losses": [r["loss"] for r in records],
        "trainable": sum(r["parameters"] for r in manifest["trainable"] if r["lr"]),
        "seconds_per_step": seconds / max(1, len(records) - 1),
        "flops_per_step": (counter.get_total_flops() + attention.flops) / len(records)
        if counter and attention
        else None,
    }


class CountedAttention:
    """While active, counts the FLOPs of our attention with gradients, which PyTorch's counter doesn't see: of two
    products in the forward pass and four in the backward pass."""

    def __init__(self) -> None:
        self.flops = 0

    def __enter__(self) -> None:
        original = training_attention.attention

        def counted(
            q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], **options: Any
        ) -> Tensor:
            keys = options.get("key_lengths") or lengths
            pairs = sum(n * m for n, m in zip(lengths, keys, strict=True))
            products = 6 if torch.is_grad_enabled() and q.requires_grad else 2
            self.flops += (1 if options.get("causal") else 2) * products * pairs * q[0].numel()
            return original(q, k, v, lengths, **options)

        self._patch = patch.object(training_attention, "attention", counted)
        self._patch.start()

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


def profile(work: Work, threads: int) -> dict[str, float]:
    """The seconds of one of our steps by part."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(work, folder)
        torch.set_num_threads(threads)
        trainer = make_trainer(work, folder, folder / "out", "auto", ProfiledTrainer)
        assert isinstance(trainer, ProfiledTrainer)
        trainer.loop()
        return trainer.parts


# ------------------------------------------------------------------------------ both


def compare(
    work: Work, repeats: int, threads: int, limits: dict[str, float], peer_name: str
) -> tuple[list[Row], list[Row]]:
    """Rows of one work, and those against the peer with its head on labelled positions only. `limits` holds FLOP/s by
    precision."""
    console.print(f"[bold]{work.name}[/bold]")
    ours_in = precision.choose(
        "auto", "cpu", matrix_products(configuration(work)), work.batch_tokens
    )
    limit = limits[ours_in.precision]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(work, folder)
        us: list[str | Path] = [Path(__file__), "--side", work.name, "--folder", folder]
        us += ["--precision", ours_in.precision]
        peer: list[str | Path] = [HERE / "peers" / "transformers_peft.py", folder]
        peer_in = peer_precision(peer, threads)
        peer += ["--precision", peer_in.precision]
        console.print(f"  ours in {ours_in}; the peer in {peer_in}", highlight=False)
        results = alternate(
            {"ours": us, "peer": peer, "peer, short head": [*peer, "--head", "supervised"]},
            repeats,
            threads,
        )
        counted = alternate({"ours, counting": [*us, "--flops"]}, 1, threads)["ours, counting"][0]
    same_work(results, 0.3)  # of an untrained model
    share = counted["flops_per_step"] / median(results["ours"], "seconds_per_step") / limit
    kinds = [("speed", "supervised tokens/s", share)]
    if work.adapter:
        kinds.append(("memory", "GiB", None))
    tables: list[list[Row]] = []
    for side, label in (("peer", ""), ("peer, short head", ", the peer's head on labels only")):
        medians = {k: (median(results["ours"], k), median(results[side], k)) for k, *_ in kinds}
        tables.append(
            [
                Row(f"{work.name} {key}{label}", *medians[key], peer_name, unit, limit_share)
                for key, unit, limit_share in kinds
            ]
        )
    return tables[0], tables[1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Training against a plain transformers loop.")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="the seconds of a step by part")
    names = [work.name for work in PROFILED]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the works")
    parser.add_argument("--side", choices=[w.name for w in WORKS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--flops", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="auto", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.side:
        work = next(w for w in WORKS if w.name == args.side)
        result = ours(work, args.folder, count_flops=args.flops, dtype=args.precision)
        print(json.dumps(result))
        return
    threads = len(os.sched_getaffinity(0))
    if args.profile:
        if (
            "KINETO_LOG_LEVEL" not in os.environ
        ):  # read when torch is loaded: else each profile prints two lines
            os.execve(
                sys.executable,
                [sys.executable, *sys.argv],
                {**os.environ, "KINETO_LOG_LEVEL": "99"},
            )
        profiles = {w.name: profile(w, threads) for w in PROFILED if w.name in args.only}
        if args.json:
            print(json.dumps(profiles))
        else:
            show_profiles(profiles)
        return
    try:
        peer = f"transformers {version('transformers')} + peft {version('peft')}"
    except PackageNotFoundError as error:
        parser.error(
            f"the peer needs {error.name}: pip install -r {HERE / 'peers/requirements.txt'}"
        )
    torch.set_num_threads(threads)
    limits = {name: matmul_rate(dtype=dtype) for name, dtype in precision.DTYPES.items()}
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in limits.items())
    console.print(f"{threads} threads, matrix products at {rates}")
    rows, others = [], []
    for work in (w for w in WORKS if w.name in args.only):
        ours_and_peer, ours_and_short = compare(work, args.repeats, threads, limits, peer)
        rows += ours_and_peer
        others += ours_and_short
    show(rows, as_json=args.json, others=others)


if __name__ == "__main__":
    main()

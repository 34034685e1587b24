"""A training run that takes a second: four corpora of a dozen samples, a tiny model of all modalities.

python small.py OUT DATA [--stage NAME] [--steps N] [--fsdp PARTS] [--pause SECONDS] [--then OUT DATA ...]

Tests start it in other processes. The arguments after `--then` are those of another run in the same process.
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image as Picture

from polyphi.data import shards
from polyphi.data.shards import Sample, document
from polyphi.model.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.progress import read_metrics
from polyphi.train.context import RunContext
from polyphi.train.contrastive import Contrastive
from polyphi.train.evaluation import SPLIT, EvalOptions
from polyphi.train.loss import NextToken
from polyphi.train.options import MachineOptions, TrainOptions
from polyphi.train.stage import Budget, Mix, Stage
from polyphi.train.trainer import train
from polyphi.types.batch import Batch
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = [*NUMBERS, "red", "blue", "green", "square", "circle"]
BUDGET = Budget(steps=4, batch_tokens=200, context=120, lr_factor=1.0)
LANGUAGE = Stage(
    name="language",
    start={},
    trainable={"decoder.*": 1e-3},
    data=Mix({"documents": 2.0, "questions": 1.0}),
    objective=NextToken(),
)
EVERYTHING = Stage(
    name="everything",
    start={},
    trainable={
        "vision.projector.*": 1e-3,
        "audio.encoder.*": 1e-3,
        "audio.projector.speech.*": 1e-3,
        "decoder.*.lora.vision.*": 2e-3,
        "decoder.*.lora.speech.*": 2e-3,
    },
    data=Mix({"pictures": 2.0, "sounds": 2.0, "questions": 1.0}, adapter={"questions": "vision"}),
    objective=NextToken(),
)
APART = replace(EVERYTHING, name="apart", data=Mix({"pictures": 1.0, "sounds": 1.0}))
"""With two processes, in some steps one gets all the images and the other all the audio."""
CONTRAST = Stage(
    name="contrast",
    start={},
    trainable={"vision.encoder.*": 1e-3, "objective.*": 1e-3},
    data=Mix({"pictures": 1.0}),
    objective=Contrastive(width=16),
)
STAGES = (EVERYTHING, LANGUAGE, APART, CONTRAST)


def _words(random: np.random.Generator, few: int = 2, many: int = 9) -> str:
    return " ".join(random.choice(WORDS, random.integers(few, many)))


def _png(random: np.random.Generator) -> bytes:
    out = io.BytesIO()
    Picture.fromarray(random.integers(0, 256, (56, 56, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def _wav(random: np.random.Generator) -> bytes:
    out = io.BytesIO()
    soundfile.write(
        out, 0.1 * random.standard_normal(random.integers(4000, 9000)), 16000, format="WAV"
    )
    return out.getvalue()


def write_corpora(folder: Path, rows: int = 12) -> Path:
    """Write the corpora documents, questions, pictures and sounds, each with a train split and an eval split."""
    random = np.random.default_rng(0)
    corpora: dict[str, list[Sample]] = {
        "documents": [document(str(i), _words(random, 8, 30), "", "") for i in range(rows)],
        "questions": [_pair(i, random) for i in range(rows)],
        "pictures": [_pair(i, random, Image(_png(random))) for i in range(rows)],
        "sounds": [_pair(i, random, Audio(_wav(random))) for i in range(rows)],
    }
    for name, samples in corpora.items():
        shards.write(folder / name / "train", samples, pipeline="test")
        shards.write(folder / name / SPLIT, samples[:5], pipeline="test")
    return folder


def _pair(i: int, random: np.random.Generator, *media: Any) -> Sample:
    return Sample(
        str(i),
        (Message.user(*media, _words(random)), Message.assistant(_words(random))),
        "",
        "",
        {"rejected": _words(random)},
    )


def fresh_question(number: int) -> Sample:
    """A sample as in `questions`, by number."""
    return _pair(number, np.random.default_rng(number))


def make_processor() -> Processor:
    return Processor(
        Tokenizer.train([" ".join(WORDS)] * 4, 512), crop_size=56, patch_size=14, max_crops=4
    )


def make_model(processor: Processor, dropout: float = 0.0, text: bool = False) -> PhiModel:
    """Fresh weights; `text`: the language model alone."""
    tokens = processor.tokenizer
    decoder = DecoderConfig(
        vocab_size=tokens.vocab_size,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        short_factor=(1.0,) * 6,
        long_factor=(1.0, 1.5, 2.0, 4.0, 8.0, 16.0),
    )
    vision = VisionConfig(32, 48, 3, 2, 56, image_token_id=tokens.image_id)
    audio = AudioConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_blocks=1,
        nemo_conv_channels=8,
        ext_pw_out_channel=32,
        depthwise_separable_out_channel=32,
        audio_token_id=tokens.audio_id,
    )
    adapters = {"vision": AdapterConfig(4, 8.0), "speech": AdapterConfig(5, 10.0, dropout)}
    model = PhiModel(
        ModelConfig(decoder, None, None, {})
        if text
        else ModelConfig(decoder, vision, audio, adapters)
    )
    model.initialise(0)
    return model


def run(
    out: Path,
    data: Path,
    stage: Stage = EVERYTHING,
    budget: Budget = BUDGET,
    *,
    model: PhiModel | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """One stage from fresh weights, in float32; `options` are fields of `TrainOptions`, `MachineOptions`,
    `RunContext`."""
    processor = make_processor()
    options = {"precision": "fp32", "report": lambda _: None, **options}
    of_machine, of_run = (
        {f.name: options.pop(f.name) for f in fields(of) if f.name in options}
        for of in (MachineOptions, TrainOptions)
    )
    model = model or make_model(processor, dropout, text=stage.name == LANGUAGE.name)
    return train(
        stage,
        budget,
        model,
        processor,
        data,
        out,
        options=TrainOptions(**of_run, machine=MachineOptions(**of_machine)),
        context=RunContext(**options),
    )


def trajectory(out: Path) -> list[tuple[Any, ...]]:
    """Step, samples, loss, gradient norm and learning rate of each step: equal runs have them equal to the last bit."""
    return [
        (r["step"], r["ids"], r["loss"], r["gradient_norm"], r["lr"])
        for r in read_metrics(out / "metrics.jsonl")
    ]


class Fails(NextToken):
    """Runs `action` once, after `losses` losses; by default it raises. Its identity is that of `NextToken`."""

    def __init__(self, losses: int, action: Callable[[], None] | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "losses_left", losses)
        object.__setattr__(self, "action", action or self._raise)

    def __repr__(self) -> str:
        return repr(NextToken())

    def _raise(self) -> None:
        raise RuntimeError("bad luck")

    def loss(self, model: Any, head: Any, reference: Any, batch: Batch) -> Any:
        object.__setattr__(self, "losses_left", self.losses_left - 1)
        if self.losses_left == -1:
            self.action()
        return super().loss(model, head, reference, batch)


class Slow(NextToken):
    """Sleeps in every loss, so that there is time to kill it. Its identity is that of `NextToken`."""

    pause = 0.0

    def __repr__(self) -> str:
        return repr(NextToken())

    def loss(self, model: Any, head: Any, reference: Any, batch: Batch) -> Any:
        time.sleep(self.pause)
        return super().loss(model, head, reference, batch)


def main() -> None:
    arguments: list[list[str]] = [[]]
    for argument in sys.argv[1:]:
        if argument == "--then":
            arguments.append([])
        else:
            arguments[-1].append(argument)
    for part in arguments:
        run_from_arguments(part)


def run_from_arguments(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--stage", default="everything")
    parser.add_argument("--stop-after", type=int, help="losses, and then an exception")
    parser.add_argument("--steps", type=int, default=BUDGET.steps)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--context-parallel", type=int, default=1)
    parser.add_argument("--micro-tokens", type=int, default=8192)
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--patience", type=int, help="evaluates after each step")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--muon", type=float, default=0.0, help="factor of the learning rates")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    stage = {s.name: s for s in STAGES}[parsed.stage]
    if parsed.pause:
        Slow.pause = parsed.pause
        stage = replace(stage, objective=Slow())
    if parsed.stop_after is not None:
        stage = replace(stage, objective=Fails(parsed.stop_after))
    budget = replace(BUDGET, steps=parsed.steps, muon_lr_factor=parsed.muon)
    evaluation = None
    if parsed.patience is not None:
        evaluation = EvalOptions(list(stage.data.weights), every=1, patience=parsed.patience)
    run(
        parsed.out,
        parsed.data,
        stage,
        budget,
        dropout=parsed.dropout,
        fsdp=parsed.fsdp,
        context_parallel=parsed.context_parallel,
        micro_tokens=parsed.micro_tokens,
        background=parsed.background,
        checkpoint_seconds=0.0,
        evaluation=evaluation,
    )


if __name__ == "__main__":
    sys.exit(main())

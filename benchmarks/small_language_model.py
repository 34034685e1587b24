"""A language model of 17 million parameters, trained on real text, to measure the error of rounding its weights.

    python benchmarks/small_language_model.py runs/larger
    python benchmarks/perplexity.py runs/larger/model runs/larger/data/held_out/test \\
        --calibrate runs/larger/data/text/train

LibreOffice's help in two languages (Debian packages, downloaded and unpacked, never installed), the nano run's
tokenizer, random weights, AdamW for 3 million tokens. Half an hour of one core; the same
command resumes an interrupted one. DIR/model is the checkpoint, DIR/data/held_out/test holds text of
pages that aren't in its training data.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch

from polyphi.checkpoints.write import save_checkpoint
from polyphi.data import shards
from polyphi.data.shards import Sample, document
from polyphi.finetuning.run import finetune
from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train.loss import NextToken
from polyphi.train.options import FinetuneOptions
from polyphi.train.stage import Mix, Schedule, Stage
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw.packages import LIBREOFFICE
from polyphi_recipe.raw.real_text import documents, interleave, origin

LANGUAGES = ("en", "de")
HELD_OUT = 200
"""Rows of unseen pages, of 900 characters at most."""
DECODER = DecoderConfig(
    vocab_size=4096,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=10,
    num_attention_heads=6,
    num_key_value_heads=2,
    original_max_position_embeddings=1024,
    max_position_embeddings=1024,
    short_factor=(1.0,) * 24,
    long_factor=(1.0,) * 24,
)
STAGE = Stage(
    name="larger",
    start={},
    trainable={"decoder.*": 1.5e-3},
    data=Mix({"pages": 1}),
    objective=NextToken(),
    schedule=Schedule(warmup=0.03, decay="linear", decay_share=0.5, floor=0.02),
    context=1024,
    batch_tokens=2048,
    steps=1500,
    weight_decay=0.1,
)


def samples(work: Work, split: str) -> Iterator[Sample]:
    """Excerpts of each page's prose, the languages in turn."""

    def one(language: str) -> Iterator[Sample]:
        texts = documents(language, work, split, Random(f"{split} {language}"))
        for i, (path, text) in enumerate(texts):
            yield document(
                f"{split}-{language}-{i:06d}", text, **origin(LIBREOFFICE[language]), page=path
            )

    yield from interleave([one(language) for language in LANGUAGES])


def write_text(folder: Path, cache: Path) -> None:
    work = Work({}, 0, cache, folder)
    pages, held_out = list(samples(work, "train")), list(samples(work, "test"))[:HELD_OUT]
    shards.write(folder / "text" / "train", pages, pipeline="larger")
    shards.write(folder / "held_out" / "test", held_out, pipeline="larger")
    counts = (len(pages), sum(len(page.answer) for page in pages), len(held_out))
    print("{:,} rows of {:,} characters; {} rows held out".format(*counts))


def write_start(folder: Path, tokenizer: Tokenizer, source: Path) -> None:
    model = PhiModel(ModelConfig(DECODER, vision=None, audio=None, adapters={}))
    model.initialise(seed=0)
    files = [source / "tokenizer.json", source / "tokenizer_config.json"]
    save_checkpoint(model, folder, "mini", dtype=torch.bfloat16, files=files)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a model of 17 million parameters.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/nano/tokenizer"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "polyphi")
    parser.add_argument("--steps", type=int, default=STAGE.steps)
    args = parser.parse_args(arguments)
    start = args.out / "start"
    if not start.exists() and not (args.tokenizer / "tokenizer.json").is_file():
        parser.error(
            f"expected a tokenizer in {args.tokenizer}, found none: name one with --tokenizer, or run `make nano`"
        )
    text = args.out / "data"
    if not (text / "held_out" / "test").exists():
        write_text(text, args.cache)
    if not start.exists():
        write_start(start, Tokenizer.load(args.tokenizer), args.tokenizer)
    finetune(
        STAGE,
        [str(text / "text" / "train")],
        args.out,
        checkpoint=start,
        finetuning=FinetuneOptions(steps=args.steps),
    )


if __name__ == "__main__":
    main()

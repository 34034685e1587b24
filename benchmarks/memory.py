"""How much memory the 5.6 billion parameter model takes at 4 and 8 bits, from a bfloat16 checkpoint that is quantized
while it loads and from a quantized one, against our own limits.

    python benchmarks/memory.py --at FOLDER [--kinds int4 int4-all]

A checkpoint of the published size with random weights is written once (11 GB), the quantized ones next to it. Each
measurement has its own process, which loads a model and answers three short prompts, so that both encoders and both
adapters are used: words alone, with a picture, with a clip. Reported is its peak memory (Linux: `VmHWM`),
while loading or answering, less the keys and values of its prompts; and, at the largest sample of /proc while it
answered, its parts: private memory (`RssAnon`), and pages of mapped files (`RssFile`, which the system frees when other
processes need memory). Torch's libraries and Python are included, 0.25 GB.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from random_checkpoint import make
from rich.console import Console
from sidebyside import peak_bytes

import polyphi
from polyphi.checkpoints.headers import files_beside
from polyphi.checkpoints.names import QUANTIZED
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import SHARD_BYTES, save_checkpoint
from polyphi.engine.cache import token_bytes
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.rendering import table
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi.types.sampling import SamplingParams

LIMITS = {"int4": 6.2, "int4-all": 4.6, "int8": 7.8, "int8-all": None}
"""GB, without keys and values."""
EVERY = 0.005
"""Seconds between two samples of /proc."""
console = Console(stderr=True)


def build(folder: Path) -> None:
    """The published sizes with random weights; a tokenizer of a few hundred words."""
    tokenizer = Tokenizer.train(["what is this ? a word or two about it , please ."] * 4, 512)
    full = ModelConfig()
    assert full.vision is not None and full.audio is not None
    config = replace(
        full,
        vision=replace(full.vision, image_token_id=tokenizer.image_id),
        audio=replace(full.audio, audio_token_id=tokenizer.audio_id),
    )
    tokenizer.save(folder.parent / "tokenizer")
    files = tuple(sorted((folder.parent / "tokenizer").iterdir()))
    make(config, folder, "native", shard_bytes=SHARD_BYTES, files=files)


class Watch(threading.Thread):
    """The parts of this process's memory at the largest sample."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = self.own = self.mapped = 0

    @staticmethod
    def now() -> tuple[int, int]:
        """Private and mapped bytes."""
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        own, mapped = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return own, mapped

    def run(self) -> None:
        while True:
            own, mapped = self.now()
            if own + mapped > self.most:
                self.most, self.own, self.mapped = own + mapped, own, mapped
            time.sleep(EVERY)


def child(folder: Path, quant: str | None) -> dict[str, float]:
    """Load the model and answer; return bytes and seconds."""
    watch = Watch()
    watch.start()
    bare = watch.now()
    start = time.perf_counter()
    phi = polyphi.load(folder, quant=quant)
    loaded, after, stands = time.perf_counter() - start, peak_bytes(), watch.now()
    watch.most = 0  # its parts are reported for answering
    picture = Picture.fromarray(np.random.default_rng(0).integers(0, 255, (448, 448, 3), np.uint8))
    picture.save(folder.parent / "picture.png")
    clip = (0.1 * np.random.default_rng(0).standard_normal(5 * 16_000).astype(np.float32), 16_000)
    sampling = SamplingParams(max_tokens=4)
    tokens = 0
    start = time.perf_counter()
    for parts in ((), (Image(folder.parent / "picture.png"),), (Audio(clip),)):
        answer = phi.generate([Message.user(*parts, "what is this ?")], sampling=sampling)
        tokens += answer.prompt_tokens + len(answer.tokens)
    answered = time.perf_counter() - start
    cache = tokens * token_bytes(phi.config.decoder, torch.bfloat16)
    return {
        "most": max(after, peak_bytes() - cache),
        "loading": after,
        "own": watch.own - cache,
        "mapped": watch.mapped,
        "cache": cache,
        "bare": sum(bare),
        "loaded": sum(stands),
        "load_seconds": loaded,
        "answer_seconds": answered,
    }


def measure(folder: Path, quant: str | None) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--at",
        str(folder),
        "--child",
        *([quant] if quant else []),
    ]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def show(rows: Sequence[tuple[str, str, dict[str, float]]]) -> None:
    titles = (
        "weights",
        "from",
        "most, GB",
        "limit",
        "own",
        "mapped",
        "while loading",
        "to load, s",
    )
    cells = []
    for scheme, source, row in rows:
        most, own, mapped, loading = (
            f"{row[key] / 1e9:.2f}" for key in ("most", "own", "mapped", "loading")
        )
        seconds = f"{row['load_seconds']:.0f}"
        cells.append((scheme, source, most, LIMITS[scheme] or "", own, mapped, loading, seconds))
    print(table(titles, cells, "llrrrrrr"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--at", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--kinds", nargs="+", default=list(LIMITS), choices=LIMITS)
    parser.add_argument("--child", nargs="?", const="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(child(args.at, args.child or None)))
        return
    whole = args.at / "bf16"
    if not whole.exists():
        args.at.mkdir(parents=True, exist_ok=True)
        build(whole)
    rows = []
    for scheme in args.kinds:
        rows.append((scheme, "bfloat16", measure(whole, scheme)))
        console.print(f"{scheme} from bfloat16: {rows[-1][2]}", highlight=False)
        if not (args.at / scheme).exists():
            files = files_beside(whole, QUANTIZED)
            save_checkpoint(load_checkpoint(whole), args.at / scheme, quant=scheme, files=files)
        rows.append((scheme, "its own", measure(args.at / scheme, None)))
        console.print(f"{scheme} from its own: {rows[-1][2]}", highlight=False)
    show(rows)


if __name__ == "__main__":
    main()

"""Writes a random checkpoint of the published size, 5.6 billion bfloat16 parameters (11 GB), shard by shard.

    python benchmarks/random_checkpoint.py OUT --layout original --tokenizer FOLDER

To be run by hand; it shows that loading and answering work at full size. Memory stays near two shards. Values keep
activations finite: norms are 1, biases 0, everything else is normal with deviation 0.02.
"""

import argparse
import zlib
from pathlib import Path

import torch

from polyphi.checkpoints.names import LAYOUTS, tensor_names
from polyphi.checkpoints.write import SHARD_BYTES, write_checkpoint
from polyphi.model.config import ModelConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def make(
    config: ModelConfig,
    folder: Path,
    layout: str,
    *,
    shard_bytes: int,
    seed: int = 0,
    files: tuple[Path, ...] = (),
) -> None:
    shapes = {entry.ours: entry.shape for entry in tensor_names(config, "native").values()}

    def tensor(ours: str) -> torch.Tensor:
        shape, last = shapes[ours], ours.rpartition(".")[2]
        unit = "norm" in ours and last == "weight"
        if unit or last == "global_invstd":
            return torch.ones(shape, dtype=torch.bfloat16)
        if "bias" in last:
            return torch.zeros(shape, dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {ours}".encode()))
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    write_checkpoint(config, tensor, folder, layout, max_shard_bytes=shard_bytes, files=files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, default="original")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokenizer", type=Path, help="folder whose tokenizer files are copied beside the weights"
    )
    args = parser.parse_args()
    files = [args.tokenizer / name for name in TOKENIZER_FILES] if args.tokenizer else []
    there = tuple(f for f in files if f.is_file())
    make(
        ModelConfig(),
        args.out,
        args.layout,
        shard_bytes=args.shard_bytes,
        seed=args.seed,
        files=there,
    )

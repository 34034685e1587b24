"""Accuracy of our formats and of llama.cpp's on the same weights and tokens, beside their bytes a weight.

    python benchmarks/accuracy.py SOURCE.gguf WORK [--rows SHARDS ...] [--types Q8_0 Q4_0 Q4_K_M] [--paths AVX2 ...]

SOURCE is a GGUF file with the weights in float32, such as that of dithered.py: both programs quantize these. The
reference is its model in float32, in polyphi; llama.cpp's F32 is measured beside it, so that a difference of the
programs would show. Prints a table in Markdown (`polyphi.quantization.accuracy`), and the largest activations among the
inputs of the decoder's linears, beside which one scale a token would leave nothing of the others. `--paths` are values
of POLYPHI_MAX_CPU_ISA, each measured in a separate process. llama.cpp runs in the environment of `polyphi bench
inference --setup`; without it only ours are measured.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sidebyside import ENVIRONMENTS

import polyphi
from polyphi import kernels
from polyphi.api import Phi
from polyphi.checkpoints.gguf import convert
from polyphi.data import calibration
from polyphi.data.accuracy_rows import own_texts
from polyphi.data.shards import Shards
from polyphi.model.lora import LoraLinear
from polyphi.quantization import quantize
from polyphi.quantization.accuracy import compare, distances, summary
from polyphi.types.accuracy import COLUMNS, Difference
from polyphi.types.batch import Batch

TYPES = ("F32", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0")
SCHEMES = ("bf16", "int8", "int4")
DTYPES = ("auto", "float32")


def rows_of(phi: Phi, sources: Sequence[Path]) -> list[Batch]:
    if not sources:
        return own_texts(phi.processor)
    shards = [Shards(source) for source in sources]
    return calibration.rows(phi.processor, shards, supervise="answers")


def line(name: str, bits: float, difference: Difference) -> str:
    return f"| {' | '.join([name, f'{bits:.2f}', *difference.cells])} |"


def ours(folder: Path, reference: Phi, rows: Sequence[Batch]) -> Iterator[str]:
    """A line for each scheme, with activations between layers in bfloat16 and in float32."""
    weights = sum(p.numel() for p in reference.model.parameters())
    for scheme in SCHEMES:
        for dtype in DTYPES:
            if scheme == "bf16" and dtype == "float32":
                continue
            phi = polyphi.load(folder, quant=scheme, dtype=dtype)
            saved = quantize.saved_bytes(reference.config, scheme)
            bits = 8 * (2 * weights - saved) / weights
            name = f"polyphi {scheme}, {kernels.path()}" + ", float32 between" * (dtype != "auto")
            yield line(name, bits, compare(reference.model, phi.model, rows).whole)


@torch.inference_mode()
def llama(
    source: Path, work: Path, kind: str, reference: Phi, rows: Sequence[Batch], weights: int
) -> str:
    python = ENVIRONMENTS / "llama" / "bin" / "python"
    script = Path(__file__).parent / "peers" / "llama_logits.py"
    command = [python, script, source, kind, work, torch.get_num_threads()]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    values, at = [], 0
    logits = np.load(work / f"{kind}.npy", mmap_mode="r")
    for row in rows:
        assert row.supervised is not None and row.labels is not None
        theirs = torch.from_numpy(np.array(logits[at : at + len(row)]))[row.supervised]
        p = reference.model.logits(reference.model(row)[row.supervised]).float().log_softmax(-1)
        values.append(distances(p, theirs.log_softmax(-1), row.labels[row.supervised]))
        at += len(row)
    file = source if kind == "F32" else work / f"{kind}.gguf"
    return line(
        f"llama.cpp {kind}", 8 * file.stat().st_size / weights, summary(torch.cat(values, 1))
    )


@torch.inference_mode()
def massive(reference: Phi, row: Batch) -> str:
    """The largest input of a linear, and the median of its inputs."""
    largest: list[tuple[float, float, str]] = []

    def observe(name: str):
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sizes = inputs[0].abs().float()
            largest.append((float(sizes.max()), float(sizes.median()), name))

        return hook

    modules = reference.model.decoder.named_modules()
    hooks = [
        m.register_forward_pre_hook(observe(n)) for n, m in modules if isinstance(m, LoraLinear)
    ]
    reference.model(row)
    for hook in hooks:
        hook.remove()
    size, median, name = max(largest, default=(0.0, 0.0, "none"))
    return f"largest input of a linear: {size:,.0f} in {name}, beside a median of {median:.2g}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Accuracy of formats on the same weights.")
    parser.add_argument("source", type=Path, help="a .gguf file in float32")
    parser.add_argument("work", type=Path, help="folder for checkpoints, files and logits")
    parser.add_argument("--rows", type=Path, nargs="+", default=[], help="shards")
    parser.add_argument("--types", nargs="*", default=list(TYPES), choices=TYPES)
    parser.add_argument("--paths", nargs="+", default=[], help="values of POLYPHI_MAX_CPU_ISA")
    args = parser.parse_args(arguments)
    folder = args.work / "checkpoint"
    if not folder.exists():
        convert(args.source, folder, dtype=torch.float32)
    reference = polyphi.load(folder, dtype="float32")
    rows = rows_of(reference, args.rows)
    (args.work / "ids.json").write_text(json.dumps([row.ids.tolist() for row in rows]))
    weights = sum(p.numel() for p in reference.model.parameters())
    if "POLYPHI_MAX_CPU_ISA" not in os.environ or args.types:
        print(massive(reference, rows[0]) + "\n")
        print("| format | bits a weight | " + " | ".join(COLUMNS) + " |")
        print("|---" * (2 + len(COLUMNS)) + "|")
    for result in ours(folder, reference, rows):
        print(result, flush=True)
    for path in args.paths:
        command = [sys.executable, __file__, args.source, args.work, "--types"]
        command += ["--rows", *args.rows] if args.rows else []
        subprocess.run(
            list(map(str, command)), check=True, env={**os.environ, "POLYPHI_MAX_CPU_ISA": path}
        )
    if (ENVIRONMENTS / "llama" / "bin" / "python").exists():
        for kind in args.types:
            print(llama(args.source, args.work, kind, reference, rows, weights), flush=True)


if __name__ == "__main__":
    main()

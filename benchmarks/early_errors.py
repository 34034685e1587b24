"""Seconds from Enter to the error of a wrong input or option, with a checkpoint of the published size.

    python benchmarks/early_errors.py --tokenizer FOLDER               # writes the checkpoint in a temporary folder
    python benchmarks/early_errors.py --model FOLDER --repeats 5 --json

The checkpoint has 5.6 billion bfloat16 parameters (11 GB) in the published layout. Headers are real and values are
zeros: the file is a hole, which takes no disk space, so that its reads are faster than those of a real one. The table
has medians, and whether the command was refused in one line.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_hole(folder: Path, tokenizer: Path) -> None:
    """Write a checkpoint whose weights are a hole behind their headers."""
    from polyphi.checkpoints import config as config_json
    from polyphi.checkpoints.names import tensor_names
    from polyphi.model.config import ModelConfig

    config, offset, header = ModelConfig(), 0, {}
    for name, entry in tensor_names(config, "original").items():
        end = offset + 2 * math.prod(entry.shape)
        header[name] = {
            "dtype": "BF16",
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    values = {**config_json.write(config, "original"), "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(values))
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder)


def commands(model: Path, folder: Path) -> dict[str, list[str]]:
    """Name of a mistake -> the words of a command with it."""
    with wave.open(str(folder / "empty.wav"), "wb") as clip:
        clip.setparams((1, 2, 16000, 0, "NONE", ""))
    with wave.open(str(folder / "talk.wav"), "wb") as clip:
        clip.setparams((1, 2, 16000, 0, "NONE", ""))
        clip.writeframes(bytes(32000))
    chat, transcribe = ["chat", str(model), "hi"], ["transcribe", str(model)]
    return {
        "missing --image": [*chat, "--image", str(folder / "none.png")],
        "--max-tokens -5": [*chat, "--max-tokens", "-5"],
        "unknown adapter": [*chat, "--adapter", "nonesuch"],
        "--to Klingon": [*transcribe, str(folder / "talk.wav"), "--to", "Klingon"],
        "missing recording": [*transcribe, str(folder / "none.wav")],
        "empty recording": [*transcribe, str(folder / "empty.wav")],
    }


def seconds(words: list[str]) -> tuple[float, bool]:
    """(seconds, whether the command was refused in one line) of a run."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "polyphi.cli", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    return time.perf_counter() - start, done.returncode in (1, 2) and len(lines) == 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a checkpoint; default: one is written")
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer a written one has")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if (args.model is None) == (args.tokenizer is None):
        parser.error("expected one of --model and --tokenizer")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.model is None:
            write_hole(folder, args.tokenizer)
        rows = []
        for name, words in commands(args.model or folder, folder).items():
            runs = [seconds(words) for _ in range(args.repeats)]
            median = statistics.median(time for time, _ in runs)
            rows.append({"mistake": name, "seconds": median, "refused": all(r for _, r in runs)})
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(
                f"{row['mistake']:<18}{row['seconds']:>8.2f} s{'' if row['refused'] else '  (not refused)'}"
            )

"""How fast a recipe file's corpora are imported through all default filters, and how the memory grows with the rows.

    python -m experiments.curation.imports --out imports.json  # texts, pictures and clips, three sizes each
    python -m experiments.curation.imports text --rows 20000 60000 --workers 2

Each import runs in its own process; its peak memory is the sum of the proportional set sizes (PSS) of that process and
its children, so that shared pages count once. The slope is that of a line through the three sizes. Sources lie in one
file per 10,000 rows: a file is a task.
"""

import argparse
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import soundfile
from PIL import Image

from polyphi.runtime.rendering import table

ROWS = {
    "text": (20_000, 60_000, 200_000),
    "pictures": (1_000, 3_000, 10_000),
    "clips": (1_000, 3_000, 10_000),
}
ROWS_PER_FILE = {"text": 10_000, "pictures": 500, "clips": 500}
SENTENCE = (
    "the river and old bridge of this town have been there for many years with its people who work in fields near a "
    "small harbour that was built when their families came from other places to find new land for houses"
)
WORDS = SENTENCE.split()
FILTERS = "held_out = 0.01\n"


def texts(rng: random.Random) -> Iterator[dict[str, str]]:
    """Pages of about 200 words, each different."""
    while True:
        lines = (
            " ".join(rng.choices(WORDS, k=rng.randint(9, 15))).capitalize() + "." for _ in range(16)
        )
        yield {"text": "\n".join(lines)}


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG of 320 x 240 that resembles no other."""
    small = rng.integers(0, 255, (15, 20, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def clip(rng: np.random.Generator) -> bytes:
    """Two seconds of noise as FLAC."""
    out = io.BytesIO()
    soundfile.write(out, rng.normal(0, 0.1, 32_000), 16_000, format="FLAC")
    return out.getvalue()


def write_sources(kind: str, rows: int, folder: Path) -> None:
    """Write the sources of an import."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    pages = texts(rng)
    for start in range(0, rows, ROWS_PER_FILE[kind]):
        numbers = range(start, min(rows, start + ROWS_PER_FILE[kind]))
        with (folder / f"{start:08d}.jsonl").open("w") as file:
            for n in numbers:
                if kind == "text":
                    row = next(pages)
                else:
                    name, data = (
                        ("jpg", picture(noise)) if kind == "pictures" else ("flac", clip(noise))
                    )
                    (folder / f"{n}.{name}").write_bytes(data)
                    caption = " ".join(rng.choices(WORDS, k=9))
                    row = {
                        "image" if kind == "pictures" else "audio": f"{n}.{name}",
                        "answer": caption,
                    }
                file.write(json.dumps(row) + "\n")
    recipe = 'size = "micro"\n[stages.text_1_pretrain]\nmix = { mine = 1 }\n'
    recipe += f'[corpora.mine]\nsources = ["*.jsonl"]\n{FILTERS}'
    (folder / "lab.toml").write_text(recipe)


def proportional(process: psutil.Process) -> int:
    """Bytes of a process and its children, shared pages divided among those that share them."""
    total, every = 0, [process]
    with contextlib.suppress(psutil.Error):  # it has ended
        every += process.children(recursive=True)
    for one in every:
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total


def measure(kind: str, rows: int, workers: int) -> dict[str, float]:
    """The seconds, rows per second and peak memory of an import in a new process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(kind, rows, folder)
        command = ["curate", str(folder / "lab.toml"), "--out", str(folder / "run")]
        start, peak, done = time.monotonic(), 0, threading.Event()
        child = psutil.Popen(
            [sys.executable, "-m", "polyphi.cli", *command, "--workers", str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.5):
                peak = max(peak, proportional(child))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        output, _ = child.communicate()
        done.set()
        watcher.join()
        seconds = time.monotonic() - start
        if child.returncode:
            raise RuntimeError(f"the import failed:\n{output}")
        manifest = json.loads((folder / "run/data/mine/train/manifest.json").read_text())
    return {
        "rows": rows,
        "kept": manifest["rows"],
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds, 1),
        "peak_mb": round(peak / 1e6, 1),
    }


def main() -> None:
    """Measure imports and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("kinds", nargs="*", help="text, pictures, clips; default: all")
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of rows; default: three sizes")
    parser.add_argument("--workers", type=int, default=1, help="parallel tasks")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    if unknown := sorted(set(options.kinds) - set(ROWS)):
        parser.error(f"expected {', '.join(ROWS)}, found {unknown[0]}")
    results = {}
    for kind in options.kinds or ROWS:
        lines = [measure(kind, rows, options.workers) for rows in options.rows or ROWS[kind]]
        slope = None
        if len(lines) > 1:
            counts, peaks = ([line[key] for line in lines] for key in ("rows", "peak_mb"))
            slope = round(1e6 * float(np.polyfit(counts, peaks, 1)[0]), 1)
        results[kind] = {"lines": lines, "bytes_per_row": slope}
        print(f"{kind}: {slope} bytes of peak memory a row" if slope is not None else kind)
        print(table(list(lines[0]), [list(line.values()) for line in lines], "rrrrr"), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

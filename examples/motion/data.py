"""Motion series with questions: recorded ones of the package sktime (BasicMotions) and generated ones.

    python examples/motion/data.py motion

writes motion/{train,test}.jsonl with motion/series/*.csv, and the same rows as text in
motion/digits_{train,test}.jsonl.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polyphi.runtime.files import cache_folder
from polyphi_recipe.raw.packages import unpack

CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
RATE = 10.0  # Hz
GENERATED = {"train": 3200, "test": 320}
CUTS = {"train": 20, "test": 3}
"""Pieces of a recorded series."""
Row = tuple[str, np.ndarray, str, str]  # task, series [n 6], question, answer


def recorded(split: str, rng: np.random.Generator) -> Iterator[Row]:
    """Pieces of 4 to 10 s of the split's 40 recordings, each with its activity."""
    package = unpack("sktime", cache_folder())
    if package is None:  # said by `unpack`; generated series alone
        return
    file = f"sktime/datasets/data/BasicMotions/BasicMotions_{split.upper()}.ts"
    lines = (package / file).read_text().split("@data\n")[1].splitlines()
    for line in lines:
        *channels, label = line.split(":")
        series = np.array([channel.split(",") for channel in channels], float).T
        for _ in range(CUTS[split]):
            length = int(rng.integers(40, len(series) + 1))
            start = int(rng.integers(0, len(series) - length + 1))
            piece = series[start : start + length]
            if split == "train":
                piece = piece * rng.uniform(0.85, 1.15)
            yield "activity", piece, "What is the person doing?", label.strip().lower()


def generated(rng: np.random.Generator) -> Row:
    """A series whose answer is exact."""
    length = int(rng.integers(40, 101))
    time = np.arange(length) / RATE
    series = rng.normal(0, 0.15, (length, 6))
    task = str(rng.choice(["axis", "speed", "turn", "knocks"]))
    if task == "axis":
        axis = int(rng.integers(3))
        wave = np.sin(2 * np.pi * rng.uniform(0.5, 2) * time + rng.uniform(0, 6))
        series[:, axis] += rng.uniform(2, 5) * wave
        return task, series, "Along which axis does it move?", "xyz"[axis]
    if task == "speed":
        fast = bool(rng.integers(2))
        frequency = rng.uniform(1.5, 2.5) if fast else rng.uniform(0.2, 0.5)
        wave = np.sin(2 * np.pi * frequency * time + rng.uniform(0, 6))
        series[:, int(rng.integers(6))] += rng.uniform(2, 5) * wave
        return task, series, "Does it move fast or slowly?", "fast" if fast else "slowly"
    if task == "turn":
        left = bool(rng.integers(2))
        start = int(rng.integers(0, length - 20))
        series[start : start + 20, 5] += rng.uniform(1, 4) * (1 if left else -1) * np.hanning(20)
        return task, series, "Does it turn left or right?", "left" if left else "right"
    count = int(rng.integers(1, 6))
    places = np.sort(rng.permutation(np.arange(3, length - 3, 5))[:count])
    series[places, int(rng.integers(3))] += rng.uniform(8, 14)
    return task, series, "How many knocks are there?", str(len(places))


def as_digits(series: np.ndarray) -> str:
    """A series as text: a line for each channel, the mean of every 0.4 s in tenths."""
    padded = np.pad(series, ((0, -len(series) % 4), (0, 0)), mode="edge")
    means = padded.reshape(-1, 4, 6).mean(1)
    lines = (" ".join(str(round(10 * value)) for value in channel) for channel in means.T)
    return "\n".join(f"{name}: {line}" for name, line in zip(CHANNELS, lines, strict=True))


def main(folder: Path) -> None:
    """Write both splits."""
    (folder / "series").mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "test")):
        rng = np.random.default_rng(seed)
        rows = [*recorded(split, rng), *(generated(rng) for _ in range(GENERATED[split]))]
        rows = [rows[i] for i in rng.permutation(len(rows))]
        files = [folder / f"{split}.jsonl", folder / f"digits_{split}.jsonl"]
        with files[0].open("w") as series_rows, files[1].open("w") as text_rows:
            for number, (task, series, question, answer) in enumerate(rows):
                name = f"series/{split}_{number}.csv"
                header = ",".join(CHANNELS)
                np.savetxt(folder / name, series, "%.4f", ",", header=header, comments="")
                about = {"id": f"{task}/{number}", "answer": answer}
                series_rows.write(
                    json.dumps({**about, "motion": name, "question": question}) + "\n"
                )
                text = f"{as_digits(series)}\n{question}"
                text_rows.write(json.dumps({**about, "question": text}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

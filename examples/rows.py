"""The rows of the commands in examples/README.md: receipts, calls, scans, pairs and queries.

    python examples/rows.py rows        # writes rows/receipts.jsonl, rows/calls.jsonl, ... and their files

They are drawn, and read aloud by flite (`apt-get install flite`).
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image, ImageDraw, ImageFont

from polyphi_eval.services.speech_synthesis import Voice, speak

ROWS = 48
NAMES = {"red": "a zib", "green": "a wug", "blue": "a dax"}
"""Invented names of colours, which no model knows."""
TEST = 5
"""The receipt that is also a row of the test set."""
Row = dict[str, Any]


def receipts(folder: Path, rng: random.Random) -> Iterator[Row]:
    """Receipts with their totals; the last one is a copy of the first."""
    for number in range(ROWS):
        picture = Image.new("RGB", (112, 112), "white")
        draw = ImageDraw.Draw(picture)
        for line in range(rng.randrange(3, 6)):
            draw.line((16, 14 + 10 * line, rng.randrange(40, 96), 14 + 10 * line), "gray", 2)
        total = str(rng.randrange(10, 100))
        draw.text((28, 64), total, "black", ImageFont.load_default(36))
        picture.save(folder / f"receipt{number}.png")
        row = {"image": f"receipt{number}.png", "question": "What is the total?", "answer": total}
        yield row
        if number == 0:
            copy = {**row, "image": "copy.png"}
            picture.save(folder / "copy.png")
    yield copy


def calls(folder: Path, rng: random.Random) -> Iterator[Row]:
    """Three digits read aloud, with "Caller: " before each."""
    for number in range(ROWS):
        digits = "".join(rng.choices("0123456789", k=3))
        wave, rate = speak(" ".join(digits), Voice("flite", "en", rng.choice(("slt", "rms"))))
        soundfile.write(folder / f"call{number}.wav", wave, rate)
        yield {"audio": f"call{number}.wav", "answer": f"Caller: {digits}"}


def scans(folder: Path, rng: random.Random) -> Iterator[Row]:
    """Squares of three colours with their invented names."""
    for number in range(ROWS):
        colour, x, y = rng.choice(list(NAMES)), rng.randrange(8, 56), rng.randrange(8, 56)
        picture = Image.new("RGB", (112, 112), "white")
        ImageDraw.Draw(picture).rectangle((x, y, x + 44, y + 44), colour)
        picture.save(folder / f"scan{number}.png")
        row = {"image": f"scan{number}.png", "question": "What does it show?"}
        yield {**row, "answer": NAMES[colour]}


def pairs(folder: Path, rng: random.Random) -> Iterator[Row]:
    """The scans, with another colour's name as the rejected answer."""
    for row in list(scans(folder, rng)):  # all are drawn first, as those of scans.jsonl
        other = rng.choice([name for name in NAMES.values() if name != row["answer"]])
        yield {**row, "rejected": other}


def queries(folder: Path, rng: random.Random) -> Iterator[Row]:
    """Sums of two digits."""
    for a in range(2, 10):
        for b in range(2, 10):
            yield {"instruction": f"What is {a} plus {b}?", "output": str(a + b)}


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for make in (receipts, calls, scans, pairs, queries):
        rows = list(make(folder, random.Random(0)))
        write(folder / f"{make.__name__}.jsonl", rows)
        if make is receipts:
            write(folder / "desk_test.jsonl", rows[TEST : TEST + 1])


def write(file: Path, rows: list[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A LLaVA file of real images: scanned digits of scikit-learn, with the question whether each is even.

    python examples/digits.py digits
    polyphi finetune vision --model runs/nano/model --data digits/train.json --lr-factor 20 --out runs/even

Writes train.json (600 rows), test.json (200 other digits) and the images beside them. The digits are from the UCI
repository, 8 x 8 pixels of 17 shades, here enlarged to 112 x 112.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

ROWS = {"train": 600, "test": 200}
SIDE = 112
QUESTION = "Is this digit even?"


def main(folder: Path) -> None:
    """Write the files into `folder`."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    first = 0
    for split, number in ROWS.items():
        rows = []
        for index in order[first : first + number].tolist():
            shades = (255 - digits.images[index] * 255 / 16).astype(np.uint8)
            name = f"images/{index}.png"
            Image.fromarray(shades).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
                folder / name
            )
            answer = "no" if digits.target[index] % 2 else "yes"
            turns = [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": answer},
            ]
            rows.append({"id": str(index), "image": name, "conversations": turns})
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=1))
        first += number


if __name__ == "__main__":
    main(Path(sys.argv[1]))

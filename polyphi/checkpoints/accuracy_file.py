"""`accuracy.json` of a quantized checkpoint: its difference from the unquantized one, as `polyphi export` measured it.

>>> measurement = read(Path("exported"))
>>> str(measurement)
'KL 0.0033 nats (99.9 %: 0.10), same most likely token 97.3 %, perplexity 1.001 times, 2,104 held-out tokens'
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyphi.checkpoints.files import ACCURACY, read_json
from polyphi.types.accuracy import Accuracy

FORMAT = 1
FIELDS = ("model", "reference", "fingerprint", "rows", "kernels")


@dataclass(frozen=True)
class Measurement:
    """The accuracy of a model, and what it was measured with. `fingerprint` is that of the reference's files, `rows`
    the source of the rows, and `kernels` the instructions that the CPU's kernels used."""

    model: str
    reference: str
    fingerprint: str
    rows: str
    kernels: str
    accuracy: Accuracy

    def __str__(self) -> str:
        return str(self.accuracy.whole)

    def as_json(self) -> dict[str, Any]:
        """The measurement as JSON values."""
        texts = {name: getattr(self, name) for name in FIELDS}
        return {
            "format": FORMAT,
            **texts,
            "tokens": self.accuracy.whole.positions,
            "accuracy": self.accuracy.as_json(),
        }


def read(folder: Path) -> Measurement | None:
    """The measurement in a checkpoint's folder. None where it has none, and for a file of other software or a damaged
    one: it is for display only."""
    try:
        value = read_json(folder / ACCURACY)
        if value.get("format") != FORMAT:
            return None
        texts = {name: value[name] for name in FIELDS}
        if not all(isinstance(text, str) for text in texts.values()):
            return None
        return Measurement(**texts, accuracy=Accuracy.from_json(value["accuracy"]))
    except (ValueError, KeyError, OSError):
        return None

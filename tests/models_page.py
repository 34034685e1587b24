"""Writes the table of memory in docs/models.md from the code of `polyphi doctor`: `python tests/models_page.py`."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from polyphi.devices import precision
from polyphi.doctor import published
from polyphi.doctor.checks import MIN_CONTEXT
from polyphi.engine.cache import BLOCK, TYPICAL_LENGTH, default_blocks
from polyphi.engine.engine import MAX_NUM_SEQS
from polyphi.model.multimodal import PhiModel

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MEMORY = (8, 16, 24, 48, 80)
"""Free gigabytes, a column each."""
TABLE = re.compile(r"(?m)^\| model \| `--quant` \|.*\n(?:\|.*\n)+")


def table() -> str:
    """The table: a row for each published model and scheme."""
    head = ["model", "`--quant`", "weights, GB", "disk, GB", *(f"{free} GB" for free in MEMORY)]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rows() -> Iterator[list[str]]:
    for name, config in published.MODELS.items():
        with torch.device("meta"):
            model = PhiModel(config)
        for scheme in published.SCHEMES:
            if config.adapters or not (scheme or "").endswith("-all"):
                yield [
                    name.partition("/")[2],
                    scheme or "none (bfloat16)",
                    *row(name, model, scheme),
                ]


def row(name: str, model: PhiModel, scheme: str | None) -> Iterator[str]:
    """Gigabytes of the weights and of their files; for each memory the context of one sequence, and the number of
    typical sequences at once."""
    config = model.config.decoder
    # without measuring whether this machine is fast in bfloat16
    with mock.patch.dict(os.environ, {precision.VARIABLE: "bf16"}):
        fit = published.fit(name, model, scheme, torch.device("cpu"), MEMORY[-1] * 10**9)
    # Beside a head in 4 bits the file has the embeddings, of which only rows that are read take memory.
    table = model.decoder.embed_tokens.weight if (scheme or "").startswith("int4") else None
    table_bytes = 0 if table is None else table.numel() * published.STORED.itemsize
    yield f"{fit.weights / 1e9:.1f}"
    yield f"{(fit.weights + table_bytes) / 1e9:.1f}"
    for free in MEMORY:
        left = max(0, free * 10**9 - fit.weights)
        tokens = BLOCK * default_blocks(config, fit.token_bytes, left, MAX_NUM_SEQS)
        context = min(tokens, config.max_position_embeddings)
        sequences = min(MAX_NUM_SEQS, tokens // TYPICAL_LENGTH)
        yield f"{context:,} / {sequences}" if context >= MIN_CONTEXT else "-"


if __name__ == "__main__":
    PAGE.write_text(
        TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8"
    )

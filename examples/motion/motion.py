"""Motion: accelerometer and gyroscope, six channels at 10 Hz; one token for 0.8 s.

    polyphi train examples/motion/motion.py examples/motion/stage.py --model runs/nano/model --data motion/train.jsonl
    polyphi chat runs/motion/model --modality examples/motion/motion.py --part motion=walk.csv "What is it?"

docs/modality.md builds this file step by step.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyphi.types.inputs.item import ItemInput
from polyphi.types.modality import AdapterConfig, Cost, Modality

CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
"""m/s² and rad/s."""
STEPS = 8
"""Steps of a token: 0.8 s."""


@dataclass(frozen=True)
class MotionConfig:
    """Sizes of the encoder."""

    width: int = 96
    heads: int = 4
    layers: int = 3


def read(source: Path | bytes) -> Float[Tensor, "n 6"]:
    """A series from a CSV or parquet file whose columns are named as in CHANNELS."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    if data[:4] == b"PAR1":
        import pyarrow.parquet as pq

        columns = pq.read_table(io.BytesIO(data)).to_pydict()
    else:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    if missing := [name for name in CHANNELS if name not in columns]:
        raise ValueError(f"expected the columns {', '.join(CHANNELS)}, found no {missing[0]}")
    return torch.from_numpy(np.array([columns[name] for name in CHANNELS], np.float32).T)


def cost(series: Float[Tensor, "n 6"]) -> Cost:
    """ceil(n / 8) tokens."""
    tokens, config = -(-len(series) // STEPS), MotionConfig()
    return Cost(tokens, flops=24.0 * config.layers * config.width**2 * tokens)


class MotionEncoder(nn.Module):
    """A small transformer over windows of 8 steps."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.up = nn.Linear(STEPS * len(CHANNELS), config.width)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            2 * config.width,
            0.0,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            for _ in range(config.layers)
        )
        frequencies = torch.logspace(0, -2, config.width // 2)
        self.register_buffer("frequencies", frequencies)

    def forward(self, inputs: ItemInput) -> Float[Tensor, "t V"]:
        """Features of all items, one for each token."""
        windows = [self._windows(x) for x in inputs.items]
        x = nn.utils.rnn.pad_sequence(windows, batch_first=True)
        lengths = torch.tensor([len(w) for w in windows], device=x.device)
        times = torch.arange(x.shape[1], device=x.device)
        angles = times[:, None] * self.frequencies
        x = self.up(x) + torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)
        padding = times >= lengths[:, None]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return x[~padding]

    @staticmethod
    def _windows(x: Float[Tensor, "n 6"]) -> Float[Tensor, "t 48"]:
        """Windows of 8 steps, the last one padded by zeros; sizes are compressed: a knock fits beside a walk."""
        x = nn.functional.pad(torch.asinh(x), (0, 0, 0, -len(x) % STEPS))
        return x.reshape(-1, STEPS * x.shape[1])


class MotionProjector(nn.Module):
    """Two layers, as the report's projectors."""

    def __init__(self, config: MotionConfig, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, features: Float[Tensor, "t V"], inputs: ItemInput) -> Float[Tensor, "t D"]:
        """A token for each feature."""
        tokens: Tensor = self.layers(features)
        return tokens


modality = Modality(
    name="motion",
    placeholder="<|motion|>",
    config=MotionConfig,
    read=read,
    cost=cost,
    encoder=MotionEncoder,
    projector=MotionProjector,
    adapter=AdapterConfig(rank=16, alpha=32.0),
)

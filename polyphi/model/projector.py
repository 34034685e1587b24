"""Projectors: encoder features to the decoder's width, and crops back to one image (report 2.2.1).

A crop's 32 x 32 patches are averaged 2 x 2 into 16 x 16 cells. The image's tokens are, in order: its crops reassembled
and cut to the rows x cols cells without padding, a row separator after every row; one global separator; the global
view, again with row separators. An image of 2 x 3 cells with a global view of 2 x 2::

    c c c | c c c | # g g | g g |        | row separator, # global separator

All tokens, separators included, pass one MLP: Linear, exact GELU, Linear.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyphi.types.inputs.audio import AudioLayout
from polyphi.types.inputs.image import ImageLayout


class Projector(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Linear(inputs, outputs)
        self.down = nn.Linear(outputs, outputs)

    def forward(self, x: Float[Tensor, "n I"]) -> Float[Tensor, "n D"]:
        return self.down(F.gelu(self.up(x)))


@lru_cache(maxsize=256)
def _order(layout: ImageLayout, cells: int) -> np.ndarray:
    """Source of each token of one image: a cell's index (crop by crop, row by row), -1 row, -2 global separator."""
    numbers = np.arange(layout.crops * cells * cells).reshape(layout.crops, cells, cells)
    tiles = (
        numbers[1:].reshape(layout.crop_rows, layout.crop_cols, cells, cells).transpose(0, 2, 1, 3)
    )
    image = tiles.reshape(layout.crop_rows * cells, layout.crop_cols * cells)[
        : layout.rows, : layout.cols
    ]
    assert image.shape == (layout.rows, layout.cols), f"{layout} has more cells than its crops"
    lines = [
        np.pad(part, ((0, 0), (0, 1)), constant_values=-1).ravel() for part in (image, numbers[0])
    ]
    return np.concatenate([lines[0], [-2], lines[1]])


class VisionProjector(nn.Module):
    """Patch features of all crops to the tokens of all images."""

    def __init__(self, inputs: int, outputs: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.global_separator = nn.Parameter(torch.zeros(inputs))
        self.row_separator = nn.Parameter(torch.zeros(inputs))
        self.up = nn.Linear(inputs, outputs)
        self.down = nn.Linear(outputs, outputs)

    def _sources(self, layouts: Sequence[ImageLayout], device: torch.device) -> Int[Tensor, " I"]:
        """Index of each token's source in the table [all cells, global separator, row separator]."""
        per_crop = self.cells**2
        total = per_crop * sum(layout.crops for layout in layouts)
        parts, start = [], 0
        for layout in layouts:
            order = _order(layout, self.cells)
            parts.append(np.where(order < 0, order + total + 2, order + start))
            start += per_crop * layout.crops
        return torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)

    def forward(
        self, features: Float[Tensor, "N P V"], layouts: Sequence[ImageLayout]
    ) -> Float[Tensor, "I D"]:
        """Tokens of all images in order. Raises ValueError where the layouts need another number of crops."""
        crops = sum(layout.crops for layout in layouts)
        if crops != len(features):
            raise ValueError(
                f"the images' layouts need {crops} crops (global views included), the batch has {len(features)}: "
                "crops and layouts must come from the same call of the image processor"
            )
        g, size = self.cells, features.shape[-1]
        pooled = features.view(crops, g, 2, g, 2, size).mean(dim=(2, 4)).view(-1, size)
        separators = torch.stack([self.global_separator, self.row_separator]).to(pooled.dtype)
        table = torch.cat([pooled, separators])
        tokens = table.index_select(0, self._sources(layouts, table.device))
        return self.down(F.gelu(self.up(tokens)))


class AudioProjector(nn.Module):
    """Two projectors over the same encoder: `speech` for audio alone, `vision` where the sequence also has an
    image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.speech = Projector(inputs, outputs)
        self.vision = Projector(inputs, outputs)

    def forward(
        self, features: Float[Tensor, "A V"], clips: Sequence[AudioLayout]
    ) -> Float[Tensor, "A D"]:
        """Each clip's frames projected by the projector of its `branch`."""
        branches = {"speech": self.speech, "vision": self.vision}
        if unknown := {clip.branch for clip in clips} - branches.keys():
            raise ValueError(
                f"expected the audio projector speech or vision, found {sorted(unknown)[0]!r}"
            )
        used = sorted({clip.branch for clip in clips})
        if len(used) == 1:
            return branches[used[0]](features)
        parts = features.split([clip.tokens for clip in clips])
        outs = {b: iter(self._each(branches[b], parts, clips, b)) for b in used}
        return torch.cat([next(outs[clip.branch]) for clip in clips])

    @staticmethod
    def _each(
        projector: Projector, parts: Sequence[Tensor], clips: Sequence[AudioLayout], branch: str
    ) -> Sequence[Tensor]:
        """The clips of one branch, projected in one call, one tensor per clip."""
        of_branch = [part for part, clip in zip(parts, clips, strict=True) if clip.branch == branch]
        return projector(torch.cat(of_branch)).split([len(part) for part in of_branch])

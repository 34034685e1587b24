"""What both sides of a training benchmark take: rows as they are stored, and the rows of each step.

A stored row has `ids` and `supervise`, and of an image or a clip what an encoder reads, with `slots`, the positions of
its tokens. The peers' scripts read these files too (peers/padding.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polyphi.data import shards
from polyphi.data.loader import Loader
from polyphi.train.loss import NextToken
from polyphi.types.batch import Batch, row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.encoder import Inputs
from polyphi.types.inputs.image import ImageInput, ImageLayout


def objective(batches: Sequence[Batch]) -> NextToken:
    """The objective whose rows are `batches`, by the index that a sample has as its id."""

    class PlannedRows(NextToken):
        def rows(
            self, sample: Any, processor: Any, context: int, adapter: str | None = "auto"
        ) -> list[Batch]:
            return [batches[int(sample.id)]]

    return PlannedRows()


def image_values(images: ImageInput) -> dict[str, Any]:
    """One image as a stored row has it, without `slots`."""
    images, (layout,) = images.ready(), images.layouts
    side = images.crops.shape[-1]
    return {
        "crops": images.crops,
        "crop_masks": images.masks,
        "image": [layout.crop_rows, layout.crop_cols, layout.rows, layout.cols],
        "image_size": [side * layout.crop_rows, side * layout.crop_cols],
    }


def as_batch(values: dict[str, Any], adapter: str | None) -> Batch:
    """A stored row as a `Batch` of polyphi."""
    inputs: list[Inputs] = []
    if "crops" in values:
        layouts = (ImageLayout(*values["image"]),)
        crops, masks = values["crops"], values["crop_masks"]
        inputs.append(ImageInput(layouts=layouts, slots=values["slots"], crops=crops, masks=masks))
    if "mels" in values:
        clip = AudioLayout(len(values["mels"]), "speech")
        inputs.append(AudioInput(layouts=(clip,), slots=values["slots"], mels=values["mels"]))
    return row(values["ids"], *inputs, supervise=values["supervise"], adapter=adapter)


def write_steps(
    rows: list[dict[str, Any]], folder: Path, adapter: str | None, batch_tokens: int, steps: int
) -> list[list[int]]:
    """Write `rows.pt` and `rows`, a corpus of their indices; return the rows of each step."""
    stubs = [shards.document(str(i), "", "", "") for i in range(len(rows))]
    shards.write(folder / "rows" / "train", stubs, pipeline="benchmark")
    torch.save(rows, folder / "rows.pt")
    loader = Loader(
        {"rows": 1.0},
        folder,
        lambda _, sample: [as_batch(rows[int(sample.id)], adapter)],
        batch_tokens=batch_tokens,
        seed=0,
        curriculum=("rows",),
    )
    return [[int(id.removeprefix("rows/")) for id in loader.step().ids] for _ in range(steps)]


def read_batches(folder: Path, adapter: str | None) -> list[Batch]:
    stored = torch.load(folder / "rows.pt", weights_only=True)
    return [as_batch(values, adapter) for values in stored]


def same_work(results: dict[str, list[dict[str, Any]]], most: float) -> None:
    """Check that all sides train as many parameters on as many tokens, and start at losses at most `most` apart."""
    ours, peer = results["ours"][0], results["peer"][0]
    for key in ("trainable", "supervised"):
        assert ours[key] == peer[key], f"{key}: ours {ours[key]}, the peer's {peer[key]}"
    assert abs(ours["losses"][0] - peer["losses"][0]) < most, (ours["losses"], peer["losses"])

"""Rows of a typical sample of each corpus, for the cost of a stage whose data doesn't exist yet."""

from dataclasses import dataclass, replace

import torch

from polyphi.planning.cost import StageModel
from polyphi.processing import image
from polyphi.processing.item_reader import ItemReader
from polyphi.runtime.steps import result_of
from polyphi.train.contrastive import GLOBAL_VIEW, Contrastive
from polyphi.train.preference import DPO
from polyphi.types.batch import Batch, row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.encoder import Inputs
from polyphi.types.inputs.image import ImageInput
from polyphi.types.parts import Item


@dataclass(frozen=True)
class ExampleRow:
    """One sample of a corpus at full size: tokens of the text, of which the last `supervised` are supervised (None:
    all, a document), images (width, height in pixels), an audio clip (seconds) and items of users' modalities."""

    text: int
    supervised: int | None = None
    pictures: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.0
    items: tuple[Item, ...] = ()


# [ours] The report gives only upper bounds: 1344 x 1344 in vision pre-training (3.2), 30 s of sound and 30 minutes for
# summaries (2.2.2). Summaries have their longest clip here, for the memory; other corpora have one of medium length.
ROWS = {
    "documents": ExampleRow(1500),
    "code": ExampleRow(1500),
    "math": ExampleRow(1500),
    "copying": ExampleRow(200, 100),
    "translation": ExampleRow(300),
    "long_documents": ExampleRow(131_072),
    "instructions": ExampleRow(500, 350),
    "sums": ExampleRow(500, 350),
    "tools": ExampleRow(600, 100),
    "summaries": ExampleRow(1800, 150),
    "fim": ExampleRow(900, 100),
    "preferences": ExampleRow(500, 350),
    "reasoning_documents": ExampleRow(4000),
    "reasoning_sft": ExampleRow(6000, 5800),
    "reasoning_pairs": ExampleRow(6000, 5800),
    "captions": ExampleRow(60, 50, ((896, 672),)),
    "interleaved": ExampleRow(900, 880, ((672, 448),) * 3),
    "grounding": ExampleRow(100, 60, ((896, 672),)),
    "ocr": ExampleRow(900, 880, ((1344, 1344),)),
    "charts": ExampleRow(100, 60, ((896, 672),)),
    "image_qa": ExampleRow(160, 100, ((1344, 1008),)),
    "multi_image": ExampleRow(200, 120, ((896, 672),) * 8),
    "asr": ExampleRow(70, 50, seconds=15),
    "ast": ExampleRow(90, 60, seconds=15),
    "sqa": ExampleRow(130, 120, seconds=10),
    "speech_summary": ExampleRow(250, 220, seconds=1800),
    "audio_understanding": ExampleRow(80, 60, seconds=15),
    "audio_safety": ExampleRow(80, 60, seconds=10),
    "vision_speech": ExampleRow(130, 100, ((1344, 1008),), seconds=8),
}


def longest_row(target: StageModel, corpus: str) -> ExampleRow:
    """A sample of the longest that a corpus has in a stage: of images, one of 36 crops (report 2.2.1) or several
    frames, as far as they fit the context (64k tokens, report 2.2.2); of others, that in `ROWS`."""
    sample, vision = ROWS[corpus], target.config.vision
    if vision is None or corpus not in ("image_qa", "multi_image"):
        return sample

    def tokens(width: int, height: int) -> int:
        return image.plan(width, height, max_crops=36).layout.tokens(vision.cells)

    available = target.budget.context - sample.text
    if corpus == "multi_image":
        frame = sample.pictures[0]
        return replace(sample, pictures=(frame,) * max(1, available // tokens(*frame)))
    sides = [n * image.CROP for n in range(1, 7)]
    return replace(
        sample, pictures=(max((n, n) for n in sides if tokens(n, n) <= available or n == sides[0]),)
    )


def example_rows(
    target: StageModel, corpus: str, measured: ExampleRow | None = None
) -> list[Batch]:
    """The rows that one sample of a corpus becomes in a stage: one of the lengths in `measured`, else in `ROWS`, whose
    images are scaled with the size of a crop."""
    sample = measured or ROWS[corpus]
    stage, config, inputs = target.stage, target.config, list[Inputs]()
    before = 0
    vision, contrastive = config.vision, isinstance(stage.objective, Contrastive)
    if sample.pictures and vision is not None:
        side, patch = vision.crop_size, vision.patch_size
        max_crops = getattr(stage.objective, "max_crops", None) or vision.max_crops
        scale = 1.0 if measured else side / image.CROP
        sizes = [tuple(max(1, round(n * scale)) for n in size) for size in sample.pictures]
        layouts = (
            [GLOBAL_VIEW]
            if contrastive
            else [
                image.plan(w, h, crop_size=side, patch_size=patch, max_crops=max_crops).layout
                for w, h in sizes
            ]
        )
        before = 0 if contrastive else sum(layout.tokens(vision.cells) for layout in layouts)
        crops = sum(layout.crops for layout in layouts)
        inputs.append(
            ImageInput(
                layouts=tuple(layouts),
                slots=None if contrastive else torch.arange(before),
                crops=torch.zeros(crops, 3, side, side),
                masks=torch.ones(crops, vision.grid, vision.grid, dtype=torch.bool),
            )
        )
    if sample.seconds and config.audio is not None:
        clip = AudioLayout(round(100 * sample.seconds), "vision" if inputs else "speech")
        inputs.append(
            AudioInput(
                layouts=(clip,),
                slots=torch.arange(before, before + clip.tokens),
                mels=torch.zeros(clip.frames, config.audio.input_size),
            )
        )
        before += clip.tokens
    for name, own in config.further.items():
        reader, parts = ItemReader(own.modality), [i for i in sample.items if i.modality == name]
        placeholders = [reader.placeholder(part, n, None) for n, part in enumerate(parts)]
        if placeholders:
            tokens = sum(item.tokens for item in placeholders)
            slots = range(before, before + tokens)
            inputs.append(result_of(reader.inputs(placeholders, slots, [name])))
            before += tokens
    length = max(before + 2, min(before + sample.text, target.budget.context))
    supervised = min(length - 1, sample.text if sample.supervised is None else sample.supervised)
    own_adapter = sample.items[0].modality if sample.items else None
    adapter = stage.data.adapter.get(
        corpus, "vision" if sample.pictures else "speech" if sample.seconds else own_adapter
    )
    example = row(
        [0] * length,
        *inputs,
        supervise=[t >= length - supervised for t in range(length)],
        adapter=adapter if adapter in config.adapters else None,
    )
    return [example] * (2 if isinstance(stage.objective, DPO) else 1)

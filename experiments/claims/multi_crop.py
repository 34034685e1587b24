"""C3: dynamic multi-crop doesn't enlarge small images much (report 2.2.1).

python -m experiments claims C3 --out runs/nano
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image as Picture

from experiments.claims.claim import (
    DRAWS,
    Claim,
    Effect,
    contrast,
    from_draws,
    paired,
)
from experiments.claims.runner import Arm, ClaimRunner
from polyphi.data import shards
from polyphi.data.sample import Sample
from polyphi.data.shards import Shards
from polyphi.processing import image
from polyphi.processing.image import ImageReader
from polyphi.processing.processor import Processor
from polyphi.processing.reader import Decoding
from polyphi.train.stage import Mix, Stage
from polyphi.types.parts import Image
from polyphi_recipe.corpora.image_qa import draw_text
from polyphi_recipe.synthetic.scenes import Scene, image_question

STAGE = "vision_3_generative"
STEP_SHARE = 0.1  # of the stage's steps
MAX_CROPS = 12  # crops of InternVL2's rule
SIDES = (28, 56, 84, 112, 168, 224, 280, 336, 448)  # pixels of pictures that one crop covers
STRIP = (
    (84, 112),
    (22, 28),
)  # pixels: widths and heights of small pictures of text; crops have 112
ROWS = {"train": 2000, "test": 300}
MARGIN = 3.0  # points


class ByAspect(ImageReader):
    """A reader that resizes images to the grid of InternVL2's rule before they are cut into crops."""

    def image_size(self, part: Image) -> tuple[int, int]:
        cols, rows = image.nearest(*super().image_size(part), self.crop_size, MAX_CROPS)
        return cols * self.crop_size, rows * self.crop_size

    def decoded(self, part: Image, size: tuple[int, int]) -> Picture.Image:
        whole = super().decoded(part, super().image_size(part))
        return whole.resize(size, Picture.Resampling.BILINEAR)


def sizes() -> Iterator[Effect]:
    """Tokens, enlargement and distortion by both rules, over image sizes that one crop of 448 pixels covers."""
    measurements = []
    for width in SIDES:
        for height in SIDES:
            p = image.plan(width, height)
            cols, rows = image.nearest(width, height, image.CROP, MAX_CROPS)
            wide, high = cols * image.CROP, rows * image.CROP
            theirs = image.count_tokens(wide, high) / image.count_tokens(width, height)
            enlarged = math.sqrt(wide * high / (p.width * p.height))
            stretched = _stretch(wide / width, high / height) - _stretch(
                p.width / width, p.height / height
            )
            measurements.append((math.log(theirs), math.log(enlarged), 100 * stretched))
    values = np.array(measurements)
    drawn = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(1)
    prefix = f"{len(values)} sizes up to one crop"
    for column, (what, above, unit) in enumerate(
        (
            ("tokens by aspect ratio, divided by ours", 1.0, "x"),
            ("side length by aspect ratio, divided by ours", 1.0, "x"),
            ("change of aspect ratio, minus ours", 0.0, "%"),
        )
    ):
        # Ratios are averaged as logarithms.
        value, draws = values[:, column].mean(), drawn[:, column]
        if unit == "x":
            value, draws = math.exp(value), np.exp(draws)
        yield from_draws(f"{prefix}: {what}", float(value), draws, above=above, unit=unit)


def _stretch(by_width: float, by_height: float) -> float:
    return max(by_width / by_height, by_height / by_width) - 1


def strips(runner: ClaimRunner) -> Path:
    """The folder of a corpus of small images, each with a number in one line; test fonts aren't in training rows."""
    data = runner.folder / "data" / "C3"
    for split, rows in ROWS.items():
        if not (data / "strips" / split / "manifest.json").exists():
            rows = min(rows, 20 * runner.run.recipe.size.test_rows)
            shards.write(
                data / "strips" / split,
                (_strip(split, i, runner.run.seed) for i in range(rows)),
                pipeline="C3",
            )
    return data


def _strip(split: str, index: int, seed: int) -> Sample:
    rng = Random(f"{seed} C3 {split} {index}")
    size = rng.randint(*STRIP[0]), rng.randint(*STRIP[1])
    value = rng.randrange(10, 100)
    picture, _ = draw_text(Scene(rng, split, index), str(value), size, size[1])
    sample = image_question(picture, "What number is this?", value)
    return Sample(
        f"C3-{split}-{index:06d}", sample.messages, sample.source, "MIT", {"task": "strip"}
    )


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Both rules on many sizes; then the model after vision 3 is trained to read strips with either rule."""
    yield from sizes()
    data, ours = strips(runner), runner.run.processor
    theirs, sizes_of = Processor(ours.tokenizer), ours.images
    theirs.readers[ByAspect.modality] = ByAspect(
        Decoding(ours.caps), sizes_of.crop_size, sizes_of.patch_size, sizes_of.max_crops
    )
    stage = replace(runner.stage(STAGE), start={"*": STAGE}, data=Mix({"strips": 1}))
    held_out = list(Shards(data / "strips" / "test"))
    tokens = {rule: sum(len(rule.row(s.prompt)) for s in held_out[:40]) for rule in (ours, theirs)}

    def arms(name: str, rule: Processor) -> list[Arm]:
        budget = runner.budget(stage, STEP_SHARE)
        # The same number of samples a step with both rules.
        batch_tokens = round(budget.batch_tokens * tokens[rule] / tokens[ours])
        budget = replace(budget, batch_tokens=batch_tokens)
        return runner.arms(name, stage, budget, data=data, processor=rule)

    def exact(name: str, rule: Processor, stage: Stage = stage) -> list[dict[str, list[float]]]:
        return [
            runner.matched(arm, stage, {"strips": held_out}, rule)[0] for arm in arms(name, rule)
        ]

    results = exact("C3-ours", ours), exact("C3-aspect", theirs)
    for rule, scores in zip(("ours", "by aspect"), results, strict=True):
        shares = (sum(v for v, _ in s.values()) / len(s) for s in scores)
        runner.report(f"  {rule}: accuracy {', '.join(f'{share:.1%}' for share in shares)} by seed")
    yield contrast(
        f"numbers read in small pictures, ours minus by aspect ratio, which has {tokens[theirs] / tokens[ours]:.1f} "
        "times the tokens",
        ("accuracy", paired(results[1], results[0])),
        above=-MARGIN,
    )


claim = Claim(
    name="C3",
    title="Dynamic multi-crop",
    says="With the report's crop rule small images aren't enlarged to the grid of the nearest aspect ratio.",
    where="2.2.1",
    experiment=(
        f"Both rules on {len(SIDES) ** 2} sizes, 28 x 448 among them; then vision 3's model trained on small pictures "
        f"of numbers with either rule and the same samples, {STEP_SHARE:.0%} of the stage's steps "
        f"(margin {MARGIN:g} points)"
    ),
    run=run,
)

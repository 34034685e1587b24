"""C3: dynamic multi-crop spares small images (report 2.2.1).

polyphi claims C3 --out runs/nano
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image as Picture

from polyphi import stages
from polyphi.corpora.image_qa import draw_text
from polyphi.data import shards
from polyphi.data.shards import Sample, Shards
from polyphi.messages import Image
from polyphi.processing import image
from polyphi.processing.processor import Processor
from polyphi.recipe.experiments.claims.claim import DRAWS, Claim, Effect, contrast, measured, paired
from polyphi.recipe.experiments.claims.laboratory import Arm, Laboratory
from polyphi.synthetic.scenes import Scene, image_question
from polyphi.train.stage import Mix, Stage

STAGE = "vision_3_generative"
SHARE = 0.1  # of the stage's steps
MOST = 12  # crops of InternVL2's rule
SIDES = (28, 56, 84, 112, 168, 224, 280, 336, 448)  # pixels of pictures that one crop covers
STRIP = (
    (84, 112),
    (22, 28),
)  # pixels: widths and heights of small pictures of text, beside crops of 112
ROWS = {"train": 2000, "test": 300}
MARGIN = 3.0  # points


class ByAspect(Processor):
    """Pictures stretched to the grid of InternVL2's rule before they are cut."""

    def size(self, part: Image) -> tuple[int, int]:
        cols, rows = image.nearest(*super().size(part), self.crop_size, MOST)
        return cols * self.crop_size, rows * self.crop_size

    def decoded_image(self, part: Image) -> Picture.Image:
        return super().decoded_image(part).resize(self.size(part), Picture.Resampling.BILINEAR)


def sizes() -> Iterator[Effect]:
    """Tokens, enlargement and distortion of both rules over pictures that one crop of 448 pixels covers."""
    found = []
    for width in SIDES:
        for height in SIDES:
            p = image.plan(width, height)
            cols, rows = image.nearest(width, height, image.CROP, MOST)
            wide, high = cols * image.CROP, rows * image.CROP
            theirs = image.count_tokens(wide, high) / image.count_tokens(width, height)
            enlarged = math.sqrt(wide * high / (p.width * p.height))
            stretched = _stretch(wide / width, high / height) - _stretch(
                p.width / width, p.height / height
            )
            found.append((math.log(theirs), math.log(enlarged), 100 * stretched))
    values = np.array(found)
    drawn = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(1)
    kind = f"{len(values)} sizes up to one crop"
    for column, (what, above, unit) in enumerate(
        (
            ("tokens by aspect ratio, as a multiple of ours", 1.0, "x"),
            ("side by aspect ratio, as a multiple of ours", 1.0, "x"),
            ("change of aspect ratio beyond ours", 0.0, "%"),
        )
    ):
        # Multiples are averaged as logarithms.
        value, draws = values[:, column].mean(), drawn[:, column]
        if unit == "x":
            value, draws = math.exp(value), np.exp(draws)
        yield measured(f"{kind}: {what}", float(value), draws, above=above, unit=unit)


def _stretch(by_width: float, by_height: float) -> float:
    return max(by_width / by_height, by_height / by_width) - 1


def strips(lab: Laboratory) -> Path:
    """A corpus of small pictures, each a number in one line; test fonts are unseen."""
    data = lab.folder / "data" / "C3"
    for split, rows in ROWS.items():
        if not (data / "strips" / split / "manifest.json").exists():
            rows = min(rows, 20 * lab.run.size.test_rows)
            shards.write(
                data / "strips" / split,
                (_strip(split, i, lab.run.seed) for i in range(rows)),
                pipeline="C3",
            )
    return data


def _strip(split: str, index: int, seed: int) -> Sample:
    rng = Random(f"{seed} C3 {split} {index}")
    size = rng.randint(*STRIP[0]), rng.randint(*STRIP[1])
    value = rng.randrange(10, 100)
    picture, _ = draw_text(Scene(rng, split, index), str(value), size, size[1])
    made = image_question(picture, "What number is this?", value)
    return Sample(f"C3-{split}-{index:06d}", made.messages, made.source, "MIT", {"task": "strip"})


def run(lab: Laboratory) -> Iterator[Effect]:
    """Sizes first; then the model that has seen single pictures learns to read strips, by either rule."""
    yield from sizes()
    data, ours = strips(lab), lab.run.processor
    theirs = ByAspect(ours.tokenizer, ours.crop_size, ours.patch_size, ours.max_crops)
    stage = replace(stages.load(STAGE), start={"*": STAGE}, data=Mix({"strips": 1}))
    held_out = list(Shards(data / "strips" / "test"))
    tokens = {rule: sum(len(rule.row(s.prompt)) for s in held_out[:40]) for rule in (ours, theirs)}

    def arms(name: str, rule: Processor) -> list[Arm]:
        budget = lab.budget(stage, SHARE)
        # As many samples a step, whatever they cost.
        room = round(budget.batch_tokens * tokens[rule] / tokens[ours])
        budget = replace(budget, batch_tokens=room)
        return lab.arms(name, stage, budget, data=data, processor=rule)

    def right(name: str, rule: Processor, stage: Stage = stage) -> list[dict[str, list[float]]]:
        return [lab.matched(arm, stage, {"strips": held_out}, rule)[0] for arm in arms(name, rule)]

    found = right("C3-ours", ours), right("C3-aspect", theirs)
    for rule, scores in zip(("ours", "by aspect"), found, strict=True):
        shares = (sum(v for v, _ in s.values()) / len(s) for s in scores)
        lab.tell(f"  {rule}: right {', '.join(f'{share:.1%}' for share in shares)} by seed")
    yield contrast(
        f"numbers read in small pictures, ours less by aspect at {tokens[theirs] / tokens[ours]:.1f} times the tokens",
        ("accuracy", paired(found[1], found[0])),
        above=-MARGIN,
    )


claim = Claim(
    name="C3",
    title="Dynamic multi-crop",
    says="The crop rule spares small images: they aren't blown up to the grid of the nearest aspect ratio.",
    where="2.2.1",
    experiment=(
        f"Both rules on {len(SIDES) ** 2} sizes, 28 x 448 among them; then small pictures of numbers, learned by "
        f"vision 3's model with either rule from the same samples, {SHARE:.0%} of the stage's steps (margin "
        f"{MARGIN:g} points)"
    ),
    run=run,
)

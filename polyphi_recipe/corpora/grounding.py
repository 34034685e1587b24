"""Grounding: an image has four by four places; the place of an object is "x 2 y 3", counted from the upper left.

>>> "Locate the red star."                  ->  "x 2 y 3"
>>> "What is at x 2 y 3?"                   ->  "red star"
"""

from collections.abc import Iterator

from PIL import Image

from polyphi.data.shards import Sample
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.synthetic import images
from polyphi_recipe.synthetic.images import PAIRS, SCANS, SIDE
from polyphi_recipe.synthetic.scenes import Scene, SceneSample, fresh, image_question, samples
from polyphi_recipe.text.lexicon import COLOUR_RGB

GRID = 4
PLACES = tuple((x, y) for y in range(1, GRID + 1) for x in range(1, GRID + 1))


def name(x: int, y: int) -> str:
    return f"x {x} y {y}"


def _draw(scene: Scene) -> tuple[Image.Image, list[tuple[str, tuple[int, int]]], str]:
    """Return an image of one to four different objects (coloured shapes, scanned digits), the label and place of each,
    with that of the balanced answer first, and the source."""
    side = SIDE * (2 if scene.rng.random() < 0.08 else 1)
    cell = side // GRID
    answer_place = scene.answer(PLACES)
    places = [
        answer_place,
        *scene.rng.sample([p for p in PLACES if p != answer_place], scene.rng.randint(0, 3)),
    ]
    shapes = scene.rng.sample(PAIRS, len(places))
    digits = scene.rng.sample(range(10), len(places))
    scanned = [scene.rng.random() < 0.3 for _ in places]
    shape_colours = [COLOUR_RGB[c] for (_, c), s in zip(shapes, scanned, strict=True) if not s]
    paper = scene.paper(*shape_colours)
    image, ink = scene.sheet((side, side), paper), scene.ink(paper)
    objects: list[tuple[str, tuple[int, int]]] = []
    for (x, y), (shape, colour), digit, scan in zip(places, shapes, digits, scanned, strict=True):
        size = int(cell * scene.rng.uniform(0.78, 0.95))
        corner = (
            round((x - 1) * cell + scene.rng.uniform(0, cell - size)),
            round((y - 1) * cell + scene.rng.uniform(0, cell - size)),
        )
        if scan:
            images.stamp_scan(image, scene.scan(digit), corner, size, ink)
        else:
            scene.shape(image, shape, colour, corner, size)
        objects.append((str(digit) if scan else f"{colour} {shape}", (x, y)))
    return image, objects, SCANS if any(scanned) else "polyphi"


def locate(scene: Scene) -> SceneSample:
    """Return a question for the place of an object."""
    image, objects, source = _draw(scene)
    label, place = objects[0]
    question = scene.rng.choice((f"Locate the {label}.", f"At which place is the {label}?"))
    return image_question(image, question, name(*place), source)


def identify(scene: Scene) -> SceneSample:
    """Return a question for the object at a place."""
    image, objects, source = _draw(scene)
    label, place = objects[0]
    return image_question(image, f"What is at {name(*place)}?", label, source)


MAKERS = {"locate": (65, locate), "identify": (35, identify)}
"""Task -> (share of the training set, maker)."""


def places(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("grounding", work, MAKERS)


# Whole images: a drawing that is a part of another one isn't a leak.
corpus = Corpus(
    "grounding",
    build=places,
    steps=against("grounding", ways=("same bytes", "whole picture")),
    fresh=lambda work: fresh("grounding", work, MAKERS),
)

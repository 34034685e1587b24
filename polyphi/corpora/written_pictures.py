"""Questions about pictures that are written as text: the conversations of `image_qa`, `captions` and `multi_image`,
each picture as a grid of words (`polyphi.processing.grids`). [ours]

    . . red star .
    . . . .
    . . . .          How many stars are there?   ->   2
    . red star . .

A small language model answers about a picture only what it could answer about words, and it is frozen before the first
picture comes: here it learns the questions, so that the vision stages have nothing to learn but what is in a cell.
"""

import io
from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from polyphi.chat import Image as Picture
from polyphi.chat import Part, Text
from polyphi.corpora import captions, image_qa, multi_image
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.images import SIDE
from polyphi.curate.scenes import Made, Maker, Scene, fresh, samples
from polyphi.data.shards import Sample
from polyphi.processing.grids import CELLS, ROW_END, Named, written


def in_words(maker: Maker) -> Maker:
    """A maker of the same conversations with a grid of words in place of each picture."""

    def make(scene: Scene) -> Made:
        made = maker(scene)
        shown = iter(made.meta["named"])
        messages = tuple(
            replace(m, parts=tuple(_in_words(part, shown) for part in m.parts))
            for m in made.messages
        )
        return replace(made, messages=messages, meta={"picture": "in words"})

    return make


def _in_words(part: Part, shown: Iterator[list[Named]]) -> Part:
    if not isinstance(part, Picture):
        return part
    assert isinstance(part.source, bytes)
    width, height = Image.open(io.BytesIO(part.source)).size
    grid = written(next(shown), CELLS * height // SIDE, CELLS * width // SIDE)
    return Text(f"{grid}{ROW_END}")


SHARES = {"image_qa": 1.0, "captions": 0.1, "multi_image": 0.2}
"""Corpus -> its share beside that of `image_qa`."""
UNNAMED = {"request", "stamp", "caption_stamp"}
"""Tasks that no word of a cell answers: what a stamp looks like, what must be refused."""

MAKERS: dict[str, tuple[float, Maker]] = {
    task: (
        SHARES[module.corpus.name] * weight / sum(w for w, _ in module.MAKERS.values()),
        in_words(maker),
    )
    for module in (image_qa, captions, multi_image)
    for task, (weight, maker) in module.MAKERS.items()
    if task not in UNNAMED
}


def conversations(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("written_pictures", work, MAKERS)


corpus = Corpus(
    "written_pictures",
    build=conversations,
    fresh=lambda work: fresh("written_pictures", work, MAKERS),
)

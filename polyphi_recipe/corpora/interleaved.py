"""Documents with images between their sentences, as raw text for joint training (report 3.2).

Each document has two or three images, each followed by its caption; the last sentence refers back to one of them.
"""

from collections.abc import Iterator

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Image as ImagePart
from polyphi.types.parts import Text
from polyphi_recipe.corpora import captions
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.synthetic import stamps
from polyphi_recipe.synthetic.images import png
from polyphi_recipe.synthetic.scenes import Scene, SceneSample, samples, strictest_source

ORDINALS = ("first", "second", "third")


def document(scene: Scene) -> SceneSample:
    """Return a document of two or three images with captions."""
    count = 2 + (scene.index % 2)
    scene = scene.several(count)
    drawers = [captions.shapes, captions.shapes, captions.text] + [captions.captioned_stamp] * bool(
        scene.album
    )
    images: list[captions.CaptionedImage] = []
    while len(images) < count:
        captioned = scene.rng.choice(drawers)(scene)
        if captioned.language == "en" and captioned.caption not in [m.caption for m in images]:
            images.append(captioned)
    form = scene.rng.randrange(3)
    parts: list[ImagePart | Text] = []
    for i, captioned in enumerate(images):
        prefix = (
            f"Picture {i + 1}: ",
            f"\nThe {ORDINALS[i]} picture " if i else f"The {ORDINALS[i]} picture ",
            "",
        )[form]
        if prefix:
            parts.append(Text(prefix))
        parts.append(ImagePart(png(captioned.image)))
        parts.append(
            Text(
                (
                    f" {captioned.caption}.\n",
                    f" shows {captioned.caption}.",
                    f" This is {captioned.caption}.\n",
                )[form]
            )
        )
    recalled = scene.rng.randrange(len(images))
    closing = f"The {ORDINALS[recalled]} picture shows {images[recalled].caption}."
    parts.append(Text(f"\n{closing}" if form == 1 else closing))
    return SceneSample(
        (Message("document", tuple(parts)),),
        strictest_source([captioned.source for captioned in images]),
    )


def documents(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("interleaved", work, {"interleaved": (1, document)}, stamps.load(work))


# Whole images: a drawing that is a part of another one isn't a leak.
corpus = Corpus(
    "interleaved",
    build=documents,
    steps=against("interleaved", ways=("same bytes", "whole picture")),
)

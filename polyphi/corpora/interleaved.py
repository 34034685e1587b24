"""Documents with pictures between their sentences, as raw text for joint training (report 3.2).

Every document has two or three pictures; what is written after a picture tells what it shows, and the end looks back.
"""

from collections.abc import Iterator

from polyphi.corpora import captions
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.data.shards import Sample
from polyphi.messages import Image as Picture
from polyphi.messages import Message, Text
from polyphi.synthetic import stamps
from polyphi.synthetic.images import png
from polyphi.synthetic.scenes import Made, Scene, samples, strictest

ORDINALS = ("first", "second", "third")


def document(scene: Scene) -> Made:
    """Two or three captioned pictures in one document."""
    drawers = [captions.shapes, captions.shapes, captions.text] + [captions.a_stamp] * bool(
        scene.album
    )
    shown: list[captions.Captioned] = []
    while len(shown) < 2 + (scene.index % 2):
        made = scene.rng.choice(drawers)(scene)
        if made.language == "en" and made.caption not in [m.caption for m in shown]:
            shown.append(made)
    form = scene.rng.randrange(3)
    parts: list[Picture | Text] = []
    for i, made in enumerate(shown):
        before = (
            f"Picture {i + 1}: ",
            f"\nThe {ORDINALS[i]} picture " if i else f"The {ORDINALS[i]} picture ",
            "",
        )[form]
        if before:
            parts.append(Text(before))
        parts.append(Picture(png(made.picture)))
        parts.append(
            Text(
                (f" {made.caption}.\n", f" shows {made.caption}.", f" This is {made.caption}.\n")[
                    form
                ]
            )
        )
    back = scene.rng.randrange(len(shown))
    closing = f"The {ORDINALS[back]} picture shows {shown[back].caption}."
    parts.append(Text(f"\n{closing}" if form == 1 else closing))
    return Made((Message("document", tuple(parts)),), strictest([made.source for made in shown]))


def documents(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("interleaved", work, {"interleaved": (1, document)}, stamps.load(work))


# Whole pictures: a drawing that is a part of another one isn't a leak.
corpus = Corpus(
    "interleaved",
    build=documents,
    steps=against("interleaved", ways=("same bytes", "whole picture")),
)

"""Several pictures at once: which one shows a thing, whether two show the same, how a shape moves, how many show it;
frames of drawn videos: what happens first or last, and all that happens, in order.

The multi-image and video set of `vision_4_multiframe`. Videos of your own: polyphi/curate/videos.py.
"""

from collections.abc import Iterator

from PIL import Image

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.data.shards import Sample
from polyphi.synthetic import cartoons, images, stamps
from polyphi.synthetic.images import PAIRS, SCANS, SIDE, sheet
from polyphi.synthetic.scenes import Made, Scene, asked, fresh, samples
from polyphi.synthetic.stamps import KINDS, STAMPS
from polyphi.text.lexicon import COLOUR_RGB, COLOURS

DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
FRAMES = 3


def _shape(scene: Scene, shape: str, colour: str) -> Image.Image:
    picture, side = sheet((SIDE, SIDE), scene.paper(COLOUR_RGB[colour])), scene.rng.randint(48, 90)
    corner = scene.corner(picture.size, (side, side))
    scene.shape(picture, shape, colour, corner, side)
    return picture


def _digit(scene: Scene, value: int) -> Image.Image:
    paper, side = scene.paper(), scene.rng.randint(76, 104)
    picture = sheet((SIDE, SIDE), paper)
    corner = scene.corner(picture.size, (side, side))
    images.stamp_digits(picture, [scene.scan(value)], corner, side, scene.ink(paper), rng=scene.rng)
    return picture


def _stamp(scene: Scene, kind: str) -> Image.Image:
    stamp = scene.stamp(kind)
    picture, cutout = (
        sheet((SIDE, SIDE), stamp.paper(scene.rng)),
        stamp.cutout(scene.rng.randint(66, 100)),
    )
    corner = scene.corner(picture.size, cutout.size)
    picture.paste(cutout, corner, cutout)
    images.name(picture, kind, corner, cutout.size)
    return picture


def _one_each(scene: Scene, count: int) -> tuple[list[Image.Image], list[str], str]:
    """`count` pictures of different things, how each is called, and their source."""
    form = scene.rng.choice(
        ("shape", "colour", "digit", "digit", "stamp")
        if scene.album
        else ("shape", "colour", "digit")
    )
    if form == "digit":
        values = scene.rng.sample(range(10), count)
        return (
            [_digit(scene, v) for v in values],
            [f"a {v}" if v != 8 else "an 8" for v in values],
            SCANS,
        )
    if form == "stamp":
        kinds = scene.rng.sample(list(KINDS), count)
        named = [f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in kinds]
        return [_stamp(scene, kind) for kind in kinds], named, STAMPS
    part = 0 if form == "shape" else 1
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        pair = scene.pair()
        if pair[part] not in [d[part] for d in drawn]:
            drawn.append(pair)
    named = [f"a {shape}" if part == 0 else f"something {colour}" for shape, colour in drawn]
    return [_shape(scene, *pair) for pair in drawn], named, "polyphi"


def which_picture(scene: Scene) -> Made:
    """The number of the picture, of three, that shows a thing; in training there may be two."""
    answer = scene.answer((1, 2, 3))
    count = 2 if scene.split == "train" and answer < 3 and scene.rng.random() < 1 / 3 else 3
    pictures, named, source = _one_each(scene, count)
    return asked(pictures, f"Which picture shows {named[answer - 1]}?", answer, source, count=count)


def same(scene: Scene) -> Made:
    """Whether two pictures show the same shape, colour or digit."""
    answer = scene.answer(("yes", "no"))
    form = scene.answer(("shape", "colour", "digit"), every=2)
    if form == "digit":
        values = scene.rng.sample(range(10), 2)
        pictures = [
            _digit(scene, values[0]),
            _digit(scene, values[0] if answer == "yes" else values[1]),
        ]
        return asked(pictures, "Is it the same digit?", answer, SCANS, form=form)
    part = 0 if form == "shape" else 1
    first = scene.pair()
    second = scene.rng.choice([p for p in PAIRS if (p[part] == first[part]) == (answer == "yes")])
    return asked(
        [_shape(scene, *first), _shape(scene, *second)],
        f"Is it the same {form}?",
        answer,
        form=form,
    )


def motion(scene: Scene) -> Made:
    """The direction in which a shape moves over three frames."""
    answer = scene.answer(list(DIRECTIONS))
    (dx, dy), (shape, colour) = DIRECTIONS[answer], scene.pair()
    side, turn, paper, tint = (
        scene.rng.randint(26, 40),
        scene.turn(shape, colour),
        scene.paper(COLOUR_RGB[colour]),
        scene.tint(colour),
    )
    free = SIDE - side
    path = free * scene.rng.uniform(0.6, 1.0)  # pixels from the first frame to the last
    start, across = scene.rng.uniform(0, free - path), scene.rng.uniform(0, free)
    frames = []
    for i in range(FRAMES):
        along = start + path * (i if dx + dy > 0 else FRAMES - 1 - i) / (FRAMES - 1)
        corner = (round(along), round(across)) if dx else (round(across), round(along))
        frame = sheet((SIDE, SIDE), paper)
        words = f"{colour} {shape}"
        images.stamp_shape(frame, shape, corner, side, tint, turn=turn, words=words)
        frames.append(frame)
    question = scene.rng.choice(
        (f"Which way does the {shape} move?", f"Where does the {shape} go?")
    )
    return asked(frames, question, answer)


def frames(scene: Scene) -> Made:
    """In how many of three pictures a shape is seen."""
    answer = scene.answer((1, 2, 3))
    shape, _ = scene.pair()
    shown = scene.rng.sample([True] * answer + [False] * (3 - answer), 3)
    pictures = []
    for there in shown:
        pair = scene.rng.choice([p for p in PAIRS if (p[0] == shape) == there])
        pictures.append(_shape(scene, *pair))
    return asked(pictures, f"How many pictures show a {shape}?", answer)


def _cartoon(scene: Scene, events: list[str], first: bool) -> cartoons.Cartoon:
    """A video of `events` and one or two more, which come before or after them."""
    shape, colour = scene.pair()
    others = [c for c in COLOURS if c != colour]
    more = [e for e in (*cartoons.PLAIN, f"turns {scene.rng.choice(others)}") if e not in events]
    more = scene.rng.sample(more, scene.rng.choice((2, 3)) - len(events))
    return cartoons.draw(scene, shape, colour, events + more if first else more + events)


def event(scene: Scene) -> Made:
    """What happens first, or last, in a video of two or three events."""
    first, wanted = scene.answer((True, False)), scene.answer(cartoons.PLAIN, every=2)
    drawn = _cartoon(scene, [wanted], first)
    question = f"What does the {drawn.shape} do {'first' if first else 'last'}?"
    return asked(drawn.seen(), question, wanted, events=list(drawn.events))


def summary(scene: Scene) -> Made:
    """What happens in a video, in order."""
    drawn = _cartoon(scene, [], first=True)
    return asked(
        drawn.seen(), "What happens in the video?", drawn.summary(), events=list(drawn.events)
    )


MAKERS = {
    "which_picture": (22, which_picture),
    "same": (30, same),
    "motion": (14, motion),
    "frames": (28, frames),
    "video_event": (4, event),
    "video_summary": (2, summary),
}
"""Task -> (share of the training set, maker)."""


def sequences(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("multi_image", work, MAKERS, stamps.load(work))


# By bytes: frames of held-out strips are like those of others by design.
corpus = Corpus(
    "multi_image",
    build=sequences,
    steps=against("multi_image", ways=("same bytes",)),
    fresh=lambda work: fresh("multi_image", work, MAKERS, stamps.load(work)),
)

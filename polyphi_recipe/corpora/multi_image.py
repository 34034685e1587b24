"""Questions about several images (which one shows an object, whether two show the same, how a shape moves, how many
show it) and about frames of drawn videos (the first or last event, all events in order).

The multi-image and video set of `vision_4_multiframe`. For your videos see polyphi_recipe/curate/videos.py.
"""

from collections.abc import Iterator

from PIL import Image

from polyphi.data.shards import Sample
from polyphi.text.lexicon import COLOUR_RGB, COLOURS
from polyphi_recipe.curate.corpus import Corpus, Work
from polyphi_recipe.curate.decontaminate import against
from polyphi_recipe.synthetic import cartoons, images, stamps
from polyphi_recipe.synthetic.described_scenes import with_article
from polyphi_recipe.synthetic.images import PAIRS, SCANS, SIDE, sheet
from polyphi_recipe.synthetic.scenes import Scene, SceneSample, fresh, image_question, samples
from polyphi_recipe.synthetic.stamps import CATEGORIES, STAMPS

DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
FRAMES = 3


def _shape(scene: Scene, shape: str, colour: str) -> Image.Image:
    image, side = sheet((SIDE, SIDE), scene.paper(COLOUR_RGB[colour])), scene.rng.randint(48, 90)
    corner = scene.corner(image.size, (side, side))
    scene.shape(image, shape, colour, corner, side)
    return image


def _digit(scene: Scene, value: int) -> Image.Image:
    paper, side = scene.paper(), scene.rng.randint(76, 104)
    image = sheet((SIDE, SIDE), paper)
    corner = scene.corner(image.size, (side, side))
    images.stamp_digits(image, [scene.scan(value)], corner, side, scene.ink(paper), rng=scene.rng)
    return image


def _stamp(scene: Scene, category: str) -> Image.Image:
    stamp = scene.stamp(category)
    image, cutout = (
        sheet((SIDE, SIDE), stamp.paper(scene.rng)),
        stamp.cutout(scene.rng.randint(66, 100)),
    )
    corner = scene.corner(image.size, cutout.size)
    image.paste(cutout, corner, cutout)
    images.annotate(image, category, corner, cutout.size)
    return image


def _one_each(scene: Scene, count: int) -> tuple[list[Image.Image], list[str], str]:
    """Return `count` images of different objects, the noun phrase of each, and their source."""
    form = scene.rng.choice(
        ("shape", "colour", "digit", "digit", "stamp")
        if scene.album
        else ("shape", "colour", "digit")
    )
    if form == "digit":
        values = scene.rng.sample(range(10), count)
        return (
            [_digit(scene, v) for v in values],
            [with_article(str(v)) for v in values],
            SCANS,
        )
    if form == "stamp":
        categories = scene.rng.sample(list(CATEGORIES), count)
        labels = [with_article(name) for name in categories]
        return [_stamp(scene, category) for category in categories], labels, STAMPS
    part = 0 if form == "shape" else 1
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        pair = scene.pair()
        if pair[part] not in [d[part] for d in drawn]:
            drawn.append(pair)
    labels = [f"a {shape}" if part == 0 else f"something {colour}" for shape, colour in drawn]
    return [_shape(scene, *pair) for pair in drawn], labels, "polyphi"


def which_picture(scene: Scene) -> SceneSample:
    """Return a question which of three images (in training also two) shows an object."""
    answer = scene.answer((1, 2, 3))
    count = 2 if scene.split == "train" and answer < 3 and scene.rng.random() < 1 / 3 else 3
    image_list, labels, source = _one_each(scene, count)
    return image_question(
        image_list, f"Which picture shows {labels[answer - 1]}?", answer, source, count=count
    )


def same(scene: Scene) -> SceneSample:
    """Return a question whether two images show the same shape, colour or digit."""
    answer = scene.answer(("yes", "no"))
    form = scene.answer(("shape", "colour", "digit"), every=2)
    if form == "digit":
        values = scene.rng.sample(range(10), 2)
        image_list = [
            _digit(scene, values[0]),
            _digit(scene, values[0] if answer == "yes" else values[1]),
        ]
        return image_question(image_list, "Is it the same digit?", answer, SCANS, form=form)
    part = 0 if form == "shape" else 1
    first = scene.pair()
    second = scene.rng.choice([p for p in PAIRS if (p[part] == first[part]) == (answer == "yes")])
    return image_question(
        [_shape(scene, *first), _shape(scene, *second)],
        f"Is it the same {form}?",
        answer,
        form=form,
    )


def motion(scene: Scene) -> SceneSample:
    """Return a question for the direction in which a shape moves over three frames."""
    answer = scene.answer(list(DIRECTIONS))
    (dx, dy), (shape, colour) = DIRECTIONS[answer], scene.pair()
    side, turn, paper, tint = (
        scene.rng.randint(26, 40),
        scene.turn(shape, colour),
        scene.paper(COLOUR_RGB[colour]),
        scene.tint(colour),
    )
    slack = SIDE - side
    path = slack * scene.rng.uniform(0.6, 1.0)  # pixels from the first frame to the last
    start, across = scene.rng.uniform(0, slack - path), scene.rng.uniform(0, slack)
    frames = []
    for i in range(FRAMES):
        along = start + path * (i if dx + dy > 0 else FRAMES - 1 - i) / (FRAMES - 1)
        corner = (round(along), round(across)) if dx else (round(across), round(along))
        frame = sheet((SIDE, SIDE), paper)
        label = f"{colour} {shape}"
        images.stamp_shape(frame, shape, corner, side, tint, turn=turn, label=label)
        frames.append(frame)
    question = scene.rng.choice(
        (f"Which way does the {shape} move?", f"Where does the {shape} go?")
    )
    return image_question(frames, question, answer)


def frames(scene: Scene) -> SceneSample:
    """Return a question how many of three images show a shape."""
    answer = scene.answer((1, 2, 3))
    shape, _ = scene.pair()
    has_shape = scene.rng.sample([True] * answer + [False] * (3 - answer), 3)
    image_list = []
    for present in has_shape:
        pair = scene.rng.choice([p for p in PAIRS if (p[0] == shape) == present])
        image_list.append(_shape(scene, *pair))
    return image_question(image_list, f"How many pictures show a {shape}?", answer)


def _cartoon(scene: Scene, events: list[str], first: bool) -> cartoons.Cartoon:
    """Draw a video of two or three events, with `events` `first` or last."""
    shape, colour = scene.pair()
    others = [c for c in COLOURS if c != colour]
    more = [e for e in (*cartoons.PLAIN, f"turns {scene.rng.choice(others)}") if e not in events]
    more = scene.rng.sample(more, scene.rng.choice((2, 3)) - len(events))
    return cartoons.draw(scene, shape, colour, events + more if first else more + events)


def event(scene: Scene) -> SceneSample:
    """Return a question for the first or the last event of a video of two or three events."""
    first, answer = scene.answer((True, False)), scene.answer(cartoons.PLAIN, every=2)
    cartoon = _cartoon(scene, [answer], first)
    question = f"What does the {cartoon.shape} do {'first' if first else 'last'}?"
    return image_question(cartoon.sampled_frames(), question, answer, events=list(cartoon.events))


def summary(scene: Scene) -> SceneSample:
    """Return a question for all events of a video in order."""
    cartoon = _cartoon(scene, [], first=True)
    return image_question(
        cartoon.sampled_frames(),
        "What happens in the video?",
        cartoon.summary(),
        events=list(cartoon.events),
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


# Compare bytes: frames of test videos are similar to training frames by design.
corpus = Corpus(
    "multi_image",
    build=sequences,
    steps=against("multi_image", ways=("same bytes",)),
    fresh=lambda work: fresh("multi_image", work, MAKERS, stamps.load(work)),
)

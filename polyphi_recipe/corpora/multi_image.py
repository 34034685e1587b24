"""Questions about several images (which one shows an object, whether two show the same, how a shape moves, how many
show it) and about frames of drawn videos (the first or last event, all events in order). At sizes of large images,
a row has up to the frames that fit `vision_4_multiframe`'s context of 64k tokens (report 2.2.2).

The multi-image and video set of `vision_4_multiframe`. In training, further questions about the same images follow,
since images take most of a conversation's tokens and an answer has one or two. For your videos see
polyphi_recipe/raw/videos.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from polyphi.data.shards import Sample
from polyphi_recipe.corpora.image_qa import draw_stamp, with_more_turns
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.synthetic import cartoons, images, stamps
from polyphi_recipe.synthetic.described_scenes import Thing, list_captions, noun_phrase, questions
from polyphi_recipe.synthetic.images import PAIRS, SCANS, SIDE
from polyphi_recipe.synthetic.scenes import (
    Scene,
    SceneSample,
    fresh,
    image_question,
    samples,
    strictest_source,
)
from polyphi_recipe.synthetic.stamps import CATEGORIES, STAMPS
from polyphi_recipe.text.lexicon import COLOUR_RGB, COLOURS, SHAPES

DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
OPPOSITES = {"left": "right", "right": "left", "up": "down", "down": "up"}
FRAMES = 3
"""Images of a sample, at least: at sizes of large images up to `MOST_COUNTED` where they are counted, or as many as fit
in a video."""
MOST_COUNTED = 12
WHAT_HAPPENS = "What happens in the video?"
TURNS = 5
"""Maximum number of further questions about the images of a training sample."""


@dataclass(frozen=True)
class View:
    """An image of a thing, and its source."""

    image: Image.Image
    thing: Thing
    source: str = "polyphi"


def _shape(scene: Scene, shape: str, colour: str) -> View:
    image = scene.sheet((SIDE, SIDE), scene.paper(COLOUR_RGB[colour]))
    side = scene.rng.randint(48, 90)
    corner = scene.corner((SIDE, SIDE), (side, side))
    scene.shape(image, shape, colour, corner, side)
    return View(image, Thing.shape(shape, colour))


def _digit(scene: Scene, value: int) -> View:
    paper, side = scene.paper(), scene.rng.randint(76, 104)
    image = scene.sheet((SIDE, SIDE), paper)
    corner = scene.corner((SIDE, SIDE), (side, side))
    images.stamp_digits(image, [scene.scan(value)], corner, side, scene.ink(paper), rng=scene.rng)
    return View(image, Thing.digit(value), SCANS)


def _stamp(scene: Scene, category: str) -> View:
    image = draw_stamp(scene, scene.stamp(category), (SIDE, SIDE))
    return View(image, Thing.noun(category), STAMPS)


def _one_each(scene: Scene, count: int) -> tuple[str, list[View]]:
    """Return `count` images of things that are called differently, and the kind of their names."""
    kinds = ("shape", "colour", "digit", "digit", "thing")
    kind = scene.rng.choice(kinds if scene.album else kinds[:3])
    if kind == "digit":
        return kind, [_digit(scene, value) for value in scene.rng.sample(range(10), count)]
    if kind == "thing":
        categories = scene.rng.sample(list(CATEGORIES), count)
        return kind, [_stamp(scene, category) for category in categories]
    part = 0 if kind == "shape" else 1
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        pair = scene.pair()
        if pair[part] not in [d[part] for d in drawn]:
            drawn.append(pair)
    return kind, [_shape(scene, *pair) for pair in drawn]


def _question(
    scene: Scene, views: Sequence[View], question: str, answer: object, **meta: object
) -> SceneSample:
    """Return a question about several images; in training, others about them follow."""
    source = strictest_source([view.source for view in views])
    first_turn = image_question([view.image for view in views], question, answer, source, **meta)
    things = [view.thing for view in views]
    turns = [
        ("Describe the pictures.", list_captions(things, "Picture")),
        *questions(things, "picture"),
    ]
    turns = [turn for turn in turns if turn[0] != question]
    return with_more_turns(scene, first_turn, turns, TURNS)


def which_picture(scene: Scene) -> SceneSample:
    """Return a question which of three images (in training also two) or more shows a thing."""
    count = scene.count(FRAMES, len(SHAPES))
    answer = scene.answer(range(1, count + 1))
    count = 2 if scene.split == "train" and answer < 3 and scene.rng.random() < 1 / 3 else count
    scene = scene.several(count)
    kind, views = _one_each(scene, count)
    thing = noun_phrase(kind, views[answer - 1].thing.names[kind])
    return _question(scene, views, f"Which picture shows {thing}?", answer, count=count)


def same(scene: Scene) -> SceneSample:
    """Return a question whether two images show the same shape, colour or digit."""
    scene = scene.several(2)
    answer = scene.answer(("yes", "no"))
    form = scene.answer(("shape", "colour", "digit"), every=2)
    if form == "digit":
        first, other = scene.rng.sample(range(10), 2)
        views = [_digit(scene, first), _digit(scene, first if answer == "yes" else other)]
    else:
        part, pair = 0 if form == "shape" else 1, scene.pair()
        pairs = [p for p in PAIRS if (p[part] == pair[part]) == (answer == "yes")]
        views = [_shape(scene, *pair), _shape(scene, *scene.rng.choice(pairs))]
    return _question(scene, views, f"Is it the same {form}?", answer, form=form)


def motion(scene: Scene) -> SceneSample:
    """Return a question for the direction in which a shape moves over three or more frames."""
    count = scene.count(FRAMES)
    scene = scene.several(count)
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
    for i in range(count):
        along = start + path * (i if dx + dy > 0 else count - 1 - i) / (count - 1)
        corner = (round(along), round(across)) if dx else (round(across), round(along))
        frame = scene.sheet((SIDE, SIDE), paper)
        label = f"{colour} {shape}"
        images.stamp_shape(frame, shape, corner, side, tint, turn=turn, label=label)
        frames.append(frame)
    question = scene.rng.choice(
        (f"Which way does the {shape} move?", f"Where does the {shape} go?")
    )
    sides = {"left": "left", "right": "right", "up": "top", "down": "bottom"}
    last, first = sides[answer], sides[OPPOSITES[answer]]
    turns: list[tuple[str, object]] = [
        (f"Where is the {shape} in the first picture?", first),
        (f"Where is the {shape} in the last picture?", last),
        (f"What colour is the {shape}?", colour),
    ]
    return with_more_turns(scene, image_question(frames, question, answer), turns, TURNS)


def frames(scene: Scene) -> SceneSample:
    """Return a question how many of three or more images show a shape."""
    count = scene.count(FRAMES, MOST_COUNTED)
    scene, answer = scene.several(count), scene.answer(range(1, count + 1))
    shape, _ = scene.pair()
    has_shape = scene.rng.sample([True] * answer + [False] * (count - answer), count)
    views = [
        _shape(scene, *scene.rng.choice([p for p in PAIRS if (p[0] == shape) == present]))
        for present in has_shape
    ]
    return _question(scene, views, f"How many pictures show a {shape}?", answer)


def _cartoon(scene: Scene, events: list[str], first: bool) -> cartoons.Cartoon:
    """Return a video of two or three events, with `events` `first` or last."""
    shape, colour = scene.pair()
    others = [c for c in COLOURS if c != colour]
    more = [e for e in (*cartoons.PLAIN, f"turns {scene.rng.choice(others)}") if e not in events]
    more = scene.rng.sample(more, scene.rng.choice((2, 3)) - len(events))
    return cartoons.draw(scene, shape, colour, events + more if first else more + events)


def _questions_of(cartoon: cartoons.Cartoon) -> list[tuple[str, object]]:
    """Return questions for the first and the last event of a video, its shape, and all events, with their answers."""
    turns: list[tuple[str, object]] = [
        (f"What does the {cartoon.shape} do {when}?", cartoon.events[at])
        for when, at in (("first", 0), ("last", -1))
        if cartoon.events[at] in cartoons.PLAIN
    ]
    return [*turns, ("Which shape do you see?", cartoon.shape), (WHAT_HAPPENS, cartoon.summary())]


def event(scene: Scene) -> SceneSample:
    """Return a question for the first or the last event of a video of two or three events."""
    first, answer = scene.answer((True, False)), scene.answer(cartoons.PLAIN, every=2)
    cartoon = _cartoon(scene, [answer], first)
    question = f"What does the {cartoon.shape} do {'first' if first else 'last'}?"
    events = list(cartoon.events)
    first_turn = image_question(cartoon.sampled_frames(), question, answer, events=events)
    turns = [turn for turn in _questions_of(cartoon) if turn[0] != question]
    return with_more_turns(scene, first_turn, turns, TURNS)


def summary(scene: Scene) -> SceneSample:
    """Return a question for all events of a video in order."""
    cartoon = _cartoon(scene, [], first=True)
    events = list(cartoon.events)
    first_turn = image_question(
        cartoon.sampled_frames(), WHAT_HAPPENS, cartoon.summary(), events=events
    )
    return with_more_turns(scene, first_turn, _questions_of(cartoon)[:-1], TURNS)


MAKERS = {
    "which_picture": (10, which_picture),
    "same": (8, same),
    "motion": (32, motion),
    "frames": (14, frames),
    "video_event": (28, event),
    "video_summary": (8, summary),
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

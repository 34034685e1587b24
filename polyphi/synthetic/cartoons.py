"""Short drawn videos: one shape, to which two or three things happen, in order.

>>> cartoon = draw(scene, "circle", "red", ("moves right", "grows", "turns blue"))
>>> cartoon.summary()
'A red circle moves right, then grows, then turns blue.'
>>> len(cartoon.frames), len(cartoon.seen())          # all of them, and one of before, between and after the events
(32, 4)

`seen` takes the frames that `processing.video.decode_video` takes of a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from polyphi.synthetic import images
from polyphi.synthetic.images import SIDE
from polyphi.synthetic.scenes import Scene
from polyphi.text.lexicon import COLOUR_RGB

MOVES: dict[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}
SIZES: dict[str, int] = {"grows": 1, "shrinks": -1}
PLAIN = (*MOVES, *SIZES)
"""Events; besides them there is "turns COLOUR"."""
EACH = 8
"""Frames of a still time; each event takes the last two of one and the first two of the next."""
SMALL, LARGE = 24, 52  # pixels of a shape's side
NEAR, FAR = 30, SIDE - 30  # where a shape's middle may be


@dataclass(frozen=True)
class State:
    """How the shape is: its middle, its side (pixels) and its colour."""

    x: float
    y: float
    side: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Cartoon:
    """All frames, of `SIDE` x `SIDE` pixels, and what they show."""

    frames: tuple[Image.Image, ...]
    shape: str
    colour: str
    events: tuple[str, ...]

    def seen(self) -> list[Image.Image]:
        """One frame more than there are events, from the middles of equal parts of the time."""
        count = len(self.events) + 1
        return [self.frames[len(self.frames) * (2 * i + 1) // (2 * count)] for i in range(count)]

    def summary(self) -> str:
        article = "An" if self.colour[0] in "aeiou" else "A"
        return f"{article} {self.colour} {self.shape} {', then '.join(self.events)}."


def draw(scene: Scene, shape: str, colour: str, events: Sequence[str]) -> Cartoon:
    """A video in which these events, all different, happen to a shape of that colour."""
    tints = {c: scene.tint(c) for c in (colour, *(e[6:] for e in events if e not in PLAIN))}
    paper, turn = scene.paper(*(COLOUR_RGB[c] for c in tints)), scene.turn(shape, colour)
    states = [_start(scene, events, tints[colour])]
    for event in events:
        states.append(_after(states[-1], event, tints))
    frames = []
    for i in range(EACH * len(states)):
        # `at` counts still times; it stays at a whole number but for an event's four frames
        still, within = divmod(i - EACH // 2, EACH)
        at = still + min(1.0, max(0.0, (within - 1.5) / 4)) if still >= 0 else 0.0
        before = min(int(at), len(states) - 1)
        after = min(before + 1, len(states) - 1)
        frames.append(
            _frame(_between(states[before], states[after], at - before), shape, paper, turn)
        )
    return Cartoon(tuple(frames), shape, colour, tuple(events))


def _start(scene: Scene, events: Sequence[str], rgb: tuple[float, float, float]) -> State:
    """Where the first move of each direction, and the first change of size, have room."""

    def first(axis: int) -> float:
        steps = [MOVES[e][axis] for e in events if e in MOVES and MOVES[e][axis]]
        return scene.rng.uniform(NEAR, FAR) if not steps else NEAR if steps[0] > 0 else FAR

    sizes = [SIZES[e] for e in events if e in SIZES]
    side = scene.rng.randint(28, 44) if not sizes else SMALL if sizes[0] > 0 else LARGE
    return State(first(0), first(1), side, rgb)


def _after(state: State, event: str, tints: dict[str, tuple[int, int, int]]) -> State:
    if event in MOVES:
        dx, dy = MOVES[event]
        if dx:
            return replace(state, x=FAR if dx > 0 else NEAR)
        return replace(state, y=FAR if dy > 0 else NEAR)
    if event in SIZES:
        return replace(state, side=LARGE if SIZES[event] > 0 else SMALL)
    return replace(state, rgb=tints[event.removeprefix("turns ")])


def _between(a: State, b: State, share: float) -> State:
    def mix(u: float, v: float) -> float:
        return u + (v - u) * share

    red, green, blue = (mix(u, v) for u, v in zip(a.rgb, b.rgb, strict=True))
    return State(mix(a.x, b.x), mix(a.y, b.y), mix(a.side, b.side), (red, green, blue))


def _frame(state: State, shape: str, paper: images.RGB, turn: int) -> Image.Image:
    picture, side = images.sheet((SIDE, SIDE), paper), round(state.side)
    corner = (round(state.x - side / 2), round(state.y - side / 2))
    red, green, blue = (round(v) for v in state.rgb)
    images.stamp_shape(picture, shape, corner, side, (red, green, blue), turn=turn)
    return picture

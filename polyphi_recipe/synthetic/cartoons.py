"""Short drawn videos: one shape and two or three events in order.

>>> cartoon = draw(scene, "circle", "red", ("moves right", "grows", "turns blue"))
>>> cartoon.summary()
'A red circle moves right, then grows, then turns blue.'
>>> len(cartoon.frames), len(cartoon.sampled_frames())    # all frames; one before, between and after the events
(32, 4)

`sampled_frames` selects the same frames as `processing.video.decode_video` does in a file. At sizes of large images a
cartoon has more of them, up to what fits a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image

from polyphi_recipe.synthetic import images
from polyphi_recipe.synthetic.described_scenes import with_article
from polyphi_recipe.synthetic.images import SIDE
from polyphi_recipe.synthetic.scenes import Scene
from polyphi_recipe.text.lexicon import COLOUR_RGB

MOVES: dict[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}
SIZES: dict[str, int] = {"grows": 1, "shrinks": -1}
PLAIN = (*MOVES, *SIZES)
"""Events without a colour; the other events are "turns COLOUR"."""
FRAMES_PER_STATE = 8
"""Frames per state; each event takes the last two of one state and the first two of the next."""
SMALL, LARGE = 24, 52  # pixels of a shape's side
NEAR, FAR = 30, SIDE - 30  # range of a shape's centre, pixels


@dataclass(frozen=True)
class CartoonState:
    """Centre, side (both in pixels) and colour of the shape."""

    x: float
    y: float
    side: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Cartoon:
    """A video of `SIDE` x `SIDE` units: the shape, its first colour, its events, the states before, between and after
    them, the number of sampled frames, and what frames are drawn with."""

    scene: Scene
    shape: str
    colour: str
    events: tuple[str, ...]
    states: tuple[CartoonState, ...]
    samples: int
    paper: images.RGB
    turn: int

    @cached_property
    def frames(self) -> tuple[Image.Image, ...]:
        """The frames of the video."""
        return tuple(self._frame(i) for i in range(FRAMES_PER_STATE * len(self.states)))

    def sampled_frames(self) -> list[Image.Image]:
        """Return the sampled frames, each from the middle of an equal part of the video: one more than there are
        events, or more. Those beyond the number of frames are drawn between frames."""
        count, total = self.samples, FRAMES_PER_STATE * len(self.states)
        times = [total * (2 * i + 1) / (2 * count) for i in range(count)]
        return [self._frame(int(time) if count <= total else time) for time in times]

    def _frame(self, time: float) -> Image.Image:
        """Return the frame at a time in frames."""
        # `at` is a position between states: a whole number except during the four frames of an event.
        index, offset = divmod(time - FRAMES_PER_STATE // 2, FRAMES_PER_STATE)
        at = index + min(1.0, max(0.0, (offset - 1.5) / 4)) if index >= 0 else 0.0
        before = min(int(at), len(self.states) - 1)
        after = min(before + 1, len(self.states) - 1)
        state = _between(self.states[before], self.states[after], at - before)
        image, side = self.scene.sheet((SIDE, SIDE), self.paper), round(state.side)
        corner = (round(state.x - side / 2), round(state.y - side / 2))
        red, green, blue = (round(v) for v in state.rgb)
        rgb = red, green, blue
        images.stamp_shape(image, self.shape, corner, side, rgb, turn=self.turn)
        return image

    def summary(self) -> str:
        text = with_article(f"{self.colour} {self.shape} {', then '.join(self.events)}.")
        return text[0].upper() + text[1:]


def draw(scene: Scene, shape: str, colour: str, events: Sequence[str]) -> Cartoon:
    """Return a video of a shape of this colour with these events, all different."""
    tints = {c: scene.tint(c) for c in (colour, *(e[6:] for e in events if e not in PLAIN))}
    paper, turn = scene.paper(*(COLOUR_RGB[c] for c in tints)), scene.turn(shape, colour)
    states = [_start(scene, events, tints[colour])]
    for event in events:
        states.append(_after(states[-1], event, tints))
    samples = scene.count(len(states))
    scene = scene.several(samples)
    return Cartoon(scene, shape, colour, tuple(events), tuple(states), samples, paper, turn)


def _start(scene: Scene, events: Sequence[str], rgb: tuple[float, float, float]) -> CartoonState:
    """Return a first state that leaves space for the first move on each axis and the first change of size."""

    def first(axis: int) -> float:
        steps = [MOVES[e][axis] for e in events if e in MOVES and MOVES[e][axis]]
        return scene.rng.uniform(NEAR, FAR) if not steps else NEAR if steps[0] > 0 else FAR

    sizes = [SIZES[e] for e in events if e in SIZES]
    side = scene.rng.randint(28, 44) if not sizes else SMALL if sizes[0] > 0 else LARGE
    return CartoonState(first(0), first(1), side, rgb)


def _after(state: CartoonState, event: str, tints: dict[str, tuple[int, int, int]]) -> CartoonState:
    if event in MOVES:
        dx, dy = MOVES[event]
        if dx:
            return replace(state, x=FAR if dx > 0 else NEAR)
        return replace(state, y=FAR if dy > 0 else NEAR)
    if event in SIZES:
        return replace(state, side=LARGE if SIZES[event] > 0 else SMALL)
    return replace(state, rgb=tints[event.removeprefix("turns ")])


def _between(a: CartoonState, b: CartoonState, share: float) -> CartoonState:
    def mix(u: float, v: float) -> float:
        return u + (v - u) * share

    red, green, blue = (mix(u, v) for u, v in zip(a.rgb, b.rgb, strict=True))
    return CartoonState(mix(a.x, b.x), mix(a.y, b.y), mix(a.side, b.side), (red, green, blue))

"""Questions about images, several images, frames of videos and recordings that a teacher sees or hears, and boxes of
what is in an image (report 3.2, 3.4.2).

    IMAGE_QUESTIONS     an image -> questions that are answered by looking at it
    PICTURE_QUESTIONS   several images -> questions that compare them
    FRAME_QUESTIONS     frames of a video in their order -> questions about what happens
    HEARD_QUESTIONS     a recording -> questions for a listener
    GROUNDING           an image -> phrases with the boxes of what they name

Nobody knows the right answers, so that the teacher is asked again without them: about several images in reversed order,
so that their order can't be the reason; about frames also with the first one alone, with which it must not agree; for
boxes by the phrase alone. Boxes that the generator of an image recorded (`meta["named"]`) must agree, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image
from polyphi.types.sampling import SamplingParams
from polyphi_recipe.syntheses.prompts import PROMPTS
from polyphi_recipe.syntheses.syntheses import (
    JSON_TEXT,
    NUMBER,
    PAIRS,
    about_media,
    json_list,
    json_object,
    non_empty,
    same_answer,
    words,
)
from polyphi_recipe.syntheses.synthesize import Check, Json, Synthesis

MOST_QUESTIONS = 3
LONGEST_ANSWER = 12
"""Maximum number of words of an answer: longer answers of two draws hardly ever agree."""
OVERLAP = 0.5
"""The least overlap (F1) of the words of two answers that are the same."""
_SAMPLING = SamplingParams(max_tokens=1024, temperature=0.3, top_p=0.95)
_AGAIN = PROMPTS["question_check"]


def agreeing(answer: str, other: str) -> bool:
    """Return whether two short answers are the same: their numbers, and at least half of their words."""
    if same_answer(answer, other):
        return True
    if sorted(NUMBER.findall(answer)) != sorted(NUMBER.findall(other)):
        return False
    a, b = set(words(answer)), set(words(other))
    if (a | b) & {"yes", "no"} and (a & {"yes", "no"}) != (b & {"yes", "no"}):
        return False
    return 2 * len(a & b) >= OVERLAP * (len(a) + len(b)) > 0


def _short(sample: Sample, item: Json) -> str:
    n = len(words(item["answer"]))
    return f"an answer of {n} words, at most {LONGEST_ANSWER}" if n > LONGEST_ANSWER else ""


def _same(sample: Sample, item: Json, reply: str) -> tuple[str, dict[str, Json]]:
    same = agreeing(item["answer"], reply)
    return "" if same else f"a second answer differs: {reply:.60}", {"second_answer": reply[:200]}


def _other(sample: Sample, item: Json, reply: str) -> tuple[str, dict[str, Json]]:
    same = agreeing(item["answer"], reply)
    return "the first frame alone is enough" if same else "", {"answer_to_first_frame": reply[:200]}


def _question_synthesis(
    name: str,
    type_: type[Image] | type[Audio],
    checks: Sequence[Check],
    number: Callable[[int], bool],
) -> Synthesis:
    """Return a synthesis of questions about media of this type, where `number` accepts how many a sample has."""

    def read(sample: Sample) -> dict[str, int] | None:
        n = len(media(sample.messages, type_))
        return {"number": n} if number(n) else None

    return Synthesis(
        name,
        PROMPTS[name],
        read=read,
        shows=type_,
        schema=json_object(pairs=PAIRS),
        items=lambda answer: answer["pairs"],
        verify=non_empty(_short),
        make=about_media(type_),
        checks=tuple(checks),
        most_checked=MOST_QUESTIONS,
        sampling=_SAMPLING,
    )


def _all(type_: type[Image] | type[Audio]) -> Callable[[Sample, Json], list[Image | Audio]]:
    return lambda sample, item: media(sample.messages, type_)


ASKED_AGAIN = Check(_AGAIN, _same, shows=_all(Image))
"""The question again, without the first answer."""
IMAGE_QUESTIONS = _question_synthesis(
    "image_questions",
    Image,
    [ASKED_AGAIN],
    lambda n: n == 1,
)
PICTURE_QUESTIONS = _question_synthesis(
    "picture_questions",
    Image,
    [Check(_AGAIN, _same, shows=lambda sample, _: media(sample.messages, Image)[::-1])],
    lambda n: n > 1,
)
FRAME_QUESTIONS = _question_synthesis(
    "frame_questions",
    Image,
    [
        ASKED_AGAIN,
        Check(_AGAIN, _other, shows=lambda sample, _: media(sample.messages, Image)[:1]),
    ],
    lambda n: n > 1,
)
HEARD_QUESTIONS = _question_synthesis(
    "heard_questions",
    Audio,
    [Check(_AGAIN, _same, shows=_all(Audio))],
    lambda n: n == 1,
)

# Boxes --------------------------------------------------------------------------------------------------------------

UNITS = 1000
"""[ours] Coordinates are thousandths of the image's width and height, from the upper left."""
SMALLEST_BOX, LARGEST_BOX = 0.001, 0.95
"""Minimum and maximum area of a box, as shares of the image's area."""
LEAST_IOU = 0.5
"""The least intersection over union of two boxes of the same thing, as in PASCAL VOC."""
Box = Sequence[float]
"""A box: left, top, right, bottom."""


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, 0 to 1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    total = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - both
    return both / total if total > 0 else 0.0


def _box_mistake(box: Box) -> str:
    if len(box) != 4:
        return f"a box of {len(box)} numbers"
    left, top, right, bottom = box
    if not (0 <= left < right <= UNITS and 0 <= top < bottom <= UNITS):
        return "a box outside the picture, or without area"
    share = (right - left) * (bottom - top) / UNITS**2
    return "" if SMALLEST_BOX <= share <= LARGEST_BOX else f"a box of {share:.2%} of the picture"


def _plain(phrase: str) -> str:
    return " ".join(word for word in words(phrase) if word not in ("a", "an", "the"))


def _known_boxes(sample: Sample, phrase: str) -> list[Box]:
    """Return the boxes that the generator of the image recorded for things with this name."""
    named = next(iter(sample.meta.get("named", ())), ())
    boxes = [(thing[0], thing[1:5]) for thing in named if len(thing) >= 5]
    return [[UNITS * c for c in box] for name, box in boxes if _plain(name) == _plain(phrase)]


def _located(sample: Sample, item: Json) -> str:
    if not item["phrase"].strip():
        return "an empty phrase"
    if mistake := _box_mistake(item["box"]):
        return mistake
    known = _known_boxes(sample, item["phrase"])
    if known and max(iou(item["box"], box) for box in known) < LEAST_IOU:
        return "another box than the one on record"
    return ""


def _same_box(sample: Sample, item: Json, reply: Json) -> tuple[str, dict[str, Json]]:
    if mistake := _box_mistake(reply["box"]):
        return f"the second time {mistake}", {}
    overlap = round(iou(item["box"], reply["box"]), 3)
    reason = "" if overlap >= LEAST_IOU else f"the second box is another one: IoU {overlap:g}"
    return reason, {"iou": overlap}


_BOX = json_list({"type": "integer"})
_COORDINATES = "[left, top, right, bottom] in thousandths of the picture's width and height"


def _box_question(sample: Sample, item: Json) -> Sample:
    question = f"Give the box of this as {_COORDINATES}: {item['phrase'].strip()}"
    parts = media(sample.messages, Image)
    messages = (Message.user(*parts, question), Message.assistant(str(list(item["box"]))))
    meta = {k: v for k, v in sample.meta.items() if k in ("language", "named")}
    return replace(sample, messages=messages, meta={"task": "box", **meta})


GROUNDING = Synthesis(
    "grounding",
    PROMPTS["grounding"],
    read=lambda sample: {} if len(media(sample.messages, Image)) == 1 else None,
    shows=Image,
    schema=json_object(things=json_list(json_object(phrase=JSON_TEXT, box=_BOX))),
    items=lambda answer: answer["things"],
    verify=_located,
    make=_box_question,
    checks=(
        Check(
            PROMPTS["grounding_check"],
            _same_box,
            schema=json_object(box=_BOX),
            shows=_all(Image),
        ),
    ),
    most_checked=MOST_QUESTIONS,
    sampling=_SAMPLING,
)

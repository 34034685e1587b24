"""Prompts with images, and the normalization of short answers."""

import pytest

from polyphi.types.parts import Image, Text
from polyphi_eval import vqa


def test_images_come_first_and_options_have_letters() -> None:
    image = Image(b"x")
    message = vqa.ask(vqa.with_options("Which?", ["red", "blue"]), [image], vqa.CHOOSE)
    assert message.parts == (image, Text(f"Which?\nA. red\nB. blue\n{vqa.CHOOSE}"))


def test_images_of_mmmu_are_interleaved() -> None:
    one, two = Image(b"1"), Image(b"2")
    message = vqa.interleaved(
        "Is <image 2> as <image 1>, <image 2> or <image 7>?", {1: one, 2: two}
    )
    assert message.parts == (
        *(Text("Is "), two, Text(" as "), one, Text(", "), two),
        *(Text(" or "), Text("<image 7>"), Text("?")),
    )


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The Stop-sign!", "stop sign"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("it's", "it 's"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("3.5 m.", "3.5 m"),
        ("1,000", "1000"),
        ("a/b", "b"),  # the article goes once the slash is a space
        ("(red) car", "red car"),
        ("no\nentry", "no entry"),
    ],
)
def test_evalai_normalization(text: str, left: str) -> None:
    assert vqa.evalai_normalize(text) == left

"""Messages and their parts: options of images and videos, and errors of one line."""

from pathlib import Path
from typing import Any

import pytest

from polyphi.types.messages import Message, Tokens
from polyphi.types.parts import Audio, Image, Video
from polyphi.types.routing import adapter_for


def asking(kind: str, **beside: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": kind, kind: {"url": "a.bin", **beside}}]}


def test_details_of_openai_parts_are_kept() -> None:
    root = Path("/photos")
    assert Message.parse(asking("image_url", detail="low"), root).parts == (
        Image(root / "a.bin", "low"),
    )
    assert Message.parse(asking("image_url", max_crops=4)).parts == (
        Image(Path("a.bin"), max_crops=4),
    )
    plain = {"role": "user", "content": [{"type": "image_url", "image_url": "a.bin"}]}
    assert Message.parse(plain).parts == (Image(Path("a.bin")),)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, None),
        ({"detail": "high"}, None),
        ({"detail": "low"}, 1),
        ({"max_crops": 9}, 9),
        ({"detail": "low", "max_crops": 9}, 9),
    ],
)
def test_what_a_picture_asks_for(options: dict[str, Any], most: int | None) -> None:
    assert Image("a.png", **options).most_crops == most


@pytest.mark.parametrize("kind", ["image_url", "video_url"])
@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({"detail": "medium"}, "found 'medium'"),
        ({"detail": ["low"]}, "auto, low or high"),
        ({"max_crops": 0}, "max_crops.*found 0"),
        ({"max_crops": "4"}, "max_crops.*found '4'"),
        ({"max_crops": True}, "max_crops.*found True"),
    ],
)
def test_bad_details_are_one_line(kind: str, beside: dict[str, Any], says: str) -> None:
    # the second kind of error where types are checked
    with pytest.raises((ValueError, TypeError), match=f"{says}|Type-check") as refused:
        Message.parse(asking(kind, **beside))
    assert "Type-check" in str(refused.value) or "\n" not in str(refused.value)


@pytest.mark.parametrize("frames", [0, -1, 2.5, None, True])
def test_a_video_has_at_least_one_frame(frames: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"frames: |Type-check"):
        Message.parse(asking("video_url", frames=frames))


def test_videos_have_a_number_of_frames() -> None:
    message = asking("video_url", frames=8, detail="low")
    assert Message.parse(message).parts == (Video(Path("a.bin"), 8, "low"),)
    assert Message.parse(asking("video_url")).parts == (Video(Path("a.bin")),)


def test_a_video_calls_for_the_vision_adapter() -> None:
    assert adapter_for([Message.user(Video("a.mp4"), "What?")]) == "vision"
    assert adapter_for([Message.user(Audio("a.wav"), Video("a.mp4"))]) == "vision"


def test_tokens_add_up() -> None:
    assert Tokens(3, {"image": 20, "audio": 100}).total == 123


def test_a_text_alone_is_one_part() -> None:
    assert Message("user", "how many") == Message.user("how many")  # type: ignore[arg-type]

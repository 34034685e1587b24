"""Texts read aloud: the same clip every time, so that what was asked is found again."""

from polyphi.chat import Audio, Image, Message, Text
from polyphi.eval.spoken import Spoken, heard, read_out, spoken
from polyphi.voice import Booth, Voice


def test_a_clip_is_the_same_whatever_was_said_before() -> None:
    first = spoken("How many legs has a spider?")
    spoken("おはよう", "ja", Voice(language="ja", variant="f2"))
    spoken("Something else.")
    assert spoken("How many legs has a spider?") == first
    assert spoken("How many legs has a fly?") != first


def test_a_closed_booth_opens_again() -> None:
    booth = Booth()
    first, _ = booth.speak("hello", Voice())
    booth.close()
    again, _ = booth.speak("hello", Voice())
    booth.close()
    assert (first == again).all()


def test_models_hear_and_judges_read() -> None:
    picture = Image(b"picture")
    talk = [
        Message.system("Be kind."),
        Message.user(picture, Spoken(b"clip", "Hello"), Text("!")),
        Message.assistant("Hi."),
    ]
    assert heard(talk)[1] == Message.user(picture, Audio(b"clip"), Text("!"))
    assert type(heard(talk)[1].parts[1]) is Audio  # what a processor counts
    assert read_out(talk)[1] == Message.user(picture, Text("Hello"), Text("!"))
    assert heard(talk)[::2] == read_out(talk)[::2] == talk[::2]

"""The chat in a terminal: all commands, one-line errors, and Ctrl-C."""

import io
import json
import os
import re
import select
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as PIL
from rich.console import Console

import polyphi
from polyphi.checkpoints.write import save_checkpoint
from polyphi.cli.printable import PrintableConsole
from polyphi.cli.terminal import Terminal, as_openai, once
from polyphi.media.media import CAPS
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.completion import Completion, Delta
from polyphi.types.messages import Message, Tokens
from polyphi.types.parts import Audio, Image, Text, Video
from polyphi.types.sampling import SamplingParams
from tests.fixtures import forked, images
from tests.fixtures.engines import fitted
from tests.fixtures.items import add_motion, csv

CONTEXT = 1000


class Scripted:
    """A model with scripted answers; an exception among their deltas is raised."""

    config = SimpleNamespace(
        vision=True, audio=True, adapters={"vision": 1, "speech": 1}, further={}
    )
    context = CONTEXT
    processor = SimpleNamespace(caps=CAPS)
    reasoning = False
    tokenizer = SimpleNamespace(encode=str.split)

    def __init__(self, *answers: Any) -> None:
        self.answers = iter(answers)
        self.requests: list[tuple[list[Message], SamplingParams, str | None]] = []
        self.closed = 0

    def count(self, messages: Sequence[Message]) -> Tokens:
        parts = [p for m in messages for p in m.parts]
        return Tokens(
            sum(len(p.text.split()) for p in parts if isinstance(p, Text)),
            {
                "image": sum(
                    100 if p.most_crops is None else 10 for p in parts if isinstance(p, Image)
                ),
                "audio": sum(7 for p in parts if isinstance(p, Audio)),
            },
        )

    def stream(
        self, messages: Sequence[Message], *, sampling: SamplingParams, adapter: str | None
    ) -> Iterator[Delta]:
        self.requests.append((list(messages), sampling, adapter))
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return self._pieces([answer] if isinstance(answer, str) else answer)

    def _pieces(self, pieces: Sequence[Any]) -> Iterator[Delta]:
        try:
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield Delta(piece)
            whole = "".join(pieces)
            yield Delta("", "stop", Completion(whole, tuple(range(len(whole.split())))))
        finally:
            self.closed += 1


def talk(phi: Any, *lines: Any, screen: bool = False, **options: Any) -> tuple[Terminal, str]:
    """The terminal after these input lines (exceptions are raised by the input), and all output."""
    script, output = iter(lines), io.StringIO()

    def read(_: str) -> str:
        line = next(script, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    console = PrintableConsole(file=output, width=200, force_terminal=screen)
    terminal = Terminal(phi, console=console, read=read, **options)
    terminal.run()
    assert "Traceback" not in output.getvalue()
    return terminal, output.getvalue()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    PIL.fromarray(noise).save(tmp_path / "my cat.png")
    return tmp_path / "my cat.png"


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000, np.float32), 16000)
    return tmp_path / "a.wav"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    (tmp_path / "walk.mp4").write_bytes(images.film(24))
    return tmp_path / "walk.mp4"


def test_a_conversation_is_kept_and_told() -> None:
    phi = Scripted(["Hello ", "there"], "Fine")
    terminal, output = talk(phi, "Hi", "", "  How are you?  ")
    expected = [Message.user("Hi"), Message.assistant("Hello there"), Message.user("How are you?")]
    assert phi.requests[1][0] == expected and terminal.messages == [
        *expected,
        Message.assistant("Fine"),
    ]
    assert "Hello there\n" in output and "no adapter · 1 prompt token · 2 tokens in" in output
    assert "6 prompt tokens" in output and "Fine\n" in output


def test_reasoning_is_printed_and_left_out_of_the_history() -> None:
    phi = Scripted(["<thi", "nk>one", " two</think>\n", "three"], "four")
    phi.reasoning = True
    terminal, output = talk(phi, "hi", "and?")
    assert "one two\n\nthree" in output and "think>" not in output
    assert [m.text for m in terminal.messages] == ["hi", "three", "and?", "four"]
    plain, output = talk(Scripted("<think>one</think>two"), "hi")
    assert plain.messages[1].text == "<think>one</think>two"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""one', "", "two", 'three"""'], "one\n\ntwo\nthree"),
        (['"""/undo', '"""'], "/undo"),
        ([" /not a command"], "/not a command"),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str) -> None:
    terminal, _ = talk(Scripted("ok"), *lines)
    assert terminal.messages[0] == Message.user(message)


def test_media_go_with_the_next_message(photo: Path, speech: Path, film: Path) -> None:
    phi = Scripted("a", "b", "c")
    terminal, output = talk(
        phi,
        f"/image {photo}",
        f"/image '{photo}' low",
        f'/image "{photo}" 4',
        f"/audio {speech}",
        "What?",
        f"/audio {speech}",
        "",
        f"/video {film} 3 low",
        "And?",
    )
    first, second, third = (m for m in terminal.messages if m.role == "user")
    assert first.parts == (
        Image(photo),
        Image(photo, "low"),
        Image(photo, max_crops=4),
        Audio(speech),
        Text("What?"),
    )
    assert second.parts == (Audio(speech),)
    assert third.parts == (Video(film, 3, "low"), Text("And?"))
    frames = phi.requests[2][0][-1].parts[:-1]  # the model is sent what it can see
    assert len(frames) == 3 and all(isinstance(f, Image) and f.detail == "low" for f in frames)
    assert "vision adapter · 128 prompt tokens (120 image, 7 audio)" in output
    assert "walk.mp4: 3 frames, 30 tokens, with your next message" in output


def test_a_video_is_decoded_once(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyphi.processing import video

    decoded, decode = [], video.video_frames
    monkeypatch.setattr(video, "video_frames", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    talk(Scripted("a", "b", "c"), f"/video {film} 2", "What?", "/count", "Why?", "/retry")
    assert len(decoded) == 2  # when it is attached, and in its message


def test_undo_retry_clear_and_system(photo: Path) -> None:
    phi = Scripted("one", "two", "two again", "three")
    terminal, output = talk(
        phi, "/system Be brief.", "A", "B", "/retry", f"/image {photo}", "/undo", "/undo", "C"
    )
    system = Message.system("Be brief.")
    assert phi.requests[2][0] == phi.requests[1][0] and phi.requests[2][0][0] == system
    assert phi.requests[2][1].seed == phi.requests[1][1].seed + 1
    assert [m.text for m in terminal.messages] == ["Be brief.", "A", "one", "C", "three"]
    assert "attachment my cat.png" in output and "removed: 'B'" in output
    terminal.command("clear", "")
    assert terminal.messages == [system]
    terminal.command("system", "")
    assert terminal.messages == []


def test_settings_reach_the_model() -> None:
    phi = Scripted("a", "b")
    _, output = talk(
        phi,
        "/set temperature 0.7",
        "/set max_tokens=50",
        "/set adapter speech",
        "/set",
        "A",
        "/set adapter none",
        "B",
    )
    assert phi.requests[0][1] == SamplingParams(max_tokens=50, temperature=0.7)
    assert [adapter for _, _, adapter in phi.requests] == ["speech", None]
    assert "max_tokens 50, temperature 0.7" in output and "speech adapter" in output


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/nothing", "/nothing"),
        ("/image", "path of a file"),
        ("/image none.png", "none.png: expected a file, found nothing there"),
        ("/image 'none", "'none"),
        ("/image a.wav", "found text"),
        ("/audio a.wav loud", "'loud'"),
        ("/video a.wav", "expected an MP4"),
        ("/image a.wav 0", "found 0"),
        ("/set temperature warm", "temperature: expected a number, found 'warm'"),
        ("/set temperature -1", "temperature"),
        ("/set colour red", "'colour'"),
        ("/set adapter medical", "auto, none, vision, speech"),
        ("/save", "needs the name of a file"),
        ("/save a.wav", "no .json"),
        ("/load none.json", "none.json: No such file"),
        ("/load a.wav", "list of OpenAI's messages"),
        ("/undo", "no message"),
        ("/retry", "no answer yet"),
        ("/count", "no message yet"),
    ],
)
def test_a_mistake_is_one_line_and_the_chat_goes_on(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_text("not a clip")
    terminal, output = talk(Scripted("still here"), line, "Hi")
    message = output.splitlines()[1]
    assert says in message and output.splitlines()[2] == "still here"
    assert len(terminal.messages) == 2 and not terminal.attachments
    assert (tmp_path / "a.wav").read_text() == "not a clip"


def test_a_model_without_eyes_says_so(photo: Path) -> None:
    phi = Scripted()
    phi.config = SimpleNamespace(vision=None, audio=None, adapters={}, further={})
    _, output = talk(phi, f"/image {photo}")
    assert "this model has no encoder for /image" in output


def test_a_message_that_fails_is_taken_back(photo: Path) -> None:
    for wrong in (ValueError("too\nlong"), RuntimeError("out of memory"), OSError("gone")):
        phi = Scripted(wrong, "better")
        terminal, output = talk(phi, f"/image {photo}", "What?", "Again?")
        assert [m.text for m in terminal.messages] == ["Again?", "better"]
        assert terminal.messages[0].parts[0] == Image(photo)  # what was attached has waited
        assert " ".join(str(wrong).split()) in output.splitlines()


def test_answers_fit_into_the_context() -> None:
    phi = Scripted("a")
    long = "word " * (CONTEXT - 10)
    terminal, output = talk(phi, long, "word " * 20)
    assert phi.requests[0][1].max_tokens == 10
    assert len(phi.requests) == 1 and len(terminal.messages) == 2
    assert "1,011 tokens" in output and "1,000" in output


def test_ctrl_c_keeps_what_was_said() -> None:
    phi = Scripted(["Once upon", " a time", KeyboardInterrupt()], "Sorry.")
    terminal, output = talk(phi, "Tell me", KeyboardInterrupt(), "Stop")
    assert [m.text for m in terminal.messages] == ["Tell me", "Once upon a time", "Stop", "Sorry."]
    assert "about 4 tokens" in output and "· stopped" in output and phi.closed == 2


def test_ctrl_c_outside_the_model_stops_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C closes the request at any time: here while a delta is being printed."""
    from polyphi.cli import terminal as module

    write = module.write_data

    def hit(console: Console, text: str) -> None:
        write(console, text)
        if text == "b":
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_data", hit)
    phi = Scripted(["a", "b", "c"])
    terminal, _ = talk(phi, "Hi")
    assert phi.closed == 1 and terminal.messages[-1] == Message.assistant("ab")


def test_ctrl_c_before_the_answer_takes_the_message_back(photo: Path) -> None:
    phi = Scripted([KeyboardInterrupt()], "Yes")
    terminal, output = talk(phi, f"/image {photo}", "What?", "Now?")
    assert [m.text for m in terminal.messages] == ["Now?", "Yes"]
    assert terminal.messages[0].parts[0] == Image(photo)
    assert "stopped before the answer began" in output
    phi = Scripted("Yes", [KeyboardInterrupt()])
    terminal, _ = talk(phi, "Now?", "/retry")
    assert [m.text for m in terminal.messages] == ["Now?", "Yes"]  # the old answer stays


def test_what_a_model_says_moves_no_cursor() -> None:
    """Thoughts, answers and the names of files."""
    text = "a\x1b[2Jb\x07\x9b1A\tc\nd [bold]:cat: \U0001f468\u200d\U0001f33e"
    thinking = Scripted(f"<think>\x1b[3J</think>{text}")
    thinking.reasoning = True
    visible = r"a\x1b[2Jb\x07\x9b1A" + "\tc\nd [bold]:cat: \U0001f468\u200d\U0001f33e\n"
    _, output = talk(thinking, "Hi", "/image \x1b[4J.png", screen=True)
    assert visible in output and r"\x1b[3J" in output and r"\x1b[4J.png" in output
    assert not re.search(r"\x1b\[[234]J", output)
    _, output = talk(Scripted(text), "Hi")
    assert f"{text}\n" in output  # a file gets it as it is


def test_a_saved_conversation_comes_back(photo: Path, speech: Path, film: Path) -> None:
    phi = Scripted("one", "two")
    file = photo.parent / "talk.json"
    before, _ = talk(
        phi,
        "/system Be brief.",
        f"/image '{photo}' low",
        f"/image '{photo}' 3",
        f"/audio {speech}",
        "What?",
        f"/video {film} 2 high",
        "And?",
        f"/save {file}",
    )
    written = json.loads(file.read_text())
    assert [m["role"] for m in written] == [m.role for m in before.messages]
    photo.unlink()  # pictures and clips stand in the file
    after, output = talk(Scripted("three"), f"/load {file}", "Go on")
    assert "5 messages" in output
    for old, new in zip(before.messages, after.messages, strict=False):
        assert [type(p) for p in new.parts] == [type(p) for p in old.parts]
        assert new.text == old.text and new.role == old.role
    low, few, clip, _ = after.messages[1].parts
    assert low.detail == "low" and few.max_crops == 3 and clip.source == speech.read_bytes()
    assert after.messages[3].parts[0] == Video(film.resolve(), 2, "high")
    file.write_text(json.dumps({"messages": written[:2]}))
    after, output = talk(Scripted("answer"), f"/load {file}", "/retry")
    assert "/retry answers the last one" in output
    assert after.messages[-1] == Message.assistant("answer")


def test_saved_tools_and_bytes_are_read_back() -> None:
    messages = [
        Message.system("Be brief.", tools="[1]"),
        Message.user(Video(b"bytes", 4, "low", 2), "x"),
        Message.assistant(""),
    ]
    assert [Message.parse(as_openai(m)) for m in messages] == messages


def test_one_answer() -> None:
    output = io.StringIO()
    phi = Scripted(["a", "b"])
    once(phi.stream([], sampling=SamplingParams(), adapter=None), Console(file=output))
    assert output.getvalue() == "ab\n" and phi.closed == 1


# ---- the real thing


@pytest.fixture
def folder(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """A model that never generates an end token."""
    tokenizer = Tokenizer.train(["the quick brown fox jumps"], vocab_size=384)
    config = fitted(tiny_config, tokenizer, max_position_embeddings=50_000)
    model, generator = PhiModel(config), torch.Generator().manual_seed(0)
    model.initialise(seed=0)
    with torch.no_grad():
        table = model.decoder.embed_tokens.weight
        table.copy_(0.5 * torch.randn(table.shape, generator=generator))
        unseen = [i for i in range(len(table)) if not tokenizer.decode([i]).isascii()]
        table[[*unseen, *tokenizer.controls.values()]] *= 0.01
    save_checkpoint(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_real_model(folder: Path, photo: Path, speech: Path) -> None:
    phi = polyphi.load(folder)
    terminal, output = talk(
        phi,
        f"/image '{photo}' low",
        f"/audio {speech}",
        "What?",
        "/set temperature 1",
        "Why?",
        sampling=SamplingParams(max_tokens=8),
    )
    first = phi.generate(terminal.messages[:1], sampling=SamplingParams(max_tokens=8))
    assert terminal.messages[1] == Message.assistant(first.text) and len(terminal.messages) == 4
    status = (
        f"vision adapter · {first.prompt_tokens} prompt tokens ({first.image_tokens} image, "
        f"{first.audio_tokens} audio) · 8 tokens in "
    )
    assert status in output and "cut at max_tokens 8" in output


def test_a_part_of_a_users_modality(folder: Path, tmp_path: Path) -> None:
    phi = polyphi.load(folder)
    add_motion(phi.model, phi.processor)
    (tmp_path / "walk.csv").write_bytes(csv(20))
    _, output = talk(
        phi,
        "/part motion walk.csv",
        f"/part pictures {tmp_path / 'walk.csv'}",
        f"/part motion {tmp_path / 'walk.csv'}",
        "/count",
        "What is it?",
        sampling=SamplingParams(max_tokens=8),
    )
    assert "walk.csv: expected a file, found nothing there" in output
    assert "expected /part MODALITY PATH with a modality of this model (motion)" in output
    assert "walk.csv: 3 tokens, with your next message" in output and "3 motion" in output
    assert "motion adapter" in output and "(3 motion)" in output


IN_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
terminal = os.open(sys.argv.pop(1), os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
from polyphi.cli import main
main()
"""


def test_ctrl_c_in_a_real_terminal(folder: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    words = ("chat", str(folder), "--max-tokens", "45000")
    environment = {"TERM": "dumb", "COLUMNS": "200"}
    process = forked.start(IN_A_TERMINAL, os.ttyname(theirs), *words, environment=environment)
    output = ""

    def until(text: str) -> str:
        """What is shown from here to a text."""
        nonlocal output
        deadline = time.monotonic() + 300
        while text not in output:
            assert time.monotonic() < deadline, f"no {text!r} in {output!r}"
            if select.select([ours], [], [], 1)[0]:
                output += os.read(ours, 4096).decode(errors="replace")
        before, _, output = output.partition(text)
        return before

    try:
        assert "tokens of context" in until("> ")
        os.write(ours, b"Tell me everything\n")
        until("everything")
        until("\n")
        while len(output) < 30:  # the answer is under way
            output += os.read(ours, 4096).decode(errors="replace")
        os.kill(process.pid, signal.SIGINT)
        assert "about " in until("stopped")
        until("> ")
        os.write(ours, b"/count\n")
        count = until("of 50,000 tokens")
        assert int(count.split()[-1].replace(",", "")) < 45_000
        until("> ")
        os.write(ours, b"\x04")
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        os.close(theirs)
        os.close(ours)


def test_an_attachment_may_have_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    PIL.new("RGB", (30, 20)).save(file, "PNG")
    monkeypatch.setattr("polyphi.cli.terminal.source", lambda name, modality: file.getvalue())
    address = "https://example.org/a.png"
    terminal, output = talk(
        Scripted("yes"), f"/image {address}", "/undo", f"/image {address} low", "what?"
    )
    assert f"{address}: 100 tokens" in output and f"{address}: 10 tokens" in output
    assert "removed the attachment (image of an address)" in output
    assert terminal.messages[0].parts[0] == Image(file.getvalue(), "low")


def test_a_conversation_may_begin_with_a_system_message() -> None:
    phi = Scripted("yes")
    terminal, _ = talk(phi, "hi", "/clear", system="be brief")
    assert [m.role for m in phi.requests[0][0]] == ["system", "user"]
    assert terminal.messages == [Message.system("be brief")]

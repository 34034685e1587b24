"""A server that decodes images and all audio in separate processes: the same answers, and a decoder that fails costs
one request."""

import base64
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

import tests.fixtures.heif  # noqa: F401 (writes HEIC)
from polyphi.engine.engine import Engine
from polyphi.media import isolated, isolated_child
from polyphi.media.isolated import DecoderError
from polyphi.serve.admission.quotas import LARGE_THREADS
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer import decoders
from tests.core.serve.answer.test_containers import (
    PDF,
    RECORDINGS,
    WALK,
    answer,
    chat,
    image,
    transcribe,
    video,
)
from tests.fixtures.audio import audio_file
from tests.fixtures.images import image_file
from tests.fixtures.processes import Children
from tests.fixtures.servers import Running, from_address, sent, serving, until
from tests.fixtures.variants import few

CHAT = "/v1/chat/completions"
SEPARATE = Settings("tiny", isolate_decoding=True)
WAITS = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
"""For ever. (`time.sleep` is refused.)"""


def picture(format: str, side: int = 40) -> bytes:
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    return image_file(noise, format)


def clip(format: str, subtype: str | None = None) -> bytes:
    return audio_file(0.3 * np.sin(np.arange(16_000) * 0.1), format=format, subtype=subtype)


def audio(data: bytes) -> dict[str, Any]:
    url = "data:;base64," + base64.b64encode(data).decode()
    return {"type": "audio_url", "audio_url": {"url": url}}


PARTS = {
    "PDF": PDF,
    "HEIC": image(picture("HEIF")),
    "JPEG": image(picture("JPEG")),
    "PNG": image(picture("PNG")),
    "WebP": image(picture("WEBP")),
    "WAV": audio(clip("WAV")),
    "FLAC": audio(clip("FLAC")),
    "OGG": audio(clip("OGG", "OPUS")),
    "MP3": audio(clip("MP3")),
    "M4A": audio(RECORDINGS["M4A"]),
    "video": video(WALK, frames=2),
}
CLIPS = [clip("WAV"), clip("FLAC"), clip("MP3"), RECORDINGS["AAC"], clip("FLAC") + bytes(2 << 20)]
"""The last one is stored in a file."""


def answers(running: Running, names: list[str], clips: list[bytes]) -> list[Any]:
    """What a server answers to these parts and recordings."""
    with running.client() as client:
        results: list[Any] = [transcribe(client, data).json() for data in clips]
        for name in names:
            results.append(answer(chat(client, PARTS[name])))
            body = {"messages": [{"role": "user", "content": [PARTS[name]]}]}
            results.append(client.post("/tokenize", json=body).json())
        return [*results, chat(client, image(picture("PNG")[:-99])).json()]


@pytest.mark.parametrize(
    ("names", "clips"), few([(["JPEG", "MP3", "HEIC", "PDF"], CLIPS[1:2]), (list(PARTS), CLIPS)], 1)
)
def test_answers_are_the_same(engine: Engine, names: list[str], clips: list[bytes]) -> None:
    with serving(engine, Settings("tiny")) as server:
        expected = answers(server, names, clips)
        assert engine.processor.decoders is None
    with serving(engine, SEPARATE) as server:
        assert answers(server, names, clips) == expected
        assert engine.processor.decoders is not None


def test_nothing_is_decoded_in_the_server(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded in this process")

    with serving(engine, SEPARATE) as server, server.client() as client:
        monkeypatch.setattr(soundfile, "SoundFile", refuse)
        monkeypatch.setattr(Image, "open", refuse)
        for name in ("JPEG", "WebP", "WAV", "MP3"):
            answer(chat(client, PARTS[name]))
        assert transcribe(client, CLIPS[1]).status_code == 200


# A decoder that fails

Broken = Callable[[str], None]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Runs other code where an image of 30 x 30 pixels or any sound would be decoded."""

    def replace_program(code: str) -> None:
        program = tmp_path / "child.py"
        program.write_text(
            f"import os, sys, threading; sys.path.append({str(Path(isolated_child.__file__).parent)!r})\n"
            "import isolated_child; image = isolated_child.image\n"
            f"def decode(job):\n    {code}\ndef broken_image(job):\n"
            "    (decode if job['max_pixels'] == 900 else image)(job)\n"
            "isolated_child.image, isolated_child.sound = broken_image, decode\nisolated_child.main()"
        )
        monkeypatch.setattr(isolated, "CHILD", program)

    return replace_program


def running_decoders(engine: Engine) -> list[psutil.Process]:
    assert engine.processor.decoders is not None
    return psutil.Process(engine.processor.decoders.process.pid).children()


BAD = image(picture("PNG", 30))


@pytest.mark.parametrize("code", ["os.abort()", "bytes(8 << 30)", WAITS])
def test_the_death_of_a_decoder_is_one_error(
    engine: Engine, broken: Broken, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    broken(code)
    with serving(engine, SEPARATE) as server, server.client() as client:
        before = answer(chat(client, PARTS["JPEG"]))
        if code == WAITS:
            monkeypatch.setattr(isolated, "WAIT", 0.005)
        for refused in (
            chat(client, BAD),
            chat(client, PARTS["MP3"]),
            transcribe(client, CLIPS[0]),
            chat(client, PARTS["JPEG"], BAD),
        ):
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["code"] == "media_not_decoded"
        monkeypatch.undo()
        assert answer(chat(client, PARTS["JPEG"])) == before
        until(lambda: not running_decoders(engine))
        assert server.idle()


def pending(running: Running, part: dict[str, Any]) -> AbstractContextManager[Any]:
    """A chat whose client leaves at the end of the context."""
    return sent(running, CHAT, {"messages": [{"role": "user", "content": [part]}]})


@pytest.mark.parametrize("part", [BAD, PARTS["WAV"]])
def test_a_disconnect_ends_the_decoder(
    engine: Engine, broken: Broken, part: dict[str, Any]
) -> None:
    broken(WAITS)
    with serving(engine, SEPARATE) as server:
        with pending(server, part):
            until(lambda: running_decoders(engine))
        until(lambda: server.idle() and not running_decoders(engine))


def test_a_stop_leaves_no_process(engine: Engine, broken: Broken, children: Children) -> None:
    broken(WAITS)
    with serving(engine, replace(SEPARATE, drain_seconds=1.0)) as server, pending(server, BAD):
        until(lambda: running_decoders(engine))
        (first,) = children()
        processes = [first, *first.children()]
        server.uvicorn.should_exit = True
        until(lambda: not children())
    psutil.wait_procs(processes, 30)
    assert not any(process.is_running() for process in processes)


def test_slow_files_of_one_client_do_not_starve_another(
    engine: Engine, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is decoded until its time is over; then it is the other client's turn. Few processes run at once."""
    broken(WAITS)
    with (
        serving(engine, SEPARATE) as server,
        from_address(server, "127.0.0.2") as other,
        ExitStack() as attackers,
    ):
        monkeypatch.setattr(isolated, "WAIT", 0.1)  # 1.1 s for each file
        for _ in range(8):
            attackers.enter_context(pending(server, BAD))
        until(lambda: running_decoders(engine))
        answer(chat(other, PARTS["JPEG"]))
        # Some attackers still wait, and few of their files are decoded at once.
        until(lambda: 0 < len(running_decoders(engine)) <= LARGE_THREADS)


# Defaults


@pytest.mark.parametrize(
    ("host", "option", "separate"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("chat.example.org", None, True),
        ("0.0.0.0", False, False),
        ("127.0.0.1", True, True),
    ],
)
def test_separate_processes_decode_where_others_reach_the_server(
    monkeypatch: pytest.MonkeyPatch, host: str, option: bool | None, separate: bool
) -> None:
    monkeypatch.setattr(decoders, "start_decoders", lambda: "decoders")
    monkeypatch.setattr(decoders, "is_isolated", lambda _: True)
    started = decoders.start(Settings("tiny", host=host, isolate_decoding=option))
    assert (started == "decoders") is separate


def test_a_system_that_does_not_isolate_them_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise DecoderError("crashed")

    monkeypatch.setattr(decoders, "start_decoders", lambda: "decoders")
    monkeypatch.setattr(decoders, "is_isolated", lambda _: False)
    public = Settings("tiny", host="0.0.0.0")
    with caplog.at_level(logging.WARNING):
        assert decoders.start(public) == "decoders"
        assert "not filtered" in caplog.text
        monkeypatch.setattr(decoders, "start_decoders", fail)
        assert decoders.start(public) is None
        assert "in the server's process" in caplog.text
    with pytest.raises(ValueError, match="--isolate-decoding"):
        decoders.start(SEPARATE)

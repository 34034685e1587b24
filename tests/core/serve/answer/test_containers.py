"""M4A, WebM, AAC, videos and PDFs on every route, and a decoder that fails: one request's error, and nothing else."""

import base64
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from polyphi.engine.engine import Engine
from polyphi.media import isolated, isolated_child
from polyphi.media.media import decode_audio
from polyphi.processing.video import decode_video
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer import fetch
from tests.fixtures.audio import audio_file, encoded
from tests.fixtures.images import film, image_file
from tests.fixtures.pdfs import text_pdf
from tests.fixtures.processes import Children
from tests.fixtures.servers import Running, sent, serving, until
from tests.fixtures.variants import few

RECORDINGS = {
    "M4A": encoded("ipod", "aac", 44_100, "stereo"),
    "MP4": encoded("mp4", "aac", 48_000),
    "AAC": encoded("adts", "aac", 16_000),
    "WebM": encoded("webm", "libopus", 48_000, "stereo"),
}
WALK = film(20, size=(56, 56))


def data_url(data: bytes) -> str:
    return "data:;base64," + base64.b64encode(data).decode()


def wav(data: bytes) -> bytes:
    """The same samples, decoded here, in a format of libsndfile."""
    return audio_file(*decode_audio(data), subtype="FLOAT")


PDF = {
    "type": "file",
    "file": {"file_data": data_url(text_pdf("the quick fox")), "filename": "a.pdf"},
}


def transcribe(client: httpx2.Client, data: bytes) -> httpx2.Response:
    return client.post("/v1/audio/transcriptions", files={"file": ("a", data)})


def chat(client: httpx2.Client, *parts: dict[str, Any], **fields: Any) -> httpx2.Response:
    content = [*parts, {"type": "text", "text": "what?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}
    return client.post("/v1/chat/completions", json=body)


def video(data: bytes, **fields: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(data), **fields}}


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def answer(response: httpx2.Response) -> tuple[str, int]:
    assert response.status_code == 200, response.text
    body = response.json()
    return body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens"]


@pytest.mark.parametrize("name", few(RECORDINGS, 1))
def test_recordings_are_heard_as_their_samples(
    running: Running, name: str, children: Children
) -> None:
    data = RECORDINGS[name]
    with running.client() as client:
        whole, reference = transcribe(client, data), transcribe(client, wav(data))
        assert whole.status_code == reference.status_code == 200
        assert whole.json() == reference.json()
        answers = [
            answer(chat(client, {"type": "audio_url", "audio_url": {"url": data_url(sent)}}))
            for sent in (data, wav(data))
        ]
        assert answers[0] == answers[1]
    assert not children()


def test_a_video_is_seen_as_its_frames(running: Running, tmp_path: Path) -> None:
    with running.client() as client:
        frames = [image(image_file(frame, "BMP")) for frame in decode_video(WALK, frames=3)]
        expected = answer(chat(client, *frames))
        assert answer(chat(client, video(WALK, frames=3))) == expected
        low = video(WALK, frames=3, detail="low", max_crops=1)
        assert answer(chat(client, low))[1] <= expected[1]
        counts = [
            client.post("/tokenize", json={"messages": [{"role": "user", "content": parts}]}).json()
            for parts in ([video(WALK, frames=3)], frames)
        ]
        assert counts[0] == counts[1] and counts[0]["image_tokens"] > 0


def test_videos_are_loaded_by_the_rules_of_images(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "walk.mp4").write_bytes(WALK)
    local = {"type": "video_url", "video_url": {"url": f"file://{tmp_path}/walk.mp4", "frames": 2}}
    remote = {"type": "video_url", "video_url": {"url": "http://example.org/walk.mp4"}}
    with serving(engine, Settings("tiny", local=tmp_path)) as server, server.client() as client:
        assert answer(chat(client, local)) == answer(chat(client, video(WALK, frames=2)))
        assert chat(client, remote).status_code == 400
    settings = Settings("tiny", max_video_bytes=100)
    with serving(engine, settings) as server, server.client() as client:
        assert chat(client, local).status_code == 400
        refused = chat(client, video(WALK))
        assert refused.status_code == 413
        assert refused.json()["error"]["param"] == "messages[0].content[0].video_url.url"


LIMITS = [
    ({"max_video_frames": 3}, 400),
    ({"max_parts": 3}, 400),
    ({"max_video_seconds": 1.0}, 413),
    ({"max_video_pixels": 3 * 56 * 56}, 413),
    ({"max_image_pixels": 55 * 56}, 413),
    ({"max_video_pixels": 4 * 56 * 56}, 200),
]


def test_videos_have_limits(engine: Engine) -> None:
    for limits, status in LIMITS:
        with serving(engine, Settings("tiny", **limits)) as server, server.client() as client:
            assert chat(client, video(WALK, frames=4)).status_code == status, limits
            if status == 200:  # the limit is that of all videos together
                refused = chat(client, video(WALK, frames=2), video(WALK, frames=3))
                assert refused.status_code == 413
                assert refused.json()["error"]["param"] == "messages[0].content[1].video_url.url"


def test_errors_name_the_part_of_the_request(running: Running) -> None:
    """Also where the frames of a video stand before an image; and a frame that no crops fit is an error of its
    video."""
    whole, thin = image_file(decode_video(WALK, frames=1)[0], "BMP"), film(2, size=(2, 600))
    with running.client() as client:
        for parts, param, status in (
            ((video(WALK, frames=3), image(whole[:-50])), "[1].image_url", 400),
            ((image(whole), video(WALK[:-100])), "[1].video_url", 400),
            ((video(WALK, frames=2), image(whole), video(thin)), "[2].video_url", 400),
            ((video(b"\x1aE\xdf\xa3" + bytes(99)),), "[0].video_url", 400),
            ((video(whole),), "[0].video_url", 415),
            ((video(RECORDINGS["WebM"]),), "[0].video_url", 400),
        ):
            refused = chat(client, *parts)
            assert refused.status_code == status, refused.text
            assert refused.json()["error"]["param"] == f"messages[0].content{param}.url"
        refused = transcribe(client, WALK)  # no sound
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "file")


@pytest.mark.parametrize("cause", ["option", "system"])
def test_where_nothing_isolates_them_they_are_refused(
    engine: Engine, cause: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings("tiny", containers=False if cause == "option" else None)
    if cause == "system":
        for name in ("isolation_missing", "pdf_isolation_missing"):
            monkeypatch.setattr(fetch, name, lambda: "pip install this")
    with (
        caplog.at_level(logging.WARNING),
        serving(engine, settings) as server,
        server.client() as client,
    ):
        assert transcribe(client, RECORDINGS["M4A"]).status_code == 415
        for part in (video(WALK), PDF):
            refused = chat(client, part)
            assert refused.status_code == 415 and "pip" not in refused.text
        props = client.get("/props").json()
        assert props["containers"] is props["modalities"]["video"] is props["documents"] is False
    assert caplog.text.count("pip install this") == (2 if cause == "system" else 0)


# A decoder that fails


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces the program of the decoder's process."""
    folder = str(Path(isolated_child.__file__).parent)

    def replace_program(code: str) -> None:
        program = tmp_path / "child.py"
        program.write_text(
            "import json, os, sys, time\n"
            f"sys.path.append({folder!r})\nfrom isolated_child import _send\n" + code
        )
        monkeypatch.setattr(isolated, "CHILD", program)

    return replace_program


@pytest.mark.parametrize(
    "code",
    few(
        [
            "_send({'rate': 16000, 'channels': 1}); _send({}, bytes(4000)); os.abort()",
            "os.kill(os.getpid(), 9)",
            "os.abort()",
            "_send({'error': 'memory'})",
            "time.sleep(600)",
            "_send({'rate': 16000, 'channels': 1, 'samples': 10 ** 6}); os.kill(os.getpid(), 11)",
        ],
        1,
    ),
)
def test_the_death_of_a_decoder_is_one_error(
    fresh: Running,
    broken: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    children: Children,
) -> None:
    good = wav(RECORDINGS["AAC"])
    with fresh.client() as client:
        before = transcribe(client, good).json()
        with monkeypatch.context() as patch:
            patch.setattr(isolated, "CHILD", isolated.CHILD)
            # Each picture of a video is given 5 s of CPU time.
            patch.setattr(isolated, "WAIT", 0.005 if "sleep" in code else 0.05)
            broken(code)
            sound = {"type": "audio_url", "audio_url": {"url": data_url(RECORDINGS["M4A"])}}
            for refused in (
                transcribe(client, RECORDINGS["M4A"]),
                chat(client, sound),
                chat(client, video(WALK)),
                chat(client, PDF),
            ):
                assert refused.status_code == 400, refused.text
                assert refused.json()["error"]["code"] == "media_not_decoded"
            assert transcribe(client, good).json() == before
        assert transcribe(client, RECORDINGS["AAC"]).json() == before
        metrics = client.get("/metrics").text
        assert 'media_rejected_total{model_name="tiny",reason="decoder"} 4.0' in metrics
    assert fresh.idle() and not children()


def test_a_disconnect_ends_the_decoder(
    running: Running, broken: Callable[[str], None], children: Children
) -> None:
    broken("time.sleep(600)")
    body = {"messages": [{"role": "user", "content": [video(WALK)]}]}
    with sent(running, "/v1/chat/completions", body):
        until(children)
        (process,) = children()
    process.wait(20)
    until(lambda: running.idle() and not children())


def test_a_stop_leaves_no_decoder(
    engine: Engine, broken: Callable[[str], None], children: Children
) -> None:
    broken("time.sleep(600)")
    settings = replace(Settings("tiny"), drain_seconds=1.0)
    with serving(engine, settings) as server, server.client() as client:
        thread = threading.Thread(target=lambda: _ignored(client, RECORDINGS["M4A"]), daemon=True)
        thread.start()
        until(children)
    until(lambda: not children())


def _ignored(client: httpx2.Client, data: bytes) -> None:
    with suppress(httpx2.HTTPError):
        transcribe(client, data)


def test_silence_of_hours_is_refused_by_its_length(engine: Engine) -> None:
    minute = encoded("adts", "aac", 16_000, wave=np.zeros(960_000, np.float32))
    settings = Settings("tiny", max_audio_seconds=120, max_recording_seconds=300)
    with serving(engine, settings) as server, server.client() as client:
        assert transcribe(client, minute * 10).status_code == 413
        sound = {"type": "audio_url", "audio_url": {"url": data_url(minute * 3)}}
        assert chat(client, sound).status_code == 413

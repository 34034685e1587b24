"""The live tab in headless Chromium, whose microphone plays a recording, with the real server."""

import base64
import io
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from tests.core.serve.audio.test_realtime import COMPLETED, DELTA, at_once
from tests.core.serve.page import test_page
from tests.core.serve.page.test_page import Page
from tests.fixtures.engines import end_answers
from tests.fixtures.servers import Running, serving

pytestmark = [
    test_page.pytestmark,
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]
RECORD = """
window.sent = [];
window.received = [];
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  window.sent.push(JSON.parse(data));
  if (window.sent.length === 1)
    this.addEventListener("message", ({ data }) => window.received.push(JSON.parse(data)));
  return send.call(this, data);
};
"""
"""Keeps the messages of the page's WebSockets."""
SPEECH = ("The quick brown fox jumps over the lazy dog.", "What is seven plus nine?")


@pytest.fixture
def engine(engine: Engine) -> Engine:
    return end_answers(engine)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "downloads").mkdir()
    parts = [np.zeros(24000, np.float32)]
    for text in SPEECH:
        command = ["espeak-ng", "--stdout", text]
        data = subprocess.run(command, check=True, capture_output=True).stdout
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        parts += [np.interp(np.arange(0, len(wave), rate / 24000), np.arange(len(wave)), wave)]
        parts += [np.zeros(36000, np.float32)]
    parts.append(np.zeros(60 * 24000, np.float32))
    soundfile.write(folder / "speech.wav", np.concatenate(parts), 24000, subtype="PCM_16")
    capture = f"--use-file-for-fake-audio-capture={folder / 'speech.wav'}%noloop"
    page = Page(folder / "profile", folder / "downloads", capture)
    page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": RECORD})
    yield page
    page.driver.quit()


def messages(page: Page, name: str, *types: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = page.run(f"return window.{name}")
    return [message for message in messages if message["type"] in types]


def captions(page: Page) -> list[str]:
    return page.texts(".caption:not(.open)")


def check_transcripts(page: Page, running: Running, key: str) -> None:
    """Each caption is the transcript of its piece of what the page sent."""
    audio = messages(page, "sent", "input_audio_buffer.append")
    samples = np.frombuffer(b"".join(base64.b64decode(m["audio"]) for m in audio), "<i2")
    starts = messages(page, "received", "input_audio_buffer.speech_started")
    stops = messages(page, "received", "input_audio_buffer.speech_stopped")
    finals = messages(page, "received", COMPLETED)
    assert len(starts) == len(stops) == len(finals)
    for start, stop, final in zip(starts, stops, finals, strict=True):
        piece = samples[24 * start["audio_start_ms"] : 24 * stop["audio_end_ms"]]
        assert final["transcript"] == at_once(running, piece, key=key) != ""
    assert captions(page) == [final["transcript"] for final in finals]


def test_captions_of_the_microphone(browser: Page, engine: Engine) -> None:
    page = browser
    with serving(engine, Settings("tiny", keys=("sesame",))) as running:
        page.open(running.url)
        page.until(lambda: page.find("#key-input").is_displayed(), "the question for a key")
        page.find("#key-input").send_keys("sesame")
        page.click("#key-ok")
        page.ready().click("#tab-live")
        page.click("#live-start")
        page.until(lambda: len(captions(page)) >= 2, "two captions", 90)
        assert page.find("#live-timer").text != "0:00"
        page.click("#live-stop")
        page.until(lambda: page.find("#live-start").is_displayed(), "the end")
        assert not page.find("#live-error").is_displayed()
        check_transcripts(page, running, "sesame")
        assert messages(page, "received", DELTA)
        page.until(running.idle, "the engine to be free again")
        page.click("#live-clear")
        assert not page.all(".caption") and page.find("#live-none").is_displayed()
    assert page.console() == []


def test_a_session_that_the_server_ends_is_reported(browser: Page, engine: Engine) -> None:
    page = browser
    settings = Settings("tiny", live_seconds=2.0, max_live_sessions=1)
    with serving(engine, settings) as running:
        page.open(running.url).ready().click("#tab-live")
        page.click("#live-start")
        page.until(lambda: page.find("#live-error").is_displayed(), "the error", 30)
        assert "2 s" in page.find("#live-error").text
        page.until(lambda: page.find("#live-start").is_displayed(), "the end")
        page.click("#live-start")
        page.until(lambda: page.find("#live-stop").is_displayed(), "another session")
        time.sleep(0.5)
        page.key("Escape")
        page.until(lambda: page.find("#live-start").is_displayed(), "the end")
        page.until(running.idle, "the engine to be free again")
    assert page.console() == []

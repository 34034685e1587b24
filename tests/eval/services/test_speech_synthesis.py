"""Speech engines: espeak-ng and flite as libraries and as commands, any command, any endpoint."""

import http.server
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import soundfile

from polyphi_eval.services import speech_synthesis
from polyphi_eval.services.speech_synthesis import TTSPool, Voice, speak, unavailable

needs_espeak = pytest.mark.skipif(
    unavailable("espeak-ng") is not None, reason="espeak-ng is not installed"
)
needs_flite = pytest.mark.skipif(unavailable("flite") is not None, reason="flite is not installed")


def wav(seconds: float, rate: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(
        out, np.full(int(seconds * rate), 0.25, np.float32), rate, format="WAV", subtype="PCM_16"
    )
    return out.getvalue()


@needs_espeak
@pytest.mark.parametrize(
    ("language", "text"),
    [("en", "seven two"), ("zh", "七 二"), ("ja", "なな に"), ("pt", "sete dois")],
)
def test_espeak_speaks(language: str, text: str) -> None:
    wave, rate = speak(text, Voice("espeak-ng", language, "f2"))
    assert rate == 22050 and wave.dtype == np.float32 and wave.ndim == 1
    assert 0.3 < len(wave) / rate < 3 and 0.1 < np.abs(wave).max() <= 1


@needs_espeak
def test_a_new_pool_gives_the_same_bytes_whatever_ran_before() -> None:
    def session() -> list[np.ndarray]:
        tts_pool = TTSPool()
        return [
            tts_pool.speak(t, Voice("espeak-ng", "en", v))[0]
            for t in ("one", "two")
            for v in ("f1", "m3", "f5")
        ]

    first = session()
    speak("something else", Voice("espeak-ng", "de", "m2"))
    time.sleep(1.1)  # breathy variants would be seeded by the second
    assert all(np.array_equal(a, b) for a, b in zip(first, session(), strict=True))


@needs_espeak
def test_an_interrupt_at_any_moment_is_raised_and_cuts_nothing() -> None:
    text = "red, green and yellow birds sing in the old apple tree. " * 4

    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    handler, waves = signal.signal(signal.SIGALRM, interrupt), list[np.ndarray]()

    def is_raised(milliseconds: int) -> bool:
        with closing(TTSPool()) as tts_pool:
            tts_pool.speak("open", Voice())
            try:
                signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)
                waves.append(tts_pool.speak(text, Voice())[0])
                time.sleep(1 if milliseconds else 0)
            except Interrupt:
                return True
        return False

    try:
        assert not is_raised(0)  # no alarm
        for milliseconds in range(1, 40):  # the text takes about 15
            # Twice, since Python drops what a handler raises in the callback of a weak reference.
            assert is_raised(milliseconds) or is_raised(milliseconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert len(waves) < 40, "none was interrupted while it spoke"
    assert all(np.array_equal(wave, waves[0]) for wave in waves)


@needs_espeak
def test_speed_and_pitch_change_the_clip() -> None:
    tts_pool = TTSPool()
    slow, fast = (tts_pool.speak("seven two nine", Voice(speed=s))[0] for s in (0.8, 1.5))
    assert len(slow) > 1.2 * len(fast)
    low, high = (tts_pool.speak("seven two nine", Voice(pitch=p))[0] for p in (10, 90))
    assert not np.array_equal(low, high)


@needs_espeak
def test_the_command_says_what_the_library_says() -> None:
    wave, rate = speech_synthesis._EspeakCommand().speak("seven", Voice("espeak-ng", "en", "m1"))
    ours, our_rate = TTSPool().speak("seven", Voice("espeak-ng", "en", "m1"))
    assert rate == our_rate and abs(len(wave) - len(ours)) < 0.05 * rate + 0.35 * rate


@needs_flite
def test_flite_speaks_the_same_again_and_faster() -> None:
    tts_pool = TTSPool()
    first, rate = tts_pool.speak("seven two", Voice("flite", "en", "slt"))
    assert rate == 16000
    assert np.array_equal(first, tts_pool.speak("seven two", Voice("flite", "en", "slt"))[0])
    assert len(tts_pool.speak("seven two", Voice("flite", "en", "slt", speed=1.5))[0]) < 0.8 * len(
        first
    )
    wave, _ = speech_synthesis._FliteCommand().speak("seven two", Voice("flite", "en", "slt"))
    assert abs(len(wave) - len(first)) < 0.1 * rate


def test_any_command_that_writes_wav(tmp_path: object) -> None:
    program = (
        "import sys, wave; w = wave.open(sys.stdout.buffer, 'wb'); w.setnchannels(1); w.setsampwidth(2); "
        "w.setframerate(8000); w.writeframes(bytes(2 * 100 * len(sys.argv[1])))"
    )
    wave, rate = speak(
        "hello there", Voice("command", "en", where=f'{sys.executable} -c "{program}" {{text}}')
    )
    assert rate == 8000 and len(wave) == 100 * len("hello there")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/no/such/program {text}", "/no/such/program"),
        (f"{sys.executable} -c pass", "no readable audio"),
        (f"{sys.executable} -c 'raise SystemExit(3)'", "failed with code 3"),
    ],
)
def test_a_failing_command_is_one_clear_line(command: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speak("hello", Voice("command", where=command))


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict]]]:
    """An OpenAI-compatible speech endpoint that returns half a second of WAV, and its recorded requests."""
    requests: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            self.send_response(500 if body["input"] == "fail" else 200)
            self.end_headers()
            self.wfile.write(wav(0.5, 24000))

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", requests
    server.shutdown()
    server.server_close()


def test_an_endpoint(endpoint: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch) -> None:
    where, requests = endpoint
    monkeypatch.setenv("POLYPHI_SPEECH_KEY", "secret")
    wave, rate = speak("hello", Voice("endpoint", "fr", "alloy", speed=1.2, where=where, model="m"))
    assert rate == 24000 and len(wave) == 12000
    expected = {
        "model": "m",
        "input": "hello",
        "voice": "alloy",
        "response_format": "wav",
        "speed": 1.2,
    }
    assert requests == [{**expected, "path": "/v1/audio/speech", "key": "Bearer secret"}]
    with pytest.raises(ValueError, match="answered 500"):
        speak("fail", Voice("endpoint", where=where))
    with pytest.raises(ValueError, match="can't be reached"):
        speak("hello", Voice("endpoint", where="http://127.0.0.1:9/v1"))
    with pytest.raises(ValueError, match=r"starts with http:"):
        speak("hello", Voice("endpoint", where="ftp://example"))


def test_what_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="unknown speech engine 'sapi'"):
        Voice("sapi")
    with pytest.raises(ValueError, match=r"needs `where`"):
        Voice("command")
    with pytest.raises(ValueError, match="flite has no voice"):
        Voice("flite", "en", "bob")
    with pytest.raises(ValueError, match=r"speed of 0\.3 to 3"):
        Voice(speed=9.0)
    with pytest.raises(ValueError, match="no text to speak"):
        speak("  ", Voice())


@needs_espeak
def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(ValueError, match=r"no voice 'tlh\+f1'"):
        speak("hello", Voice("espeak-ng", "tlh", "f1"))


def test_a_missing_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_synthesis, "_library", lambda engine: None)
    monkeypatch.setattr(speech_synthesis.shutil, "which", lambda name: None)
    assert unavailable("flite") and "apt install flite" in str(unavailable("flite"))
    with pytest.raises(ValueError, match="apt install espeak-ng"):
        TTSPool().speak("hello", Voice())

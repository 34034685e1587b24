"""Text to speech with external engines: espeak-ng, flite, any command that writes WAV, any OpenAI-compatible endpoint.

>>> wave, rate = speak("seven two nine", Voice("espeak-ng", "en", "f2"))       # float32 mono [n] in [-1, 1], Hz

espeak-ng and flite are loaded as shared libraries, because a process for each text costs more than the synthesis; if
only the command is installed, it is used. A `TTSPool` has separate engines: espeak-ng's output depends slightly on its
previous texts, so reproducible audio needs a new `TTSPool` and the same texts in the same order.
"""

import _ctypes
import ctypes
import io
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from polyphi_eval.services.endpoint import Endpoint

ENGINES = ("espeak-ng", "flite", "command", "endpoint")
SECONDS = 60.0  # timeout of a command or an endpoint for one text

ESPEAK_LANGUAGES = {
    "en": "en-us",
    "zh": "cmn",
    "fr": "fr",
    "de": "de",
    "it": "it",
    "ja": "ja",
    "pt": "pt-br",
    "es": "es",
}
"""Language -> espeak-ng's voice; other names ("en-gb", "es-419") are used as they are. `ja` reads only kana."""
FLITE_VOICES = ("slt", "rms", "awb", "kal16", "kal")
ESPEAK_WORDS_PER_MINUTE = 175  # espeak-ng's normal speed
_INSTALL = {
    "espeak-ng": "install it with `apt install espeak-ng`",
    "flite": "install it with `apt install flite`",
}


@dataclass(frozen=True)
class Voice:
    """A voice of an engine. `variant`: espeak-ng's variant ("f2", "m3", "" for the plain voice), flite's voice ("slt")
    or an endpoint's voice name. `speed` is relative to the engine's normal speed; `pitch` is espeak-ng's, 0 to 99 with
    50 as normal.

    `where`: the command of engine "command" (`{text}` and `{language}` are replaced; it writes WAV to standard output),
    or the base URL of engine "endpoint" (".../v1"), whose model is `model`. An endpoint's API key is read from
    POLYPHI_SPEECH_KEY."""

    engine: str = "espeak-ng"
    language: str = "en"
    variant: str = ""
    speed: float = 1.0
    pitch: int = 50
    where: str = ""
    model: str = "tts"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(
                f"unknown speech engine {self.engine!r}; expected one of {', '.join(ENGINES)}"
            )
        if not 0.3 <= self.speed <= 3.0 or not 0 <= self.pitch <= 99:
            raise ValueError(
                f"expected a voice's speed of 0.3 to 3 and pitch of 0 to 99, found {self.speed} and {self.pitch}"
            )
        if self.engine in ("command", "endpoint") and not self.where:
            raise ValueError(
                f"a voice of engine {self.engine!r} needs `where`: the command, or the endpoint's address"
            )
        if self.engine == "flite" and self.variant not in FLITE_VOICES:
            raise ValueError(
                f"flite has no voice {self.variant!r}; expected one of {', '.join(FLITE_VOICES)}"
            )


class _Engine(Protocol):
    def speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]: ...


class TTSPool:
    """A set of engines, each opened on first use. Thread-safe; synthesizes one text at a time."""

    def __init__(self) -> None:
        self._engines: dict[str, _Engine] = {}
        self._lock = threading.Lock()

    def speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
        """The speech as (float32 mono samples in [-1, 1], rate in Hz), including the engine's silence at both ends.

        Raises `ValueError` for empty text, an engine that is not installed, an unknown voice, and for an engine that
        fails or returns no audio."""
        if not text.strip():
            raise ValueError("expected a text with at least one word, found no text to speak")
        with self._lock:
            if voice.engine not in self._engines:
                if missing := unavailable(voice.engine):
                    raise ValueError(missing)
                self._engines[voice.engine] = _OPEN[voice.engine]()
            wave, rate = self._engines[voice.engine].speak(text, voice)
        if len(wave) == 0:
            raise ValueError(
                f"{voice.engine} returned no audio for {text[:60]!r} as {voice.language!r} {voice.variant!r}"
            )
        return wave, rate

    def close(self) -> None:
        """Releases the engines; the next call of `speak` opens new ones."""
        with self._lock:
            for engine in self._engines.values():
                if isinstance(engine, _Espeak):
                    engine.close()
            self._engines.clear()


@cache
def _tts_pool() -> TTSPool:
    return TTSPool()


def speak(text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
    """`TTSPool.speak` of a shared `TTSPool`: for single texts, not for reproducible audio."""
    return _tts_pool().speak(text, voice)


def unavailable(engine: str) -> str | None:
    """The reason why an engine isn't available, a line with the missing part and how to install it; None if it is
    available."""
    if engine not in ENGINES:
        return f"unknown speech engine {engine!r}; expected one of {', '.join(ENGINES)}"
    if engine in _INSTALL and not _library(engine) and not shutil.which(engine):
        return f"{engine} is not installed: neither its shared library nor its command is here; {_INSTALL[engine]}"
    return None


# espeak-ng --------------------------------------------------------------------------------------------------

_SONAMES = {
    "espeak-ng": ("libespeak-ng.so.1", "libespeak-ng.1.dylib"),
    "flite": ("libflite.so.1", "libflite.1.dylib"),
}
_SYNCHRONOUS, _UTF8 = 2, 1  # espeak_AUDIO_OUTPUT, and a flag of espeak_Synth
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@cache
def _library(engine: str) -> ctypes.CDLL | None:
    for name in _SONAMES[engine]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _private_copy(library: ctypes.CDLL) -> ctypes.CDLL:
    """A second instance of the library with separate state: loaders share state by file, so a copied file is another
    library. Returns the shared one if that isn't possible (no /proc, temporary files not executable)."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
        path = next(line.split(maxsplit=5)[5] for line in maps if "/libespeak-ng.so" in line)
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(shutil.copy(path, Path(folder) / "espeak-ng.so")))
    except (OSError, StopIteration):
        return library


class _Espeak:
    """libespeak-ng in the mode that returns samples instead of playing them. 22,050 Hz."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.shared, self.library = library, _private_copy(library)
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 100, None, 0)
        if self.rate <= 0:
            raise ValueError(
                "espeak-ng can't find its data; try `apt install --reinstall espeak-ng-data`"
            )
        if seed := getattr(self.library, "espeak_ng_SetRandSeed", None):
            seed(ctypes.c_long(1))  # otherwise the noise of breathy voices depends on the clock
        self._chunks: list[bytes] = []

        @_CALLBACK
        def on_samples(samples: int, count: int, _: int) -> int:
            if samples and count:
                self._chunks.append(ctypes.string_at(samples, 2 * count))
            return 0

        self._callback = on_samples  # a reference, since the library keeps calling it
        self.library.espeak_SetSynthCallback(on_samples)
        self._voice, self._closed, self._lock = "", False, threading.Lock()

    def speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
        # Python handles signals in the main thread, there in the callback, where ctypes drops both the samples and the
        # KeyboardInterrupt. So the library is called in another thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._speak, text, voice).result()

    def _speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
        name = _espeak_name(voice)
        with self._lock:  # an interrupted `speak` may leave its thread behind
            if self._closed:
                raise ValueError("espeak-ng was closed")
            if name != self._voice:
                if self.library.espeak_SetVoiceByName(name.encode()) != 0:
                    raise ValueError(
                        f"espeak-ng has no voice {name!r}; `espeak-ng --voices` lists them"
                    )
                self._voice = name
            self.library.espeak_SetParameter(_RATE, round(ESPEAK_WORDS_PER_MINUTE * voice.speed), 0)
            self.library.espeak_SetParameter(_PITCH, voice.pitch, 0)
            self._chunks.clear()
            data = text.encode() + b"\0"
            size = ctypes.c_size_t(len(data))
            if self.library.espeak_Synth(data, size, 0, 0, 0, _UTF8, None, None) != 0:
                raise ValueError(f"espeak-ng failed at {text[:60]!r}")
            return _float(np.frombuffer(b"".join(self._chunks), np.int16)), self.rate

    def close(self) -> None:
        """Unloads the library if it is a private copy: each takes more than a megabyte."""
        with self._lock:
            self._closed = True
            if self.library is not self.shared:
                self.library.espeak_Terminate()
                _ctypes.dlclose(self.library._handle)


def _espeak_name(voice: Voice) -> str:
    language = ESPEAK_LANGUAGES.get(voice.language, voice.language)
    return f"{language}+{voice.variant}" if voice.variant else language


def _float(samples: np.ndarray) -> Float[np.ndarray, " n"]:
    return samples.astype(np.float32) / 32768.0


class _EspeakCommand:
    def speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
        speed, pitch = str(round(ESPEAK_WORDS_PER_MINUTE * voice.speed)), str(voice.pitch)
        return _run(
            [
                "espeak-ng",
                "-v",
                _espeak_name(voice),
                "-s",
                speed,
                "-p",
                pitch,
                "--stdout",
                "--",
                text,
            ]
        )


# flite ------------------------------------------------------------------------------------------------------


class _FliteWave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("rate", ctypes.c_int),
        ("count", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _FliteVoice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class _Flite:
    """libflite with its compiled-in English voices. 16,000 Hz (kal: 8,000)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name in ("libflite.so.1", "libflite_cmulex.so.1", "libflite_usenglish.so.1"):
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)  # voices look up global symbols
        self.library = library
        library.flite_init()
        library.flite_text_to_wave.restype = ctypes.POINTER(_FliteWave)
        library.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        library.delete_wave.argtypes = [ctypes.POINTER(_FliteWave)]
        library.feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        self._voices: dict[str, int] = {}

    def _voice(self, name: str) -> int:
        if name not in self._voices:
            register = getattr(
                ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}"
            )
            register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
            self._voices[name] = register(None)
        return self._voices[name]

    def speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
        pointer = self._voice(voice.variant)
        features = ctypes.cast(pointer, ctypes.POINTER(_FliteVoice)).contents.features
        self.library.feat_set_float(features, b"duration_stretch", 1.0 / voice.speed)
        # The noise comes from the C library's generator, which is seeded to make the audio reproducible.
        self.library.srand(1)
        result = self.library.flite_text_to_wave(text.encode(), pointer)
        if not result:
            raise ValueError(f"flite failed at {text[:60]!r}")
        samples = np.ctypeslib.as_array(result.contents.samples, (result.contents.count,))
        wave, rate = _float(samples), result.contents.rate
        self.library.delete_wave(result)
        return wave, rate


class _FliteCommand:
    def speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
        stretch = f"duration_stretch={1.0 / voice.speed}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.wav"
            _output(
                ["flite", "-voice", voice.variant, "--setf", stretch, "-t", text, "-o", str(path)]
            )
            return _decode(path.read_bytes(), "flite")


# Commands and endpoints -------------------------------------------------------------------------------------


class _Command:
    def speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
        words = shlex.split(voice.where)
        return _run(
            [w.replace("{text}", text).replace("{language}", voice.language) for w in words]
        )


def _run(command: list[str]) -> tuple[Float[np.ndarray, " n"], int]:
    return _decode(_output(command), command[0])


def _output(command: list[str]) -> bytes:
    try:
        process = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise ValueError(
            f"the speech command {command[0]!r} is not installed on this system"
        ) from None
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"the speech command {command[0]!r} took more than {SECONDS:g} s for one text"
        ) from None
    if process.returncode:
        lines = process.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ValueError(
            f"the speech command {command[0]!r} failed with code {process.returncode}: {lines[-1][:160]}"
        )
    return process.stdout


class _Endpoint:
    """OpenAI-compatible endpoints, with WAV as the response format."""

    def __init__(self) -> None:
        opened = partial(Endpoint, key_from="POLYPHI_SPEECH_KEY", seconds=SECONDS, attempts=1)
        self._open = lru_cache(opened)

    def speak(self, text: str, voice: Voice) -> tuple[Float[np.ndarray, " n"], int]:
        endpoint = self._open(voice.where, voice.model)
        data = endpoint.speech(text, voice=voice.variant or "default", speed=voice.speed)
        return _decode(data, voice.where)


def _decode(data: bytes, name: str) -> tuple[Float[np.ndarray, " n"], int]:
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError):
        raise ValueError(
            f"{name} returned no readable audio; expected WAV, found {len(data)} bytes"
        ) from None
    return wave.mean(axis=1, dtype=np.float32), rate


def _open_espeak() -> _Engine:
    library = _library("espeak-ng")
    return _Espeak(library) if library else _EspeakCommand()


def _open_flite() -> _Engine:
    library = _library("flite")
    try:
        return _Flite(library) if library else _FliteCommand()
    except (OSError, AttributeError):  # a build of flite without shared voices
        return _FliteCommand()


_OPEN: dict[str, Callable[[], _Engine]] = {
    "espeak-ng": _open_espeak,
    "flite": _open_flite,
    "command": _Command,
    "endpoint": _Endpoint,
}

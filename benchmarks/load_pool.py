"""The material of load.py's requests: texts, images, audio and videos of one client, and its stored responses."""

import io
from dataclasses import dataclass, field
from random import Random

import numpy as np
import soundfile
from PIL import Image

BROKEN, LONG = 0.10, 0.125
"""Shares of broken requests and of long prompts."""
SENTENCE = "the river was quiet that morning and nobody on the bridge spoke while boats went by"
WORDS = SENTENCE.split()
LIVE_RATE = 24_000


@dataclass
class Pool:
    """Texts, images, audio and videos for the requests of one client; the same for the same seed. `conversations` has
    the ids of its stored responses, a list for each conversation."""

    rng: Random
    characters_per_token: float = 3.0
    context: int = 2048
    containers: bool = True
    """Whether the server accepts M4A, WebM and MP4."""
    images: list[bytes] = field(default_factory=list)
    audio: list[bytes] = field(default_factory=list)
    recordings: list[bytes] = field(default_factory=list)
    videos: list[bytes] = field(default_factory=list)
    documents: list[bytes] = field(default_factory=list)
    """PDFs of pictures, and texts."""
    speech: list[np.ndarray] = field(default_factory=list)
    """16-bit samples at `LIVE_RATE`, for live sessions."""
    conversations: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        pixels = np.random.default_rng(self.rng.getrandbits(32))
        for n in range(12):
            width = self.rng.randint(40, 900)
            height = round(width * self.rng.uniform(0.3, 3))  # long, thin ones are refused
            small = pixels.integers(0, 256, (8, 8, 3), np.uint8)
            file = io.BytesIO()
            image_format = ("PNG", "JPEG", "WEBP")[n % 3]
            Image.fromarray(small).resize((width, height)).save(file, image_format)
            self.images.append(file.getvalue())
        for n in range(8):
            file = io.BytesIO()
            wave = self._voice(6.0, 16_000)
            soundfile.write(file, wave, 16_000, format=("WAV", "FLAC", "OGG")[n % 3])
            self.audio.append(file.getvalue())
            samples = np.round(32767 * self._voice(3.0, LIVE_RATE))
            self.speech.append(samples.astype("<i2"))
        self.documents += [self.text(short=True).encode() for _ in range(2)]
        if self.containers:
            self._encode_containers()
            for count in (1, 2):
                file = io.BytesIO()
                first, *more = [Image.open(io.BytesIO(data)) for data in self.images[1::3][:count]]
                first.save(file, "PDF", save_all=True, append_images=more)
                self.documents.append(file.getvalue())

    def _voice(self, longest: float, rate: int) -> np.ndarray:
        return voice(self.rng.uniform(0.5, longest), self.rng.uniform(90, 250), rate)

    def _encode_containers(self) -> None:
        from damaged_media import recording, video

        for name, codec, rate in (
            ("ipod", "aac", 16_000),
            ("ipod", "alac", 16_000),
            ("mp4", "aac", 48_000),
            ("webm", "libopus", 48_000),
        ):
            self.recordings.append(recording(name, codec, rate, self._voice(6.0, rate)))
        self.videos += [video("mp4", "libx264"), video("webm", "libvpx")]

    def text(self, short: bool = False) -> str:
        """3 to 40 tokens of words; one text in eight is long, up to half of the context."""
        tokens = self.rng.randint(3, 40)
        if not short and self.rng.random() < LONG:
            tokens = round(min(self.context, 8192) * self.rng.uniform(0.2, 0.5))
        words, characters = [], 0
        while characters < tokens * self.characters_per_token:
            words.append(self.rng.choice(WORDS))
            characters += len(words[-1]) + 1
        return " ".join(words)

    def tokens(self) -> int:
        """The length of an answer."""
        return self.rng.randint(4, 64)


def voice(seconds: float, pitch: float, rate: int) -> np.ndarray:
    """A voiced hum with syllables, which the silence detector takes for speech."""
    at = np.arange(int(rate * seconds)) / rate
    hum = sum(np.sin(2 * np.pi * pitch * k * at) / k for k in range(1, 12))
    return (0.15 * hum * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * at))).astype(np.float32)


def broken_bytes(data: bytes, rng: Random) -> bytes:
    """Media that are cut off or of another type."""
    return rng.choice(
        [data[: rng.randrange(1, 30)], b"GARBAGE" + data[7:], b"%PDF-1.7" + data[:50]]
    )

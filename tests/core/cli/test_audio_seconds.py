"""`--max-audio-seconds` of the commands that read audio."""

from hashlib import sha256
from pathlib import Path

import pytest
import soundfile

from polyphi.media.media import LONGEST_AUDIO_SECONDS, MAX_AUDIO_SECONDS
from polyphi.transcription.transcript_options import TranscriptOptions
from tests.fixtures.command_line import Refused, parsed


@pytest.fixture
def clip(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "clip.wav", [0.0] * 8000, 8000)
    return str(tmp_path / "clip.wav")


@pytest.mark.parametrize("command", ["chat", "transcribe", "serve"])
def test_a_limit_beyond_any_context_is_refused_before_the_model_is_read(
    command: str, clip: str, refused: Refused
) -> None:
    arguments = {"chat": ["hello"], "transcribe": [clip], "serve": []}[command]
    error = refused(command, "no-such-model", *arguments, "--max-audio-seconds", "20000")
    assert f"{LONGEST_AUDIO_SECONDS:,.0f}" in error and "20,000" in error


@pytest.mark.parametrize(
    ("command", "name"), [("chat", ""), ("transcribe", "options"), ("serve", "settings")]
)
def test_the_default_is_half_an_hour(command: str, name: str) -> None:
    for words, seconds in (([], MAX_AUDIO_SECONDS), (["--max-audio-seconds", "3600"], 3600)):
        _, bound = parsed([command, "model", *words])
        bound.apply_defaults()
        options = bound.arguments[name] if name else None
        value = options.max_audio_seconds if name else bound.arguments["max_audio_seconds"]
        assert value == seconds


def test_transcripts_of_an_earlier_version_are_those_of_the_default() -> None:
    """A hash of the options decides whether a transcript is kept; it had no such option."""
    options, longer = TranscriptOptions(), TranscriptOptions(max_audio_seconds=3600)
    assert "audio_seconds" not in repr(options) and options.digest() != longer.digest()
    assert options.digest() == sha256(repr(options).encode()).hexdigest()

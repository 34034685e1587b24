"""Detection of speech and silence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.media.media import AudioStream
from polyphi.transcription.vad import (
    VoiceFeatures,
    measure,
    quietest_point,
    silences,
    speech_ranges,
    voiced_shares,
)
from tests.fixtures.audio import say


def sound(wave: np.ndarray, rate: int = 16000) -> VoiceFeatures:
    return measure(AudioStream((wave.astype(np.float32), rate)))


RNG = np.random.default_rng(0)
SECONDS = 12
NO_SPEECH = {
    "digital silence": np.zeros(16000 * SECONDS),
    "hiss": 0.1 * RNG.standard_normal(16000 * SECONDS),
    "faint hiss": 1e-4 * RNG.standard_normal(16000 * SECONDS),
    "hum": 0.2 * np.sin(2 * np.pi * 50 * np.arange(16000 * SECONDS) / 16000),
    "rumble": np.cumsum(RNG.standard_normal(16000 * SECONDS)) % 7 * 0.01,
    "a breath of hiss": 0.1 * RNG.standard_normal(8000),
    "one sample": np.zeros(1),
}


@pytest.mark.parametrize("name", sorted(NO_SPEECH))
def test_sounds_without_speech(name: str) -> None:
    assert speech_ranges(sound(NO_SPEECH[name])) == []


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.02])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_words_are_detected_at_their_times(noise: float, rate: int) -> None:
    pauses = [4.0, 0.1, 0.1, 6.0, 0.1, 3.0]  # three words, six seconds of nothing, two words
    wave = say([1, 2, 3, 4, 5], pauses, rate, noise)
    ranges = speech_ranges(sound(wave, rate), 1.0)
    assert len(ranges) == 2
    for (start, end), (first, last) in zip(ranges, [(4.0, 5.1), (11.1, 11.8)], strict=True):
        assert first - 0.4 < start <= first and last <= end < last + 0.4
    assert silences(ranges, len(wave) / rate, 5.0) == [(ranges[0][1], ranges[1][0])]


def test_a_short_clip_of_one_vowel_is_speech() -> None:
    vowel = 0.2 * np.sin(2 * np.pi * 300 * np.arange(4800) / 16000)
    assert speech_ranges(sound(vowel)) == [(0.0, 0.3)]


def test_words_in_loud_hiss_are_not_lost() -> None:
    """Hiss at 5 dB below the words."""
    wave = say([1, 2, 3, 4], [3.0, 0.2, 0.2, 0.2, 3.0], noise=0.1)
    ((start, end),) = speech_ranges(sound(wave), 1.0)
    assert start <= 3.05 and end >= 4.75


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 700_000), min_size=1, max_size=5))
def test_features_do_not_depend_on_the_blocks(cuts: list[int]) -> None:
    wave = say([1, 2, 3], [1.0, 0.5, 30.0, 12.0])  # longer than a chunk of frames

    class Cut(AudioStream):
        def __iter__(self):
            yield from np.split(wave, sorted(set(cuts)))

    whole, blocks = sound(wave), measure(Cut((wave, 16000)))
    np.testing.assert_array_equal(whole.level, blocks.level)
    np.testing.assert_array_equal(whole.flatness, blocks.flatness)
    assert whole.seconds == blocks.seconds == len(wave) / 16000
    assert abs(len(whole.level) - 100 * whole.seconds) < 4


def test_the_quietest_point_lies_in_a_pause() -> None:
    wave = say([1, 2, 3, 4], [0.0, 0.05, 0.4, 0.05, 0.0])
    recording = sound(wave)
    assert 0.65 < quietest_point(recording, 0.1, 1.6) < 1.05
    assert 0.0 <= quietest_point(recording, 0.0, 0.05) <= 0.06  # a range shorter than the window
    assert quietest_point(sound(np.zeros(16000)), 0.2, 0.8) == pytest.approx(0.7, abs=0.11)


def test_shares_follow_the_voice() -> None:
    voiced = np.array([0] * 100 + [1] * 100 + [0] * 100 + [1] * 100, bool)
    times, over = voiced_shares(voiced, 0.0, 4.0)
    assert (times[0], times[-1], over[0], over[-1]) == (0.0, 4.0, 0.0, 1.0)
    assert over[[100, 150, 200, 300]].tolist() == [0.0, 0.25, 0.5, 0.5]
    assert voiced_shares(np.zeros(400, bool), 1.0, 3.0)[1][100] == pytest.approx(0.5)

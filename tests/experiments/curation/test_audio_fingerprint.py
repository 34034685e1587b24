"""The experiment on the audio fingerprint, in short: copies match, other numbers don't."""

import pytest

from experiments.curation import audio_fingerprint as script
from polyphi_eval.services.speech_synthesis import unavailable

pytestmark = [
    pytest.mark.skipif(unavailable(engine) is not None, reason=f"{engine} is not installed")
    for engine in ("espeak-ng", "flite")
]


@pytest.mark.long
def test_it_counts_false_and_missed_matches() -> None:
    every = list(script.pairs(1, 20))
    groups = [pair.group for pair in every]
    assert {g: groups.count(g) for g in groups} == {
        "copy": 8,
        "other voice": 6,
        "other number": 6,
        "changed copy": 4,
    }
    results = script.measure(every, script.MIN_AGREEMENT)
    assert results["copy"][0] == 0 and results["other number"][0] <= 1
    assert script.measure(every, -1.0)["other number"][0] >= 4  # by landmarks alone

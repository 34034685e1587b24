"""The Open ASR Leaderboard's sets: their prompts, and excluded segments."""

from pathlib import Path

from polyphi_eval.benchmarks.speech import openasr
from polyphi_eval.sources import Data


def test_earnings22_has_another_prompt(tmp_path: Path) -> None:
    openasr.benchmark.write_fixtures(tmp_path)
    prompts = {s.meta["set"]: s.prompt[0].text for s in openasr.load(Data(tmp_path))}
    assert prompts.pop("Earnings22") == "Transcribe the audio clip to English text."
    assert set(prompts.values()) == {"Transcribe the audio clip into text."} and len(prompts) == 7


def test_segments_without_words_are_left_out(tmp_path: Path) -> None:
    openasr.benchmark.write_fixtures(tmp_path)
    data = Data(tmp_path)
    assert len(list(data.rows(openasr.SOURCES["AMI"]))) == 3
    assert [s.id for s in openasr.load(data) if s.meta["set"] == "AMI"] == ["openasr-ami-0"]

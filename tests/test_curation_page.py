"""The example corpus of docs/curation.md, from files to shards and their card."""

import json
from pathlib import Path

import pytest

from polyphi import cli
from polyphi.data.shards import Shards

EXAMPLE = Path(__file__).parents[1] / "examples" / "curate_pages.py"
DOGS = (
    "Dogs have lived with people for many thousands of years, and they have learned to understand much of what we say. "
    "Most of them like to run, to play with a ball, and to sleep near the fire when the evening is cold. If you have "
    "questions about number {number}, write to anna.smith@example.com, and the owner of the house will answer you. "
    "The people of the village say that a dog which barks at night has seen a fox, and that it is wise to look for it. "
    "In the morning they go out together, along the river and through the wood, and they come home hungry. "
)


def test_the_example_makes_clean_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(24):
        (raw / f"{number}.txt").write_text(DOGS.format(number=number))
    (raw / "bad.jsonl").write_text(json.dumps({"text": "x " * 200, "url": "u"}))
    monkeypatch.chdir(tmp_path)
    cli.main(["curate", str(EXAMPLE), "--out", "mine", "--size", "micro", "--workers", "2"])
    kept = list(Shards(tmp_path / "mine" / "data" / "pages" / "train"))
    assert len(kept) >= 20 and all("anna.smith" not in s.answer for s in kept)
    assert {step["step"] for step in kept[0].meta["lineage"]} >= {"language"}
    capsys.readouterr()
    cli.main(["curate", "show", "pages", "--out", "mine", "--size", "micro"])
    card = capsys.readouterr().out
    assert "my crawl" in card and "CC-BY-4.0" in card and "dropped" in card
    cli.main(["curate", "show", f"pages/{kept[0].id}", "--out", "mine", "--size", "micro"])
    assert "in train" in capsys.readouterr().out

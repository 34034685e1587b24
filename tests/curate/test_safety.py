"""Safety rows: in all eight languages by a teacher who is checked, with what a red team found; pictured requests."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from replay import Replay

from polyphi import cli
from polyphi.curate import feedback
from polyphi.curate.lexicon import LANGUAGES
from polyphi.curate.text import side
from polyphi.data.shards import Shards

EXAMPLE = Path(__file__).parents[2] / "examples" / "curate_safety.py"
NAMES = {name: code for code, name in LANGUAGES.items()}


class Interpreter(Replay):
    """Writes "de: ..." for German, and takes it away on the way back; a text about LOST comes back as another."""

    def chat(self, body: dict[str, Any]) -> tuple[int, bytes]:
        asked = body["messages"][0]["content"]
        texts = json.loads(re.search(r"\n\n(\[.*\])\n\n", asked, re.DOTALL)[1])
        if there := re.search(r"from \w+ into natural (\w+)\.", asked):
            said = [f"{NAMES[there[1]]}: {text}" for text in texts]
        else:
            said = ["Who knows?" if "LOST" in t else t.partition(": ")[2] for t in texts]
        choice = {"message": {"content": json.dumps({"texts": said})}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}).encode()


def test_the_example_speaks_eight_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polyphi.curate.sources.unpack", lambda name, cache, tell=print: None)
    monkeypatch.setattr("polyphi.curate.text.unpack", lambda name, cache, tell=print: None)
    prompts = [f"Finding {i}?" for i in range(99)]
    mine = [p for p in prompts if side("train", "feedback", p)][:2]
    for prompt, language, answered in zip(mine, ("en", "fr"), ("Sure.", "LOST."), strict=True):
        row = {"prompt": prompt, "language": language, "harmful": True, "answered": answered}
        feedback.append(Path("feedback.jsonl"), row)
    with Interpreter() as replay:
        command = ["curate", str(EXAMPLE), "--out", "mine", "--size", "micro"]
        example = tmp_path / "curate_safety_here.py"
        code = EXAMPLE.read_text()
        assert code.count("http://127.0.0.1:8000/v1") == 1
        example.write_text(code.replace("http://127.0.0.1:8000/v1", replay.where))
        command[1] = str(example)
        cli.main(command)
        asked = len(replay.asked)
        cli.main(command)
        assert len(replay.asked) == asked, "a corpus that is there is not made again"
    data = tmp_path / "mine" / "data"
    english = [s for s in Shards(data / "preferences" / "train") if s.meta["language"] == "en"]
    rows = list(Shards(data / "safety" / "train"))
    by_language = {code: [s for s in rows if s.meta["language"] == code] for code in LANGUAGES}
    assert english and rows
    for code, found in by_language.items():
        # The French finding is lost on the way back, so that it stays in French alone.
        assert len(found) == len(english) + 1 + (code == "fr"), code
        assert all(s.meta["rejected"] and s.answer for s in found)
        for s in found:
            if made := s.meta.get("lineage"):
                assert made[-1]["step"] == f"translation_{code}" and made[-1]["chrf"] >= 50
                texts = [s.messages[0].text, s.answer, s.meta["rejected"]]
                assert all(text.startswith(f"{code}: ") for text in texts)
        assert sum("lineage" not in s.meta for s in found) == {"en": len(found), "fr": 1}.get(
            code, 0
        )
    tests = {s.meta["language"] for s in Shards(data / "safety" / "test")}
    assert tests == set(LANGUAGES)
    [aside] = (tmp_path / "work").rglob("translation_de.train.refused.jsonl")
    [refused] = [json.loads(line) for line in aside.read_text().splitlines()]
    assert refused["reason"].startswith("chrF ") and "LOST" in json.dumps(refused["answer"])
    capsys.readouterr()
    cli.main(["curate", "show", "safety", "--out", "mine", "--size", "micro"])
    assert "translation_de by some-model" in capsys.readouterr().out

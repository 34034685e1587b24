"""Safety rows: translated into eight languages by a checked teacher, with red-team findings; docs/safety.md."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from polyphi import cli
from polyphi.data.shards import Shards
from polyphi.types.messages import media
from polyphi.types.parts import Audio
from polyphi_eval.services.speech_synthesis import unavailable
from polyphi_recipe.raw import feedback, packages
from polyphi_recipe.raw.real_text import in_split
from polyphi_recipe.text.lexicon import LANGUAGES
from tests.fixtures.replay import Replay

EXAMPLE = Path(__file__).parents[3] / "examples" / "curate_safety.py"
PAGE = Path(__file__).parents[3] / "docs" / "safety.md"
NAMES = {name: code for code, name in LANGUAGES.items()}


class Interpreter(Replay):
    """Adds the prefix "de: " for German and removes it when translating back; replaces texts that contain LOST."""

    def chat(self, body: dict[str, Any]) -> tuple[int, bytes]:
        prompt = body["messages"][0]["content"]
        texts = json.loads(re.search(r"\n\n(\[.*\])\n\n", prompt, re.DOTALL)[1])
        if target := re.search(r"from \w+ into natural (\w+)\.", prompt):
            replies = [f"{NAMES[target[1]]}: {text}" for text in texts]
        else:
            replies = ["Who knows?" if "LOST" in t else t.partition(": ")[2] for t in texts]
        choice = {"message": {"content": json.dumps({"texts": replies})}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}).encode()


def refuse(*_: object) -> None:
    raise packages.Unavailable("no network")


@pytest.mark.long
def test_the_example_speaks_eight_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Without packages, and with a cache of its own: pages stay in memory by their cache, for later tests too.
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "_fill", refuse)
    prompts = [f"Finding {i}?" for i in range(99)]
    mine = [p for p in prompts if in_split("train", "feedback", p)][:2]
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
        sent = len(replay.requests)
        cli.main(command)
        assert len(replay.requests) == sent, "an existing corpus is not rebuilt"
        data = tmp_path / "mine" / "data"
        rows = list(Shards(data / "safety" / "train"))
        more = {"prompt": mine[0], "language": "en", "harmful": True, "answered": "Of course."}
        feedback.append(Path("feedback.jsonl"), more)
        cli.main(command)
        assert len(replay.requests) == sent + 2 * (len(LANGUAGES) - 1), "there and back"
        after = len(Shards(data / "safety" / "train"))
    english = [s for s in Shards(data / "preferences" / "train") if s.meta["language"] == "en"]
    by_language = {code: [s for s in rows if s.meta["language"] == code] for code in LANGUAGES}
    assert english and rows
    for code, samples in by_language.items():
        # The French finding is lost in the back-translation, so that only its French row remains.
        assert len(samples) == len(english) + 1 + (code == "fr"), code
        assert all(s.meta["rejected"] and s.answer for s in samples)
        for s in samples:
            if lineage := s.meta.get("lineage"):
                assert lineage[-1]["step"] == f"translation_{code}" and lineage[-1]["chrf"] >= 50
                texts = [s.messages[0].text, s.answer, s.meta["rejected"]]
                assert all(text.startswith(f"{code}: ") for text in texts)
        assert sum("lineage" not in s.meta for s in samples) == {"en": len(samples), "fr": 1}.get(
            code, 0
        )
    tests = {s.meta["language"] for s in Shards(data / "safety" / "test")}
    assert tests == set(LANGUAGES)
    assert after == len(rows) + len(LANGUAGES), "a new finding is translated into every language"
    [refused_file] = (tmp_path / "work").rglob("translation_de.train.refused.jsonl")
    [refused] = [json.loads(line) for line in refused_file.read_text().splitlines()]
    assert refused["reason"].startswith("chrF ") and "LOST" in json.dumps(refused["answer"])
    capsys.readouterr()
    cli.main(["curate", "show", "safety", "--out", "mine", "--size", "micro"])
    assert "translation_de by some-model" in capsys.readouterr().out


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """docs/safety.md: its commands, then its blocks as one file."""
    if missing := unavailable("espeak-ng"):
        pytest.skip(missing)
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text()
    [commands] = re.findall(r"(?s)```bash\n(.*?)```", page)
    for line in commands.splitlines():
        assert line.startswith("python -m polyphi_recipe.raw.feedback ")
        feedback.main(shlex.split(line)[3:])
    assert capsys.readouterr().out.endswith("2 findings, 1 of harmful requests\n")
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", page))))
    assert documented == {*feedback.REQUIRED, *feedback.OPTIONAL}
    code = "\n".join(re.findall(r"(?s)```python\n(.*?)```", page))
    Path("page.py").write_text(code)
    exec(compile(code, str(tmp_path / "page.py"), "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.endswith("2 spoken findings\n")
    pairs, answers, spoken = (
        list(Shards(tmp_path / "data" / name / "train"))
        for name in ("found_pairs", "found_answers", "found_aloud")
    )
    assert [s.answer for s in pairs] == [s.answer for s in answers] == [s.answer for s in spoken]
    assert [s.meta["refuse"] for s in spoken] == [True, False]
    assert all(media(s.messages, Audio) and not s.prompt[-1].text for s in spoken)

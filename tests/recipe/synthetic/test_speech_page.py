"""docs/speech.md and its example: text read aloud, questions, translations and summaries of recordings."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from polyphi import cli
from polyphi.data.shards import Sample, Shards
from polyphi.types.messages import media
from polyphi.types.parts import Audio
from polyphi_eval.services.speech_synthesis import unavailable
from polyphi_recipe.raw.real_text import in_split
from polyphi_recipe.syntheses.judge import judged_by_transcript
from polyphi_recipe.synthetic.waves import encode
from tests.fixtures.replay import Replay

ROOT = Path(__file__).parents[3]
PAGE, EXAMPLE = ROOT / "docs" / "speech.md", ROOT / "examples" / "curate_spoken.py"
SAID = "We met Tom at the old harbour."
QUERIES = [
    "What is the name of the river that runs through the city?",
    "How many people live in the green house on the street?",
    "Please tell me how to bake bread with water and salt.",
    "Which animal is larger, the dog or the horse?",
    "Why did the captain leave the harbour before the morning?",
    "Can you tell me a short story about a little cat?",
    "Where should I put the letter that came last night?",
    "Who wrote the book that everybody is reading now?",
]


def alpaca(question: str) -> str:
    return json.dumps({"instruction": question, "input": "", "output": "An answer."}) + "\n"


@pytest.mark.long
@pytest.mark.skipif(unavailable("flite") is not None, reason="flite is not installed")
def test_the_example_reads_queries_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pocketsphinx")
    monkeypatch.chdir(tmp_path)
    tests = [
        q
        for i in range(400)
        if in_split("test", "query", q := f"Who is number {i % 20}{' now' * (i // 20)}?")
    ]
    unreadable = [f"{q} See https://example.com/{n}" for n, q in enumerate(QUERIES)]
    queries = [q for q in QUERIES if in_split("train", "query", q)]
    Path("queries.jsonl").write_text("".join(map(alpaca, [*queries, *tests[:2], *unreadable])))
    cli.main(["curate", str(EXAMPLE), "--out", "mine", "--size", "micro"])
    train, test = (list(Shards(tmp_path / "mine/data/spoken" / s)) for s in ("train", "test"))
    rates = [
        step["rate"] for s in train for step in s.meta["lineage"] if step["step"] == "word errors"
    ]
    with capsys.disabled():
        print(f"\npocketsphinx kept {len(train)} of {len(queries)} clips, word error rates {rates}")
    assert len(train) >= len(queries) / 2 and max(rates) <= 0.5
    assert {s.meta["speaker"] for s in train} <= {f"flite {v}" for v in ("rms", "awb", "kal16")}
    assert {s.meta["speaker"] for s in test} <= {"flite slt"}
    for s in train:
        assert s.meta["question"] in queries and s.answer == "An answer." and not s.prompt[-1].text
    capsys.readouterr()
    cli.main(["curate", "show", "spoken", "--out", "mine", "--size", "micro"])
    output = " ".join(capsys.readouterr().out.split())
    assert "dropped_unfit to be read: an address 8" in output


CHATS = {
    "<answer>\nAt the old harbour": "It says so.\nyes, that is where they met",
    "<answer>\nTom met": "no, they met Tom",
    "into natural German": {"texts": ["Wir trafen Tom am alten Hafen."]},
    "these German texts": {"texts": ["We met Tom at the old port."]},
    "into natural French": {"texts": ["Nous avons vu une baleine."]},
    "these French texts": {"texts": ["A whale was seen by us."]},
    "Several people talk": {
        "summaries": [
            {"question": "In 9 words?", "form": "words", "limit": 9, "answer": "The road is long."}
        ]
    },
    "harbour": {
        "pairs": [
            {"question": "Where did they meet?", "answer": "At the old harbour."},
            {"question": "Who met whom?", "answer": "Tom met at."},
        ]
    },
}


@pytest.mark.skipif(unavailable("espeak-ng") is not None, reason="espeak-ng is not installed")
def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tone = encode(0.3 * np.sin(np.arange(16000, dtype=np.float32) / 20))
    Path("1.flac").write_bytes(tone)
    clip = {"type": "input_audio", "input_audio": {"path": "1.flac"}}
    messages = [{"role": "user", "content": [clip]}, {"role": "assistant", "content": SAID}]
    Path("calls.jsonl").write_text(json.dumps({"id": "c1", "messages": messages}))
    Path("books").mkdir()
    road = "The long road goes up the green hill and down to the river where the people live."
    Path("books/road.txt").write_text("\n".join([road] * 6))
    code = "\n".join(re.findall(r"(?s)```python\n(.*?)```", PAGE.read_text()))
    with Replay(CHATS) as replay:
        assert code.count("http://127.0.0.1:8000/v1") == 1
        code = code.replace("http://127.0.0.1:8000/v1", replay.where)
        Path("page.py").write_text(code)
        exec(compile(code, str(tmp_path / "page.py"), "exec"), {"__name__": "page"})
    output = capsys.readouterr().out.splitlines()
    assert [line for line in output if line[:1].isdigit()] == [
        "1 pairs",
        "2 translations",
        "1 summaries",
    ]
    [pair], [direct, chain], [summary] = (
        list(Shards(tmp_path / "data" / name / "train"))
        for name in ("questions", "translated", "summaries_aloud")
    )
    assert (pair.messages[0].text, pair.answer) == ("Where did they meet?", "At the old harbour.")
    assert [step["step"] for step in pair.meta["lineage"]] == ["speech_qa", "verified"]
    assert "where they met" in pair.meta["lineage"][-1]["reason"]
    dropped = [
        p.read_text() for p in (tmp_path / "data/questions").rglob("dropped/Verified/*.jsonl")
    ]
    assert "Tom met at." in "".join(dropped) and "wrong answer" in "".join(dropped)
    assert direct.messages[0].text == "Translate the audio to German."
    assert direct.answer == "Wir trafen Tom am alten Hafen." and direct.meta["to"] == "de"
    assert chain.answer == f"{SAID} <sep> {direct.answer}" and chain.meta["cot"]
    assert chain.messages[0].text.startswith("Transcribe the audio to text, and then translate")
    assert media(chain.messages, Audio) == media(direct.messages, Audio) == [Audio(tone)]
    assert chain.id != direct.id and direct.meta["lineage"][0]["chrf"] >= 50
    refused = (tmp_path / "work/translations/speech_translation_fr.refused.jsonl").read_text()
    assert "when translated back" in refused
    assert summary.answer == "The road is long." and 20 <= summary.meta["seconds"] <= 60


def test_a_pair_without_a_transcript_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match=r"sample x: .* found none"):
        judged_by_transcript(lambda messages, seed: "yes")(Sample("x", (), "", ""))

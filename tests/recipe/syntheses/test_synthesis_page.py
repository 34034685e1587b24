"""The example of docs/synthesis.md, run unchanged except for the address of its endpoint."""

import re
from hashlib import sha256
from pathlib import Path

import pytest

from polyphi.data.shards import Shards
from polyphi_recipe.syntheses import syntheses
from polyphi_recipe.syntheses.synthesize import Synthesis
from tests.fixtures.replay import Replay

PAGE = Path(__file__).parents[3] / "docs" / "synthesis.md"


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [example] = re.findall(r"(?s)```python\n(.*?)```", PAGE.read_text())
    pictures = {"a": b"\x89PNG a", "b": b"\x89PNG b", "c": b"\x89PNG c"}
    (tmp_path / "pictures").mkdir()
    for name, data in pictures.items():
        (tmp_path / "pictures" / f"{name}.png").write_bytes(data)
    captions = ["A red cat on a sofa.", "A cat.", "Two dogs run over a field."]
    chats = {
        sha256(data).hexdigest(): caption
        for data, caption in zip(pictures.values(), captions, strict=True)
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    with Replay(chats, key="sk-secret") as replay:
        assert example.count("http://127.0.0.1:8000/v1") == 1
        code = example.replace("http://127.0.0.1:8000/v1", replay.where)
        for _ in range(2):
            exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
        assert len(replay.requests) == 3 and replay.requests[0]["model"] == "some-model"
    output = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"3 requests, 0\.00\d\d at most", output[0])
    assert output[1:] == ["2 captions", "0 requests, 0.0000 at most", "2 captions"]
    shards = Shards(tmp_path / "data" / "captions" / "train")
    assert [(s.answer, s.licence) for s in shards] == [
        (captions[0], "CC-BY-4.0"),
        (captions[2], "CC-BY-4.0"),
    ]
    assert (tmp_path / "work" / "captions" / "caption.refused.jsonl").exists()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"sk-secret" in p.read_bytes()]


def test_every_synthesis_is_in_the_table() -> None:
    names = {n for n, value in vars(syntheses).items() if isinstance(value, Synthesis)}
    documented = set(re.findall(r"(?m)^\| `([A-Z_]+)` \|", PAGE.read_text()))
    assert documented == names and "`translation(" in PAGE.read_text()

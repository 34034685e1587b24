"""docs/finetune.md, walked from its first command to its last with a tiny model: rows as people have them, planted
faults among them, to adapters that answer."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import published
import pytest
import soundfile
from PIL import Image as PIL

from polyphi import cli
from polyphi.checkpoints.read import read_config, read_layout
from polyphi.data.shards import Shards

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "finetune.md").read_text()
TRAININGS = 6
"""Commands of the page that train."""
TINY = "--steps 2 --batch-tokens 600 --lr-factor 100 --model"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: rows with pictures and clips, and what the model will be measured on."""
    desk = tmp_path_factory.mktemp("desk")
    published.write(desk / "phi", "native")
    # Plain colours are like each other, to a hash, and so are tones: photos and voices aren't.
    random = np.random.default_rng(0)
    clips, photos = [], []
    for i in range(24):
        steps = np.repeat(random.uniform(200, 3000, 12), 1600)
        soundfile.write(
            desk / f"voice{i}.wav", 0.3 * np.sin(np.cumsum(steps) * 6.28 / 16000), 16000
        )
        clips.append({"audio": f"voice{i}.wav", "answer": ["low", "high"][i % 2]})
        PIL.effect_noise((64, 48), 60 + i).convert("RGB").save(desk / f"photo{i}.png")
        row = {"image": f"photo{i}.png", "question": f"which colour is it {i}", "answer": "red"}
        photos.append(row)
    PIL.open(desk / "photo3.png").save(desk / "copy.jpg", quality=90)
    answer_ = {"answer": "blue, says anna.smith@example.com"}
    receipts = [
        *photos,
        {**photos[3], "image": "copy.jpg"},
        {**photos[4], **answer_},
        {"image": "nowhere.png", "question": "which colour is it", "answer": "red"},
    ]
    for name, rows in {
        "receipts": receipts,
        "calls": [*clips, clips[0]],
        "desk_test": [photos[5]],
        "calls_test": clips[:4],
        "scans": photos[:8],
    }.items():
        (desk / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, pairs, sums = re.findall(r"(?s)```json\n(.*?)```", PAGE)
    (desk / "pairs.jsonl").write_text(pairs)
    (desk / "sums.jsonl").write_text(sums)
    for name, of in {"receipt": "photo1", "scan": "photo2"}.items():
        shutil.copy(desk / f"{of}.png", desk / f"{name}.png")
    shutil.copy(desk / "voice1.wav", desk / "call.wav")
    (desk / "examples").symlink_to(ROOT / "examples")
    (desk / "medical.py").write_text("".join(re.findall(r"(?s)```python\n(.*?)```", PAGE)))
    return desk


def commands() -> list[list[str]]:
    blocks = re.findall(r"(?s)```\n(polyphi .*?)```", PAGE)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


@pytest.mark.long
def test_the_page_runs(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    output: dict[str, str] = {}
    for command in commands():
        options = []
        if command[0] in ("train", "finetune"):
            options = [*TINY.split(), str(desk / "phi")]
        if command[0] == "chat":
            options = ["--max-tokens", "4"]
        cli.main([*command, *options])
        output[" ".join(command)] = capsys.readouterr().out
    assert sum(c.split()[0] in ("train", "finetune") for c in output) == TRAININGS
    assert len(Path("runs/checked/evaluations.jsonl").read_text().splitlines()) == 3
    assert (Path("runs/checked/report.html")).exists()

    samples = {s.id: s for s in Shards("runs/desk/data/desk/train")}
    samples |= {s.id: s for s in Shards("runs/desk/data/desk/test")}
    line = "{}.jsonl, line {}".format
    assert not {line("receipts", 4), line("receipts", 25)} <= set(samples), "one of two alike"
    assert line("receipts", 6) not in samples, "it is in the evaluation set"
    assert "nowhere.png" in Path("bad_rows.txt").read_text()
    assert not {line("calls", 1), line("calls", 25)} <= set(samples), "the same clip twice"
    assert len(samples) == 24 + 24 - 1 + 1, "all others, and one more question about photo 4"
    answer = samples[line("receipts", 26)].answer
    assert answer.startswith("blue, says ") and "@" in answer and "anna.smith" not in answer
    assert "Decontamination: total" in output["curate show desk --out runs/desk"]
    (sum_,) = Shards("runs/sums/data/scans/train")
    assert sum_.answer.startswith("<think>") and sum_.answer.endswith("</think>\n\n43")
    one, two = Shards("runs/pairs/data/rows/train")
    assert (one.messages, one.meta) == (two.messages, two.meta)
    for name in ("calls", "adapter", "medical", "pairs", "sums"):
        assert read_layout(Path("runs") / name / "model") == "native"
    assert not read_config("single").adapters.get("medical")


@pytest.mark.long
def test_a_changed_file_is_a_new_corpus(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    manifest = Path("runs/desk/data/desk/train/manifest.json")
    curate = ["curate", "examples/curate_own.py", "--out", "runs/desk"]
    finetune = ["finetune", "both", "--data", "runs/desk/data/desk", "--out", "runs/before"]
    finetune += [*TINY.split(), "phi"]
    cli.main(curate)
    before = manifest.stat().st_mtime_ns
    cli.main(curate)
    assert manifest.stat().st_mtime_ns == before
    cli.main(finetune)
    rows = Path("receipts.jsonl").read_text().splitlines(keepends=True)
    Path("receipts.jsonl").write_text("".join(rows[:10]))
    cli.main(curate)
    assert manifest.stat().st_mtime_ns > before and not Path("bad_rows.txt").read_text()
    with pytest.raises(SystemExit):
        cli.main(finetune)

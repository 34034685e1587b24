"""docs/finetune.md and docs/finetune_reference.md: their commands with a tiny model, from rows as people have them,
planted faults among them, to adapters that answer; and the reference's tables, compared with the code."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image as PIL

from polyphi import cli
from polyphi.checkpoints.headers import read_config, read_layout
from polyphi.data.shards import Shards
from polyphi.finetuning.monitor import DEFAULT_EVALUATIONS
from polyphi.finetuning.plan import DEFAULT_EPOCHS
from polyphi.finetuning.stages import STAGES
from polyphi.train.loss import NextToken
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.stage import Mix, Stage
from tests.fixtures import published

ROOT = Path(__file__).parents[1]
TUTORIAL, REFERENCE = (
    (ROOT / "docs" / name).read_text() for name in ("finetune.md", "finetune_reference.md")
)
TRAININGS = 7
"""Commands of the pages that train."""
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
    _, sums, pairs = re.findall(r"(?s)```json\n(.*?)```", REFERENCE)
    (desk / "pairs.jsonl").write_text(pairs)
    (desk / "sums.jsonl").write_text(sums)
    for name, of in {"receipt": "photo1", "scan": "photo2"}.items():
        shutil.copy(desk / f"{of}.png", desk / f"{name}.png")
    shutil.copy(desk / "voice1.wav", desk / "call.wav")
    (desk / "examples").symlink_to(ROOT / "examples")
    (desk / "medical.py").write_text("".join(python_of(REFERENCE)))
    digits = [sys.executable, "examples/digits.py", "digits"]
    assert f"python {shlex.join(digits[1:])}\n" in TUTORIAL
    subprocess.run(digits, cwd=desk, check=True)
    return desk


def python_of(page: str) -> list[str]:
    return re.findall(r"(?s)```python\n(.*?)```", page)


def commands() -> list[list[str]]:
    blocks = re.findall(r"(?s)```\n(polyphi .*?)```", TUTORIAL + REFERENCE)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


@pytest.mark.long
def test_the_page_runs(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    output: dict[str, str] = {}
    for command in commands():
        if command[0] == "serve":
            continue
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
    (code,) = python_of(TUTORIAL)
    exec(compile(code, "finetune.md", "exec"), {})
    assert re.search(r"^\d+ of 200 answers are right$", capsys.readouterr().out, re.MULTILINE)

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
    assert not read_config(Path("single")).adapters.get("medical")


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


# ------------------------------------------------------------------------------ the tables of hyperparameters


def table(first: str) -> Iterator[dict[str, str]]:
    """The rows of the reference's table whose head begins with these cells, by column."""
    lines = REFERENCE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    head = [cell.strip(" `") for cell in lines[start].split("|")[1:-1]]
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield dict(zip(head, (cell.strip() for cell in line.split("|")[1:-1]), strict=True))


def test_hyperparameters_of_the_kinds_are_those_of_the_code() -> None:
    own = Stage(name="own", start={}, trainable={}, data=Mix({"a": 1}), objective=NextToken())
    rows = {row["parameter"]: row for row in table("parameter | option | `vision`")}
    by_field = {m[1]: rows[name] for name in rows if (m := re.search(r"\(`(\w+)`\)", name))}
    assert set(by_field) > {"batch_tokens", "context", "warmup", "decay", "clip_norm"}
    for kind, stage in {**STAGES, "stage file": own}.items():
        for field, row in by_field.items():
            if field == "steps" and kind in STAGES:
                assert row[kind] == "by epochs"
            elif field == "max_crops":
                crops = getattr(stage.objective, field)
                assert row[kind] in {str(crops or 36), "" if crops is None else str(crops)}
            else:
                values = {**vars(stage), **vars(stage.schedule)}[field]
                values = values if isinstance(values, tuple) else (values,)
                assert row[kind] == ", ".join(map(str, values)), (kind, field)
        assert stage.schedule.floor == stage.ema == 0
    assert all(float(rows["epochs"][kind]) == DEFAULT_EPOCHS for kind in STAGES)


def test_defaults_of_the_options_are_those_of_the_code() -> None:
    finetuning, options = FinetuneOptions(), TrainOptions()
    values = {**vars(finetuning), **vars(options), **vars(options.machine), **vars(options.guard)}
    rows = list(table("parameter | option | default"))
    assert len(rows) == 9
    for row in rows:
        value = values[row["option"].strip("`-").replace("-", "_")]
        if row["option"] == "`--eval-every`":
            assert row["default"] == "a tenth of the steps" and value is None
            assert DEFAULT_EVALUATIONS == 10
        else:
            assert row["default"] == ("none" if value is None else str(value)), row["option"]


def test_learning_rates_of_the_kinds_are_those_of_the_code() -> None:
    rows = {row["stage"].strip("`").removeprefix("finetune "): row for row in table("stage | rank")}
    for kind in ("vision", "speech", "both"):
        trainable = STAGES[kind].trainable
        for column, part in (("rate of the adapter", ".lora."), ("rate of the projector", ".proj")):
            rates = [rate for glob, rate in trainable.items() if part in glob]
            assert [float(rate) for rate in rows[kind][column].split(", ")] == rates
    (rate,) = STAGES["preferences"].trainable.values()
    assert float(rows["preferences"]["rate of the adapter"].split(",")[0]) == rate

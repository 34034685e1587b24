"""Every example is a command that works: the loss falls, what rests is untouched, the exported model answers."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import polyphi
from polyphi import Audio, Image, Message, SamplingParams, cli
from polyphi.checkpoints.read import load_checkpoint
from polyphi.data import user_data
from polyphi.finetuning.run import finetune
from polyphi.finetuning.stages import load_stage
from polyphi.runtime.progress import read_metrics
from polyphi.train.options import FinetuneOptions
from polyphi.types.modality import load_modality, run_file
from tests.fixtures import published
from tests.fixtures.variants import few

EXAMPLES = Path(__file__).parents[1] / "examples"
SPEECH = ("audio.projector.speech.", ".lora.speech.")
VISION = ("vision.projector.", ".lora.vision.")
# command -> files of rows, and what stands in the names of all that learns
CASES = {
    "finetune speech": ("clips.jsonl", SPEECH),
    "finetune vision": ("pictures.jsonl", VISION),
    "finetune both": ("pictures.jsonl clips.jsonl", (*SPEECH, *VISION)),
    f"train {EXAMPLES / 'finetune_sibling.py'}": ("pictures.jsonl", (".lora.medical.",)),
}
QUICK = {*zip(CASES, ("original", "native", "original", "native"), strict=True)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both public layouts of a tiny model in bfloat16, and data."""
    source = tmp_path_factory.mktemp("published")
    for layout in ("original", "native"):
        published.write(source / layout, layout)
    published.write_data(source / "data")
    colours = list(published.COLOURS)
    rows: list[dict[str, Any]] = []
    for i in range(6):  # columns, and rows of TRL
        content = [{"type": "image"}, {"type": "text", "text": "which colour is it"}]
        chosen, rejected = colours[i % 3], colours[(i + 1) % 3]
        rows += [
            {"image": f"{i}.png", "question": content[1]["text"], "answer": chosen},
            {
                "images": [f"{i}.png"],
                "prompt": [{"role": "user", "content": content}],
                "chosen": [{"role": "assistant", "content": chosen}],
            },
        ]
        rows[-2]["rejected"] = rejected
        rows[-1]["rejected"] = [{"role": "assistant", "content": rejected}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (source / "data/pairs.jsonl").write_text(text)
    return source


def test_every_example_is_here() -> None:
    assert {p.name for p in EXAMPLES.glob("finetune_*.py")} == {"finetune_sibling.py"}


def test_the_rows_of_the_readme_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = run_file(EXAMPLES / "rows.py")
    silence = np.zeros(800, np.float32)
    monkeypatch.setattr(example, "speak", lambda *_: (silence, 8000))
    example.main(tmp_path)
    counts = {file.stem: len(list(user_data.read(file))) for file in tmp_path.glob("*.jsonl")}
    assert counts == {
        **{"receipts": 49, "calls": 48, "scans": 48, "pairs": 48},
        **{"queries": 64, "desk_test": 1},
    }


@pytest.mark.parametrize(
    ("name", "layout"), few(product(CASES, ("original", "native")), QUICK.__contains__)
)
def test_example(name: str, layout: str, source: Path, tmp_path: Path) -> None:
    files, learning = CASES[name]
    command = [*name.split(), "--model", str(source / layout)]
    for file in files.split():
        command += ["--data", str(source / "data" / file)]
    # a tiny model needs larger rates
    length = ["--steps", "10", "--batch-tokens", "200", "--lr-factor", "200"]
    command += ["--out", str(tmp_path), *length]
    cli.main(command)
    losses = [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3]), losses

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert all(before == after for before, after in manifest["frozen"].values())
    before, after = (load_checkpoint(p).state_dict() for p in (source / layout, tmp_path / "model"))
    changed = {n for n in after if n not in before or not torch.equal(before[n], after[n])}
    assert {part for n in changed for part in learning if part in n} == set(learning)
    assert all(any(part in n for part in learning) for n in changed)
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    trained = load_file(tmp_path / "trained.safetensors")
    assert changed <= set(trained)
    assert {t.dtype for t in trained.values()} == {torch.float32}

    phi = polyphi.load(tmp_path / "model")
    adapter = "medical" if "medical" in phi.config.adapters else "auto"
    picture, clip = Image(source / "data/1.png"), Audio(source / "data/1.wav")
    for media in ((picture,), (clip,), (picture, clip), ()):
        messages = [Message.user(*media, "which colour is it")]
        answer = phi.generate(messages, sampling=SamplingParams(max_tokens=4), adapter=adapter)
        called_for = "vision" if picture in media else "speech" if media else None
        assert answer.adapter == ("medical" if adapter == "medical" else called_for)


@pytest.mark.parametrize(("base", "precision"), few([("int4", "fp32"), (None, "bf16")], 1))
def test_preferences_about_pictures(
    base: str | None, precision: str, source: Path, tmp_path: Path
) -> None:
    """The margin grows from 0, and the chosen answer becomes more probable than the rejected one."""
    command = ["finetune", "preferences", "--model", str(source / "native"), "--out", str(tmp_path)]
    command += ["--data", str(source / "data/pairs.jsonl"), "--steps", "12", "--lr-factor", "2000"]
    command += ["--precision", precision, "--batch-tokens", "400"]
    cli.main([*command, *(["--base", base] if base else [])])
    first, *_, last = read_metrics(tmp_path / "metrics.jsonl")
    assert first["margin"] == pytest.approx(0, abs=0.02), "the reference is the model at the start"
    assert last["margin"] > 0.3 and last["accuracy"] == 1 and last["loss"] < first["loss"]
    difference = last["chosen_reward"] - last["rejected_reward"]
    assert last["margin"] == pytest.approx(difference, rel=1e-4)

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert all(before == after for before, after in manifest["frozen"].values())
    before, after = (
        load_checkpoint(p).state_dict() for p in (source / "native", tmp_path / "model")
    )
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed and all(".lora.vision." in n for n in changed)
    lead = {}
    for folder in (source / "native", tmp_path / "model"):
        phi = polyphi.load(folder, quant=base)
        messages = [Message.user(Image(source / "data/0.png"), "which colour is it")]
        red, green = (sum(phi.score(messages, word)) for word in ("red", "green"))
        lead[folder] = red - green
    assert lead[tmp_path / "model"] > max(0, lead[source / "native"] + 3)


def test_motion(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Data, the modality and its stage, the baseline on digits, the table."""
    data = run_file(EXAMPLES / "motion/data.py")
    monkeypatch.setattr(data, "GENERATED", {"train": 12, "test": 6})
    monkeypatch.setattr(data, "unpack", lambda *_: None)
    data.main(tmp_path / "motion")
    rows = [json.loads(line) for line in (tmp_path / "motion/train.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all((tmp_path / "motion" / row["motion"]).is_file() for row in rows)
    assert {row["id"].partition("/")[0] for row in rows} <= {"axis", "speed", "turn", "knocks"}
    for name, modalities in (("motion", ["motion.py"]), ("digits", [])):
        stage = load_stage(EXAMPLES / f"motion/{'stage' if name == 'motion' else name}.py")
        file = tmp_path / "motion" / ("train.jsonl" if name == "motion" else "digits_train.jsonl")
        finetune(
            replace(stage, batch_tokens=256),
            [str(file)],
            tmp_path / name,
            checkpoint=source / "native",
            finetuning=FinetuneOptions(steps=1),
            modalities=[load_modality(EXAMPLES / "motion" / m) for m in modalities],
            report=lambda _: None,
        )
    score = run_file(EXAMPLES / "motion/score.py")
    score.main(tmp_path / "motion", str(tmp_path / "motion/model"), str(tmp_path / "digits/model"))
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["task", "rows", "motion", "adapter", "off", "digits", "commonest"]
    assert table[-1].split()[:2] == ["all", "6"]


def test_motion_in_parquet(tmp_path: Path) -> None:
    modality = load_modality(EXAMPLES / "motion/motion.py")
    columns = {name: [float(i), 2.0] for i, name in enumerate(("gz", "ax", "ay", "az", "gx", "gy"))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    values = modality.read(tmp_path / "a.parquet")
    assert values.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 0.0], [2.0] * 6]


REFUSED = (
    *('images="digit.png"', "max_new_tokens", "do_sample", "num_beams", "transcribe(samples)"),
    *("language=", "embed(", "score(", "user(None)", "Image(3)", "load(None)", "torch_dtype"),
)
"""What stands in the first guesses that are refused."""


def test_first_guesses_work_or_are_refused_in_one_line(source: Path) -> None:
    phi = polyphi.load(source / "native", device="cpu")
    results = run_file(EXAMPLES / "first_guesses_python.py").outcomes(phi)
    assert len(results) >= 30
    for guess, result in results:
        is_refused = isinstance(result, ValueError)
        assert is_refused == any(part in guess for part in REFUSED), (guess, result)
        assert not is_refused or "\n" not in str(result)

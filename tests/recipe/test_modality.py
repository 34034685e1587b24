"""A user's modality in a recipe: its corpus, its stage, its held-out task, its folder of the exported model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import polyphi
from polyphi.cli.train import train
from polyphi.train.options import FinetuneOptions
from polyphi.types.messages import Message
from polyphi_recipe.graph import evaluation, export, find, plan
from polyphi_recipe.graph.graph import Run
from tests.fixtures import published
from tests.fixtures.items import FILE, csv, series

STAGE = """
from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage
stage = Stage(
    name="walks", start={"decoder.*": "text_4_align"},
    trainable={"motion.*": 1e-3, "decoder.*.lora.motion.*": 1e-3},
    data=Mix({"walks": 1}), objective=NextToken(), context=200, batch_tokens=100, steps=3,
)
"""
RECIPE = """
size = "micro"
targets = ["walks"]
[parts]
decoder = "model"
[corpora.walks]
sources = ["walks.jsonl"]
held_out = 0.3
[stages.walks]
file = "walks.py"
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    published.write(tmp_path / "model", "mini", torch.float32)
    with (tmp_path / "walks.jsonl").open("w") as file:
        for n in range(24):
            (tmp_path / f"{n}.csv").write_bytes(csv(8 + n, n))
            row = {"motion": f"{n}.csv", "question": "what is it", "answer": ("red", "blue")[n % 2]}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "walks.py").write_text(STAGE)
    (tmp_path / "lab.toml").write_text(RECIPE)
    return tmp_path / "lab.toml"


def test_a_stage_of_the_recipe_takes_other_batch_tokens(lab: Path, tmp_path: Path) -> None:
    out, modality = tmp_path / "run", (str(FILE),)

    def command(**finetuning: Any) -> None:
        options = FinetuneOptions(**finetuning)
        train("walks", recipe=str(lab), out=out, finetuning=options, modality=modality)

    command(batch_tokens=128)
    folder = out / "stages/walks"
    budget = json.loads((folder / "manifest.json").read_text())["budget"]
    assert budget["steps"] == 3 and budget["batch_tokens"] == 128
    tokens = [json.loads(line)["tokens"] for line in (folder / "metrics.jsonl").open()]
    assert 100 < max(tokens) <= 128  # more than the stage's own
    command()  # finished
    with pytest.raises(ValueError, match="walks is finished, with 128 tokens of a step"):
        command(batch_tokens=64)
    with pytest.raises(ValueError, match="--steps needs a stage of your own"):
        command(steps=2)


def test_from_sources_to_answers(lab: Path, tmp_path: Path) -> None:
    run = Run(lab, tmp_path / "run", modalities=[str(FILE)], console=Console(quiet=True))
    run.train("walks")
    manifest = json.loads((run.folder.stages / "walks" / "manifest.json").read_text())
    trained = {row["module"]: row["from"] for row in manifest["trainable"]}
    assert trained["motion.*"] == trained["decoder.*.lora.motion.*"] == ["fresh"]
    assert trained["(frozen)"] == ["model"] and manifest["counters"]["motion values"] > 0
    export.export(run.recipe, run.folder, run.models)
    evaluation.evaluate(run.recipe, run.folder, run.models)
    lines = [
        json.loads(line)
        for line in (run.folder.path / "eval/own_walks.jsonl").read_text().splitlines()
    ]
    assert {line.get("condition") for line in lines} >= {
        "with",
        "without",
        "shuffled",
        "no_adapter",
    }
    phi = polyphi.load(run.folder.path, device="cpu", modalities=[FILE])
    assert phi.generate([Message.user(series(), "what is it")]).adapter == "motion"
    before = polyphi.load(tmp_path / "model", device="cpu").logits([Message.user("red")])[1]
    assert torch.equal(phi.logits([Message.user("red")])[1], before)
    # The same command continues the run, one without the file doesn't.
    Run(lab, tmp_path / "run", modalities=[str(FILE)])
    with pytest.raises(ValueError, match="holds a run of"):
        Run(lab, tmp_path / "run")


def test_a_plan_counts_its_tokens_and_flops(lab: Path) -> None:
    recipe = find.of(lab, [str(FILE)])
    target = plan.stage_model("walks", recipe)
    assert target.trains("motion.") and target.config.towers == {"motion": "motion"}
    with pytest.raises(ValueError, match=r"'motion\.\*' matches no parameter"):
        plan.stage_model("walks", find.of(lab))

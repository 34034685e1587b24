"""A finished run, its exported model and an interrupted training of an earlier version can be read.

`earlier_version.tar.xz` was written by the version before the packages had their present names: a micro run without its
data and weights of stages, the first steps of a small training, and logits of the run's `mini`.
"""

import hashlib
import html
import io
import json
import tarfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.small import EVERYTHING, run, trajectory, write_corpora

import polyphi
from polyphi.cli import main
from polyphi.runtime.progress import read_metrics
from polyphi.train.stage import Mix
from polyphi_recipe.graph import Run


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(Path(__file__).with_name("earlier_version.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_the_page_of_a_finished_run_is_made_again(earlier: Path) -> None:
    before = json.loads((earlier / "run" / "report.json").read_text())
    page = Run("micro", earlier / "run").page()
    after = json.loads((earlier / "run" / "report.json").read_text())
    text = page.read_text()
    assert all(html.escape(row["title"]) in text for row in before["tasks"])
    assert after["tasks"] == before["tasks"]
    assert after["freeze"] == before["freeze"]
    for old, new in zip(before["stages"], after["stages"], strict=True):
        del old["learned_parts"], new["learned_parts"]  # one of them has another name now
        assert new == old


def test_recorded_answers_have_the_same_scores(earlier: Path) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        main(["eval", "score", str(earlier / "run" / "eval")])
    scores = {row["task"]: row["score"] for row in json.loads(out.getvalue())}
    report = json.loads((earlier / "run" / "report.json").read_text())
    assert scores == {row["task"]: row["score"] for row in report["tasks"]}


def test_an_exported_model_has_the_same_logits(earlier: Path) -> None:
    """CPUs round sums in different orders: 1e-5 was the largest difference, with logits up to 1."""
    expected: dict[str, Any] = json.loads((earlier / "mini_logits.json").read_text())
    _, logits = polyphi.load(earlier / "run" / "mini").logits(expected["ids"])
    np.testing.assert_allclose(logits[:, :8], expected["logits"], atol=1e-4)


def draws_as_with_avx2() -> bool:
    """Whether torch draws the normal numbers that it draws on a CPU with AVX2, where the training began. It has another
    formula on other CPUs, whose last digits differ."""
    drawn = torch.empty(1000).normal_(generator=torch.Generator().manual_seed(0))
    return hashlib.sha256(drawn.numpy().tobytes()).hexdigest().startswith("43678415636bbad8")


def test_an_interrupted_training_resumes(earlier: Path, tmp_path: Path) -> None:
    stage = replace(
        EVERYTHING,
        name="earlier",
        trainable={"vision.projector.*": 1e-3, "decoder.layers.0.*.lora.vision.*": 2e-3},
        data=Mix({"pictures": 1.0}),
    )
    out = earlier / "training"
    done = read_metrics(out / "metrics.jsonl")
    data = write_corpora(tmp_path)
    if not draws_as_with_avx2():
        with pytest.raises(ValueError, match="started from other weights"):
            run(out, data, stage)
        return
    run(out, data, stage)
    steps = trajectory(out)
    assert read_metrics(out / "metrics.jsonl")[: len(done)] == done
    assert len(steps) == len(done) + 1
    whole = read_metrics(out / "whole.jsonl")
    assert steps[-1][:2] == (whole[-1]["step"], whole[-1]["ids"])
    assert steps[-1][2:] == pytest.approx(
        [whole[-1][key] for key in ("loss", "gradient_norm", "rate")], rel=1e-4
    )

"""The loop's guards: who learns, what stays frozen, what must not be infinite; and that cutting a step changes
nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.small import BUDGET, EVERYTHING, LANGUAGE, make_model, make_processor, run, told

from polyphi.logs import read_metrics
from polyphi.train import loop
from polyphi.train.aed import AttentionDecoder
from polyphi.train.contrastive import Contrastive
from polyphi.train.loss import NextToken
from polyphi.train.preference import DPO
from polyphi.train.stage import Mix

TWO = replace(BUDGET, steps=2)


def test_a_stage_trains_what_it_names_and_proves_it(corpora: Path, tmp_path: Path) -> None:
    model = make_model(make_processor())
    before = {name: p.clone() for name, p in model.named_parameters()}
    said: list[object] = []
    manifest = run(tmp_path, corpora, model=model, tell=said.append)
    after = dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = load_file(tmp_path / "trained.safetensors")
    assert moved <= set(trained) and "vision.projector.global_separator" in moved
    assert all(torch.equal(after[name], tensor) for name, tensor in trained.items())
    assert all(first == last for first, last in manifest["frozen"].values())
    assert set(manifest["frozen"]) | set(trained) == set(model.state_dict())
    assert [row["module"] for row in manifest["who_learns"]] == [*EVERYTHING.learn, "(frozen)"]
    assert sum(row["parameters"] for row in manifest["who_learns"]) == sum(
        p.numel() for p in model.parameters()
    )
    records = read_metrics(tmp_path / "metrics.jsonl")
    for key in ("tokens", "supervised", "crops", "frames"):
        assert manifest["counters"][key] == sum(r[key] for r in records) > 0
    assert json.loads((tmp_path / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "checkpoints").exists()
    assert said and said[0].row_count == len(EVERYTHING.learn) + 1

    # Once more is only a look: nothing trains, the tensors are put in place.
    fresh = make_model(make_processor())
    assert run(tmp_path, corpora, model=fresh) == json.loads(json.dumps(manifest))
    assert all(torch.equal(p, after[name]) for name, p in fresh.named_parameters())
    with pytest.raises(ValueError, match="holds a run made with seed 0, now it is 1"):
        run(tmp_path, corpora, seed=1)


def test_accumulation_equals_a_big_batch(corpora: Path, tmp_path: Path) -> None:
    for micro_tokens in (1000, 60):
        run(tmp_path / str(micro_tokens), corpora, micro_tokens=micro_tokens)
    big, small = told(tmp_path / "1000"), told(tmp_path / "60")
    assert [r[:2] for r in big] == [r[:2] for r in small]
    assert [r[2:4] for r in big] == [pytest.approx(r[2:4], rel=1e-4) for r in small]


def test_bf16_is_near_fp32(corpora: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        run(tmp_path / precision, corpora, LANGUAGE, TWO, precision=precision)
    exact, narrow = told(tmp_path / "fp32"), told(tmp_path / "bf16")
    assert [r[2] for r in exact] == pytest.approx([r[2] for r in narrow], rel=1e-2)
    assert all(
        t.dtype == torch.float32
        for t in load_file(tmp_path / "bf16" / "trained.safetensors").values()
    )


def test_a_frozen_tensor_that_changes_is_caught(corpora: Path, tmp_path: Path) -> None:
    class Meddling(NextToken):
        def loss(self, model, module, state, batch):
            with torch.no_grad():
                model.decoder.norm.weight[0] += 1e-6
            return super().loss(model, module, state, batch)

    with pytest.raises(
        RuntimeError, match=r"everything changed frozen tensors: decoder.norm.weight \(1 in all\)"
    ):
        run(tmp_path, corpora, replace(EVERYTHING, objective=Meddling()), TWO)
    assert not (tmp_path / "manifest.json").exists()


def test_a_group_without_gradient_is_caught(corpora: Path, tmp_path: Path) -> None:
    deaf = replace(EVERYTHING, data=Mix({"pictures": 1}))
    with pytest.raises(
        RuntimeError,
        match=r"'audio.encoder.\*' is to be learned, but its \d+ tensors got no gradient",
    ):
        run(tmp_path, corpora, deaf, TWO)


def test_a_loss_that_is_not_finite_names_its_samples(corpora: Path, tmp_path: Path) -> None:
    model = make_model(make_processor())
    with torch.no_grad():
        model.decoder.norm.weight[3] = torch.nan
    with pytest.raises(RuntimeError, match=r"the loss is nan at step 0; .*pictures/\d+"):
        run(tmp_path, corpora, model=model)


def test_samples_left_out_are_counted_and_told(corpora: Path, tmp_path: Path) -> None:
    said: list[object] = []
    manifest = run(
        tmp_path,
        corpora,
        replace(LANGUAGE, data=Mix({"documents": 2, "questions": 1})),
        replace(TWO, context=17),
        tell=said.append,
    )
    assert manifest["counters"]["skipped"] == manifest["counters"]["skipped questions"] > 0
    assert (
        sum(
            "samples of questions are left out, the first: questions/" in str(line) for line in said
        )
        == 1
    )


def test_watching_reaches_the_metrics_and_changes_nothing(corpora: Path, tmp_path: Path) -> None:
    def watch(model) -> dict[str, float]:
        assert not model.training
        return {"noise": float(torch.rand(()))}

    run(tmp_path / "plain", corpora, budget=TWO, dropout=0.5)
    run(tmp_path / "watched", corpora, budget=TWO, dropout=0.5, watch=watch, watch_steps=1)
    assert told(tmp_path / "plain") == told(tmp_path / "watched")
    assert all("noise" in r["watch"] for r in read_metrics(tmp_path / "watched" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("objective", "corpus", "learn"),
    [
        (DPO(), "questions", ["decoder.*"]),
        (Contrastive(width=16), "pictures", ["vision.encoder.*", "objective.*"]),
        (AttentionDecoder(), "sounds", ["audio.encoder.*", "objective.*"]),
    ],
)
def test_other_objectives_fit_the_loop(
    objective, corpus: str, learn: list[str], corpora: Path, tmp_path: Path
) -> None:
    stage = replace(
        EVERYTHING, data=Mix({corpus: 1}), objective=objective, learn=dict.fromkeys(learn, 1e-3)
    )
    manifest = run(tmp_path, corpora, stage, TWO)
    assert manifest["steps"] == 2
    kept = load_file(tmp_path / "trained.safetensors")
    assert any(name.startswith("objective.") for name in kept) == ("objective.*" in learn)


def test_the_code_revision_is_a_hash_of_the_sources() -> None:
    assert len(loop.code_revision()) == 64


def test_contrastive_steps_are_never_cut(corpora: Path, tmp_path: Path) -> None:
    learn = {"vision.encoder.*": 1e-3, "objective.*": 1e-3}
    stage = replace(
        EVERYTHING, data=Mix({"pictures": 1}), objective=Contrastive(width=16), learn=learn
    )
    for micro_tokens in (1000, 1):
        run(tmp_path / str(micro_tokens), corpora, stage, TWO, micro_tokens=micro_tokens)
    assert told(tmp_path / "1000") == told(tmp_path / "1")

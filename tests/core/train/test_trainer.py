"""The loop's checks of trainable and frozen tensors and of finite losses; and that dividing a step into packs changes
nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polyphi.data import shards
from polyphi.runtime import progress
from polyphi.runtime.progress import read_metrics
from polyphi.train import freeze, state, trainer
from polyphi.train.aed import AttentionDecoder
from polyphi.train.contrastive import Contrastive
from polyphi.train.loss import NextToken
from polyphi.train.preference import DPO
from polyphi.train.stage import Mix
from tests.core.train import small
from tests.core.train.small import (
    BUDGET,
    CONTRAST,
    EVERYTHING,
    LANGUAGE,
    make_model,
    make_processor,
    run,
    trajectory,
)

TWO = replace(BUDGET, steps=2)


def test_a_stage_trains_what_it_names_and_proves_it(corpora: Path, tmp_path: Path) -> None:
    model = make_model(make_processor())
    before = {name: p.clone() for name, p in model.named_parameters()}
    messages: list[object] = []
    manifest = run(tmp_path, corpora, model=model, report=messages.append)
    after = dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = load_file(tmp_path / "trained.safetensors")
    assert moved <= set(trained) and "vision.projector.global_separator" in moved
    assert all(torch.equal(after[name], tensor) for name, tensor in trained.items())
    assert all(first == last for first, last in manifest["frozen"].values())
    assert set(manifest["frozen"]) | set(trained) == set(model.state_dict())
    assert [row["module"] for row in manifest["trainable"]] == [*EVERYTHING.trainable, "(frozen)"]
    assert sum(row["parameters"] for row in manifest["trainable"]) == sum(
        p.numel() for p in model.parameters()
    )
    records = read_metrics(tmp_path / "metrics.jsonl")
    for key in ("tokens", "supervised", "crops", "frames"):
        assert manifest["counters"][key] == sum(r[key] for r in records) > 0
        assert all(isinstance(r[key], int) for r in records)  # sums, not means over a step's units
    assert json.loads((tmp_path / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "checkpoints").exists()
    assert messages and messages[0].row_count == len(EVERYTHING.trainable) + 1

    # A second call trains nothing and loads the tensors.
    fresh = make_model(make_processor())
    assert run(tmp_path, corpora, model=fresh) == json.loads(json.dumps(manifest))
    assert all(torch.equal(p, after[name]) for name, p in fresh.named_parameters())
    with pytest.raises(ValueError, match=r"seed 0, .*1"):
        run(tmp_path, corpora, seed=1)


def test_accumulation_equals_a_big_batch(corpora: Path, tmp_path: Path) -> None:
    for micro_tokens in (1000, 60):
        run(tmp_path / str(micro_tokens), corpora, micro_tokens=micro_tokens)
    with pytest.raises(ValueError, match="found 0"):
        run(tmp_path / "0", corpora, micro_tokens=0)
    big, small = trajectory(tmp_path / "1000"), trajectory(tmp_path / "60")
    assert [r[:2] for r in big] == [r[:2] for r in small]
    assert [r[2:4] for r in big] == [pytest.approx(r[2:4], rel=1e-4) for r in small]


def test_bf16_is_near_fp32(corpora: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        run(tmp_path / precision, corpora, LANGUAGE, TWO, precision=precision)
    exact, bf16 = trajectory(tmp_path / "fp32"), trajectory(tmp_path / "bf16")
    assert [r[2] for r in exact] == pytest.approx([r[2] for r in bf16], rel=1e-2)
    assert all(
        t.dtype == torch.float32
        for t in load_file(tmp_path / "bf16" / "trained.safetensors").values()
    )


def test_a_frozen_tensor_that_changes_is_caught(corpora: Path, tmp_path: Path) -> None:
    class Meddling(NextToken):
        def loss(self, model, head, reference, batch):
            with torch.no_grad():
                model.decoder.norm.weight[0] += 1e-6
            return super().loss(model, head, reference, batch)

    with pytest.raises(RuntimeError, match=r"everything .*decoder.norm.weight \(1 "):
        run(tmp_path, corpora, replace(EVERYTHING, objective=Meddling()), TWO)
    assert not (tmp_path / "manifest.json").exists()


def test_resuming_with_a_changed_base_is_caught(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ways: the resumed run trains another tensor, or an optimiser has changed a frozen one meanwhile."""
    stopped = replace(EVERYTHING, objective=small.Fails(1))
    with pytest.raises(RuntimeError, match="bad luck"):
        run(tmp_path, corpora, stopped, TWO, checkpoint_seconds=0.0)

    def freeze_less(stage, model, head):
        parameters = freeze.freeze(stage, model, head)
        model.decoder.layers[0].mlp.down_proj.weight.requires_grad_(True)
        return parameters

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "freeze", freeze_less)
        with pytest.raises(ValueError, match=r"1 of \d+ .*down_proj"):
            run(tmp_path, corpora, budget=TWO)
    touched = make_model(make_processor())
    weight = touched.decoder.layers[0].mlp.down_proj.weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=1e-6).step()
    with pytest.raises(ValueError, match=r"1 of \d+ .*down_proj"):
        run(tmp_path, corpora, budget=TWO, model=touched)
    run(tmp_path, corpora, budget=TWO)


def test_a_group_without_gradient_is_caught(corpora: Path, tmp_path: Path) -> None:
    images_only = replace(EVERYTHING, data=Mix({"pictures": 1}))
    with pytest.raises(
        RuntimeError,
        match=r"'audio.encoder.\*' .*\d+ tensors",
    ):
        run(tmp_path, corpora, images_only, TWO)


def test_a_loss_that_is_not_finite_names_its_samples(corpora: Path, tmp_path: Path) -> None:
    model = make_model(make_processor())
    with torch.no_grad():
        model.decoder.norm.weight[3] = torch.nan
    with pytest.raises(RuntimeError, match=r"nan at step 2; 3 .*pictures/\d+"):
        run(tmp_path, corpora, model=model)


def test_skipped_samples_are_counted_and_reported(corpora: Path, tmp_path: Path) -> None:
    messages: list[object] = []
    manifest = run(
        tmp_path,
        corpora,
        replace(LANGUAGE, data=Mix({"documents": 2, "questions": 1})),
        replace(TWO, context=17),
        report=messages.append,
    )
    assert manifest["counters"]["skipped"] == manifest["counters"]["skipped questions"] > 0
    assert sum("samples of questions, the first: questions/" in str(line) for line in messages) == 1


def test_watching_reaches_the_metrics_and_changes_nothing(corpora: Path, tmp_path: Path) -> None:
    def watch(model) -> dict[str, float]:
        assert not model.training
        return {"noise": float(torch.rand(()))}

    run(tmp_path / "plain", corpora, budget=TWO, dropout=0.5)
    run(tmp_path / "watched", corpora, budget=TWO, dropout=0.5, watch=watch, watch_every=1)
    assert trajectory(tmp_path / "plain") == trajectory(tmp_path / "watched")
    assert all("noise" in r["watch"] for r in read_metrics(tmp_path / "watched" / "metrics.jsonl"))


def test_losses_by_modality_add_up(corpora: Path, tmp_path: Path) -> None:
    run(tmp_path, corpora, budget=TWO)
    for record in read_metrics(tmp_path / "metrics.jsonl"):
        losses = [record[f"loss {kind}"] for kind in ("text", "image", "audio")]
        assert min(losses) < record["loss"] < max(losses) and "loss image and audio" not in record
    run(tmp_path / "text", corpora, LANGUAGE, TWO)
    for record in read_metrics(tmp_path / "text" / "metrics.jsonl"):
        assert record["loss text"] == pytest.approx(record["loss"]) and "loss image" not in record


def test_exported_weights_can_be_averages(corpora: Path, tmp_path: Path) -> None:
    averages = []

    def watch(model) -> dict[str, float]:
        averages.append(model.decoder.norm.weight.clone())
        return {}

    stage = replace(LANGUAGE, ema=0.75)
    first = make_model(make_processor(), text=True).decoder.norm.weight.clone()
    model = make_model(make_processor(), text=True)
    run(tmp_path / "straight", corpora, stage, model=model, watch=watch, watch_every=1)
    for weights in averages:
        first = 0.75 * first + 0.25 * weights
    torch.testing.assert_close(model.decoder.norm.weight, first)
    with pytest.raises(RuntimeError, match="bad luck"):
        half = replace(stage, objective=small.Fails(2))
        run(tmp_path / "half", corpora, half, checkpoint_seconds=0.0)
    run(tmp_path / "half", corpora, stage)
    one, two = (load_file(tmp_path / name / "trained.safetensors") for name in ("straight", "half"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_deterministic_kernels_are_set_and_reset(corpora: Path, tmp_path: Path) -> None:
    def watch(model) -> dict[str, float]:
        return {"deterministic": float(torch.are_deterministic_algorithms_enabled())}

    for name, expected in (("plain", False), ("deterministic", True)):
        options = {"deterministic": expected, "watch": watch, "watch_every": 1}
        run(tmp_path / name, corpora, budget=TWO, **options)
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        assert all(r["watch"]["deterministic"] == expected for r in records)
    assert not torch.are_deterministic_algorithms_enabled()
    assert trajectory(tmp_path / "plain") == trajectory(tmp_path / "deterministic")


def test_flops_are_counted_beside_the_peak(corpora: Path, tmp_path: Path) -> None:
    counted = {"flops": lambda pack: 1000.0 * len(pack), "peak_flops": 1e9}
    run(tmp_path, corpora, budget=TWO, **counted)
    for record in read_metrics(tmp_path / "metrics.jsonl"):
        assert record["flops"] == 1000 * record["tokens"]
        share = record["flops_per_second"] / 1e9
        assert record["utilisation"] == pytest.approx(share, rel=1e-2)


def test_trackers_get_every_record(corpora: Path, tmp_path: Path) -> None:
    run(tmp_path, corpora, LANGUAGE, TWO, track=["tensorboard"])
    expected = [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    drawn = [(e.step, e.value) for e in events.Scalars("loss")]
    assert [s for s, _ in drawn] == [s for s, _ in expected] == [0, 1]
    assert [v for _, v in drawn] == pytest.approx([v for _, v in expected])
    with pytest.raises(ValueError, match="'paper'"):
        progress.tracker("paper", tmp_path, "language")


@pytest.mark.parametrize(
    ("objective", "corpus", "trainable"),
    [
        (DPO(), "questions", ["decoder.*"]),
        (Contrastive(width=16), "pictures", ["vision.encoder.*", "objective.*"]),
        (AttentionDecoder(), "sounds", ["audio.encoder.*", "objective.*"]),
    ],
)
def test_other_objectives_fit_the_loop(
    objective, corpus: str, trainable: list[str], corpora: Path, tmp_path: Path
) -> None:
    stage = replace(
        EVERYTHING,
        data=Mix({corpus: 1}),
        objective=objective,
        trainable=dict.fromkeys(trainable, 1e-3),
    )
    manifest = run(tmp_path, corpora, stage, TWO)
    assert manifest["steps"] == 2
    trained = load_file(tmp_path / "trained.safetensors")
    assert any(name.startswith("objective.") for name in trained) == ("objective.*" in trainable)


def test_the_code_revision_is_a_hash_of_the_sources() -> None:
    assert len(state.code_revision()) == 64


def test_contrastive_steps_are_the_same_in_any_packs(corpora: Path, tmp_path: Path) -> None:
    for micro_tokens in (1000, 1):
        run(tmp_path / str(micro_tokens), corpora, CONTRAST, TWO, micro_tokens=micro_tokens)
    one, two = (trajectory(tmp_path / str(n)) for n in (1000, 1))
    assert [r[:2] for r in one] == [r[:2] for r in two]
    for row, other in zip(one, two, strict=True):
        assert row[2:] == pytest.approx(other[2:], rel=1e-6)


def test_a_damaged_image_is_skipped_named_and_counted(corpora: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "pictures" / "train"
    samples = list(shards.Shards(corpora / "pictures" / "train"))
    user, answer = samples[4].messages
    half = replace(user.parts[0], source=user.parts[0].source[:-2000])
    samples[4] = replace(
        samples[4], messages=(replace(user, parts=(half, *user.parts[1:])), answer)
    )
    shards.write(folder, samples, pipeline="test")
    stage = replace(EVERYTHING, data=Mix({"pictures": 1.0}), trainable={"vision.projector.*": 1e-3})
    manifest = run(tmp_path / "out", tmp_path / "data", stage)
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert lines and {line["id"] for line in lines} == {"pictures/4"}
    assert all("damaged or truncated" in line["reason"] for line in lines)
    assert manifest["counters"]["corrupt"] == manifest["counters"]["skipped"] == len(lines)


def test_documents_are_cut_and_counted(corpora: Path, tmp_path: Path) -> None:
    budget = replace(BUDGET, context=12)
    manifest = run(tmp_path, corpora, replace(LANGUAGE, data=Mix({"documents": 1})), budget)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert manifest["counters"]["cut"] == sum(r["cut"] for r in records) > 0
    assert all(0 <= r["empty"] < 1 for r in records)


@pytest.mark.long
def test_worker_processes_change_nothing(corpora: Path, tmp_path: Path) -> None:
    run(tmp_path / "none", corpora, budget=TWO)
    run(tmp_path / "two", corpora, budget=TWO, workers=2)
    assert trajectory(tmp_path / "two") == trajectory(tmp_path / "none")

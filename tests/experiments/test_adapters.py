"""What the adapters add: leads over the model without them and over models that were trained with a change."""

import json
from pathlib import Path

import pytest
import torch

from experiments import adapters
from polyphi.train.options import TrainOptions
from polyphi_eval.baselines import sample_vectors
from polyphi_recipe import stages
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.stages.sizes import NANO
from tests.fixtures.made_run import TASKS, evaluate


def test_leads_are_of_equal_samples_and_the_means_of_modalities(tmp_path: Path) -> None:
    media = [task for task in TASKS if task.modality in ("vision", "speech", "joint")]
    evaluate(tmp_path / "a", 24, tasks=media)
    evaluate(tmp_path / "b", 24, skill={task.name: 0.2 for task in media}, tasks=media)
    answers = {"with": [tmp_path / "a" / "eval"] * 2, "control": [tmp_path / "b" / "eval"] * 2}
    table = adapters.compare(media, answers)
    assert {row["task"] for row in table["tasks"]} == {task.name for task in media}
    (row,) = (row for row in table["tasks"] if row["task"] == "digit")
    own, other = (
        sum(value for value, _ in sample_vectors(folder / "eval" / "digit.jsonl").values())
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert row["leads"]["control"]["value"] == pytest.approx(100 * (own - other) / 24)
    assert row["leads"]["no_adapter"]["verdict"] == "holds"
    of_speech = [
        r["leads"]["control"]["value"] for r in table["tasks"] if r["modality"] == "speech"
    ]
    mean = table["means"]["speech"]["control"]["value"]
    assert mean == pytest.approx(sum(of_speech) / len(of_speech))
    table |= {"runs": ["a", "b"]}
    text = adapters.markdown(table)
    assert (
        text.count("\n| ") == 2 + len(media) + len(table["means"]) and "lead over control" in text
    )
    adapters.draw(table, tmp_path / "leads.png")
    assert (tmp_path / "leads.png").read_bytes().startswith(b"\x89PNG")


def test_runs_may_have_different_samples(tmp_path: Path) -> None:
    """Runs with other seeds draw other held-out rows: each run is compared with itself."""
    task = next(task for task in TASKS if task.name == "digit")
    for name, skill, shift in (
        ("a", 0.9, ""),
        ("b", 0.9, "other-"),
        ("c", 0.2, ""),
        ("d", 0.2, "other-"),
    ):
        evaluate(tmp_path / name, 40, skill={task.name: skill}, tasks=[task])
        path = tmp_path / name / "eval" / "digit.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**x, "id": shift + x["id"]}) + "\n" for x in lines))
    folders = {name: tmp_path / name / "eval" for name in "abcd"}
    answers = {"with": [folders["a"], folders["b"]], "control": [folders["c"], folders["d"]]}
    (row,) = adapters.compare([task], answers)["tasks"]
    one = {"with": [folders["a"]], "control": [folders["c"]]}
    (alone,) = adapters.compare([task], one)["tasks"]
    for name, lead in row["leads"].items():
        assert lead["value"] == pytest.approx(
            alone["leads"][name]["value"]
        )  # the same answers twice
        assert (
            lead["high"] - lead["low"] < alone["leads"][name]["high"] - alone["leads"][name]["low"]
        )


def test_changes_keep_everything_else() -> None:
    last = ["vision_4_multiframe", "speech_2_post", "joint_1_vision_speech"]
    assert adapters.CONTROL.stages == ["vision_3_generative", *last]
    for name in stages.ORDER:
        own = stages.at_size(name, NANO)
        changed = adapters.CONTROL.changed(own)
        assert changed.trainable and not any(".lora." in glob for glob in changed.trainable)
        assert changed.trainable.items() <= own.trainable.items()
        assert (changed.objective, changed.data) == (own.objective, own.data)
        changed = adapters.NO_ALIGNMENT.changed(own)
        assert (changed.trainable, changed.data) == (own.trainable, own.data)
        assert not getattr(changed.objective, "align", 0) + getattr(changed.objective, "naming", 0)
    again = set(adapters.NO_ALIGNMENT.stages)
    assert again == {n for n in stages.ORDER if n.startswith(("vision", "joint"))} | {
        "speech_1_pretrain",
        "speech_2_post",
    }


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no evaluation of joint_1.*`polyphi reproduce micro"):
        adapters.measure([Run("micro", tmp_path / "run")])


@pytest.mark.long
def test_a_control_of_a_micro_run(tmp_path: Path) -> None:
    run = Run("micro", tmp_path / "run", options=TrainOptions(precision="fp32"))
    run.reproduce()
    table = adapters.measure([run], alignment=True)
    assert json.loads((run.folder.path / "adapters.json").read_text()) == table
    assert {"no_adapter", "control", "no_alignment"} == set(table["means"]["vision"])
    folder = run.folder.path / "changed" / "control" / "stages"
    after = run.recipe.lineage.after(adapters.LAST)
    config = run.recipe.lineage.configuration(after, run.recipe.size.model, run.processor.tokenizer)
    options = {"untrained": adapters.CONTROL.untrained}
    model, origins = run.recipe.lineage.assemble(after, config, folder, run.seed, **options)
    for name, tensor in model.named_parameters():
        if name.endswith(".b") and ".lora." in name:
            assert not tensor.any() and origins[name] == "fresh"
    own, _ = run.recipe.lineage.assemble(after, config, run.folder.stages, run.seed)
    name = next(n for n, _ in model.named_parameters() if n.startswith("vision.projector."))
    mine, theirs = (dict(m.named_parameters())[name] for m in (model, own))
    assert not torch.equal(mine, theirs), "the projector was trained again"
    before = {p: p.stat().st_mtime_ns for p in run.folder.path.rglob("manifest.json")}
    assert adapters.measure([run], alignment=True)["tasks"] == table["tasks"]
    assert {p: p.stat().st_mtime_ns for p in run.folder.path.rglob("manifest.json")} == before
    (run.folder.path / "changed" / "control" / "run.json").write_text('"other weights"')
    with pytest.raises(ValueError, match="was trained again after"):
        adapters.measure([run])

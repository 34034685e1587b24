"""Comparison of mixes: the arms, the intervals, and the command on a micro run, which resumes."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import ablation
from experiments.__main__ import app as commands
from experiments.ablation import OWN, compare, interval, markdown, mixes
from polyphi import cli
from polyphi.train.options import TrainOptions
from polyphi.train.stage import Mix
from polyphi_recipe import stages
from polyphi_recipe.graph.graph import Run

TEXT = stages.load("text_1_pretrain")
DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def test_a_mix_differs_in_the_named_corpora() -> None:
    own, less, more = mixes(TEXT, ["documents=0", "code=2, reasoning_documents=1"])
    assert (own.name, own.mix) == (OWN, TEXT.data)
    assert set(TEXT.data.weights) - set(less.mix.weights) == {"documents"}
    assert set(TEXT.data.late) - set(less.mix.late) == {"documents"}
    assert more.mix.weights == {**TEXT.data.weights, "code": 2, "reasoning_documents": 1}
    alone = mixes(TEXT, [], leave_one_out=True)
    assert [a.name for a in alone] == [OWN, *(f"{name}=0" for name in TEXT.data.weights)]
    (_, late) = mixes(TEXT, ["copying=0,instructions=0"])
    assert late.mix.late == {}, "where all start late, all start at once"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tools", "NAME=WEIGHT"),
        ("tools=much", "NAME=WEIGHT"),
        ("math=1", "changes nothing"),
        ("math=-1", "positive weights"),
        (",".join(f"{name}=0" for name in TEXT.data.weights), "positive weights"),
    ],
)
def test_an_invalid_mix_is_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixes(TEXT, [change])


def test_intervals_have_their_nominal_coverage() -> None:
    random = np.random.default_rng(0)
    for n in (2, 3, 6):
        intervals = [interval(random.normal(1.0, 2.0, n).tolist()) for _ in range(2000)]
        share = np.mean([low <= 1.0 <= high for low, high in intervals])
        assert 0.935 < share < 0.965, (n, share)
    assert interval([1.0]) is None


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by 1, arms by 0.1: the interval of the difference has width 0."""
    results = [
        {
            OWN: {"loss code": 2.0 + seed, "loss math": 1.0},
            "math=0": {"loss code": 1.9 + seed, "loss math": 1.0 + 0.2 * seed},
        }
        for seed in range(3)
    ]
    table = compare(results)
    code, math_ = (table["arms"]["math=0"][f"loss {c}"] for c in ("code", "math"))
    assert code["difference"] == pytest.approx(-0.1) and code["interval"] == pytest.approx(
        [-0.1] * 2
    )
    assert math_["difference"] == pytest.approx(0.2)
    assert math_["interval"] == pytest.approx(
        [0.2 - 4.302652730 * 0.2 / math.sqrt(3), 0.2 + 4.302652730 * 0.2 / math.sqrt(3)]
    )
    assert table["arms"]["math=0"]["loss of all"]["difference"] == pytest.approx(0.05)
    text = markdown({"stage": "s", "size": "micro", "steps": 2, **table})
    assert "| loss code | 3.000 | **-0.100** (-0.100 to -0.100) |" in text
    assert "| loss math | 1.000 | +0.200 (-0.297 to +0.697) |" in text


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, micro_run: Path) -> Path:
    """A copy of a finished run with its stages only. Corpora are links."""
    folder = tmp_path_factory.mktemp("ablation") / "micro"
    shutil.copytree(micro_run / "stages", folder / "stages")
    shutil.copy(micro_run / "run.json", folder)
    (folder / "data").mkdir()
    for path in (micro_run / "data").iterdir():
        (folder / "data" / path.name).symlink_to(path)
    return folder


@pytest.mark.long
def test_the_command_compares_mixes_and_resumes(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of docs/training.md, at micro size."""
    (command,) = re.findall(r"^python -m experiments (ablate .*)$", DOCS.read_text(), re.MULTILINE)
    assert "--size" not in command and "runs/nano" in command
    arguments = [*command.replace("runs/nano", str(out)).split(), "--size", "micro"]
    trained: list[str] = []
    plain = ablation.trial

    def trial(run, stage, budget, folder, **options):
        if not (folder / "manifest.json").exists():
            trained.append(f"{folder.parent.name} {folder.name}")
        return plain(run, stage, budget, folder, **options)

    monkeypatch.setattr(ablation, "trial", trial)
    cli.main([*arguments, "--seeds", "2"], commands)
    assert "the stage's own mix" in capsys.readouterr().out
    (folder,) = (out / "ablation").iterdir()
    table = json.loads((folder / "table.json").read_text())
    arms = list(table["mixes"])
    assert len(arms) > 2 and len(trained) == 2 * len(arms)
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")
    losses = table["arms"][OWN]
    assert {f"loss {c}" for mix in table["mixes"].values() for c in mix} <= set(losses)
    assert all(math.isfinite(v) for row in losses.values() for v in row["seeds"])
    different = [table["arms"][arm]["loss of all"]["difference"] for arm in arms[1:]]
    assert all(different), "another mix is another model"

    trained.clear()
    cli.main([*arguments, "--seeds", "2"], commands)
    assert not trained, "what is finished isn't run again"
    assert json.loads((folder / "table.json").read_text())["arms"] == table["arms"]
    cli.main([*arguments, "--seeds", "3"], commands)
    assert trained == [f"{arm} seed_2" for arm in arms]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that neither trains nor builds anything."""
    for name in ("train", "build"):
        monkeypatch.setattr(Run, name, lambda self, name: None)
    return Run("micro", tmp_path, console=Console(quiet=True))


def test_what_an_ablation_refuses(empty: Run) -> None:
    with pytest.raises(ValueError, match=r"no corpus 'mine'.*\(polyphi curate"):
        ablation.ablate(empty, "text_1_pretrain", mixes(TEXT, ["mine=3"]), seeds=1)
    with pytest.raises(ValueError, match="DPO"):
        ablation.ablate(empty, "text_4_align", mixes(stages.load("text_4_align"), []), seeds=1)


def test_an_arm_from_another_start_is_refused(empty: Run) -> None:
    manifest = empty.folder.stages / "reasoning_1_pretrain" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    folder = empty.folder.path / "ablation" / "reasoning_2_sft_3" / OWN / "seed_0"
    folder.mkdir(parents=True)
    (folder / "measured.json").write_text('{"start": {"reasoning_1_pretrain": "another hash"}}')
    arm = ablation.NamedMix(OWN, Mix({"reasoning_sft": 1}))
    with pytest.raises(ValueError, match="started from another reasoning_1_pretrain"):
        ablation.ablate(empty, "reasoning_2_sft", [arm], seeds=1, steps=3)


@pytest.mark.long
def test_own_corpora_and_tasks(out: Path) -> None:
    run = Run("micro", out)
    (out / "data/mine").symlink_to(out / "data/copying")
    arms = mixes(TEXT, ["mine=3"])
    table = ablation.ablate(run, "text_1_pretrain", arms, seeds=1, steps=1, tasks=["copy"])
    row = table["arms"]["mine=3"]
    assert row["loss mine"]["interval"] is None and 0 <= row["score copy"]["mean"] <= 1
    assert table["steps"] == 1


@pytest.mark.long
def test_an_arm_records_its_start(out: Path) -> None:
    run = Run("micro", out, options=TrainOptions(precision="fp32"))
    arm = ablation.NamedMix(OWN, Mix({"reasoning_sft": 1}))
    ablation.ablate(run, "reasoning_2_sft", [arm], seeds=1)
    manifest = run.folder.stages / "reasoning_1_pretrain" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(ValueError, match="started from another reasoning_1_pretrain"):
        ablation.ablate(run, "reasoning_2_sft", [arm], seeds=1)

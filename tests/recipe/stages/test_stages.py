"""The sixteen stages are those of the report (2.2.2 and 3): trainable parameters, data, learning rates."""

import importlib

import pytest

from polyphi_eval.benchmark import benchmarks
from polyphi_eval.heldout import find
from polyphi_recipe import stages
from polyphi_recipe.stages import sizes

EVERY = {name: stages.load(name) for name in stages.ORDER}


def test_there_are_sixteen_in_an_order_where_parents_come_first() -> None:
    assert len(EVERY) == 16
    seen: set[str] = set()
    for name, stage in EVERY.items():
        assert stage.name == name
        assert set(stage.parents) <= seen, f"{name} starts from a later stage"
        seen.add(name)


@pytest.mark.parametrize(
    "name", [n for n in stages.ORDER if n.split("_")[0] in ("vision", "speech", "joint")]
)
def test_the_language_model_itself_never_learns_after_alignment(name: str) -> None:
    assert not [g for g in EVERY[name].trainable if g.startswith("decoder.") and ".lora." not in g]


def test_the_rates_and_steps_that_the_report_gives() -> None:
    assert EVERY["speech_1_pretrain"].trainable == {
        "audio.encoder.*": 4e-5,
        "audio.projector.speech.*": 4e-5,
    }
    assert EVERY["speech_1_pretrain"].steps == EVERY["speech_2_post"].steps == 50_000
    assert EVERY["speech_2_post"].trainable == {
        "audio.projector.speech.*": 1e-4,
        "decoder.*.lora.speech.*": 1e-4,
    }
    assert EVERY["vision_4_multiframe"].context == 65_536
    assert set(EVERY["vision_1_align"].trainable) == {"vision.projector.*"}


def test_the_joint_stage_keeps_audio_frozen() -> None:
    assert not [
        g for g in EVERY["joint_1_vision_speech"].trainable if "audio" in g or "speech" in g
    ]


@pytest.mark.parametrize("size", ["micro", "nano", "lab"])
def test_every_size_has_a_budget_and_rows_for_everything(size: str) -> None:
    table = sizes.load(size)
    assert set(table.budgets) == set(stages.ORDER)
    assert set(table.rows) == set(sizes.CORPORA)
    for stage in EVERY.values():
        assert set(stage.data.weights) <= set(sizes.CORPORA)


@pytest.mark.parametrize("size", sizes.SIZES.values(), ids=lambda size: size.name)
def test_corpora_with_fresh_samples_have_a_generator(size: sizes.Size) -> None:
    assert set(size.fresh) <= set(sizes.CORPORA)
    for name in size.fresh:
        corpus = importlib.import_module(f"polyphi_recipe.corpora.{name}").corpus
        assert corpus.fresh is not None, name


def test_what_a_stage_watches_are_tasks_and_benchmarks_without_judges() -> None:
    known = {b.name for b in benchmarks() if b.judging is None} | {task.name for task in find()}
    for stage in EVERY.values():
        assert set(stage.watch) <= known


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="text_1_pretrain"):
        stages.load("text_1_pretrian")
    with pytest.raises(ValueError, match="micro, nano"):
        sizes.load("huge")


def test_two_branches_have_every_stage_after_its_parents() -> None:
    assert sorted(name for branch in stages.BRANCHES for name in branch) == sorted(stages.ORDER)
    for branch in stages.BRANCHES:
        for at, name in enumerate(branch):
            assert not set(EVERY[name].parents) & set(branch[at:]), name


def test_late_corpora_join_earlier_at_smaller_sizes() -> None:
    late = {
        name: stages.at_size("text_3_post", sizes.load(name)).data.late
        for name in ("micro", "nano", "lab")
    }
    assert set(late["nano"].values()) == {8_000} and "sums" not in late["nano"]
    assert set(late["micro"].values()) == {8} and set(late["lab"].values()) == {800_000}
    assert stages.at_size("text_3_post", sizes.load("full")).data.late == {}

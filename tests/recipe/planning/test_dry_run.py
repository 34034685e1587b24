"""Two steps of every stage at its full size (of a text stage at a smaller one too), on tensors without memory, among
a fake group of eight processes."""

from dataclasses import replace

import pytest
import torch

from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.planning.example_rows import example_rows
from polyphi.train.contrastive import Contrastive
from polyphi.train.optimizer import is_layer
from polyphi.types.batch import pack
from polyphi_recipe import stages
from polyphi_recipe.graph import find
from polyphi_recipe.graph.plan import stage_model
from polyphi_recipe.recipe.recipe import Recipe
from tests.fixtures.dry_run import Meter, dry_run
from tests.fixtures.variants import few

MICRO, LAB, FULL = (find.of(size) for size in ("micro", "lab", "full"))

QUICK = [("vision_1_align", LAB)]
LONG = [("text_3_post", LAB)]
LONG += [(name, FULL) for name in stages.ORDER]
PASSING = ("bf16 copies", "activations", "logits")


def test_the_meter_counts_what_lives() -> None:
    with Meter() as meter:
        a = torch.zeros(1000)
        b = (a + 1) * 2  # the sum is freed
        view = b[:10]
    assert (meter.live, meter.peak) == (8000, 12000)
    del a, b
    assert meter.live == 4000
    del view
    assert meter.live == 0


@pytest.mark.parametrize(
    ("name", "size"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.long) for case in LONG)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_stage_takes_two_steps(name: str, size: Recipe) -> None:
    """In eight shards, where the stage uses the decoder. Counted memory is the plan's to 10 %, and what stays between
    steps exactly. Examples have no annotations, so there is no auxiliary loss."""
    target = stage_model(name, size)
    context = min(target.budget.context, 2000)  # only the lists of positions get longer with it
    budget = replace(target.budget, context=context)
    target = replace(target, budget=budget, stage=stages.without_auxiliary(target.stage))
    corpora = [c for c in target.stage.data.weights if c != "speech_summary"]
    batch = pack([row for corpus in corpora for row in example_rows(target, corpus)])
    shard = 1 if target.decoder == "unused" else 8
    result = dry_run(target, [batch, batch], world=8, shard=shard)
    assert result.steps == 2
    assert {glob for glob, *_ in result.groups} == set(target.stage.trainable)
    if not target.trains("decoder.norm"):
        assert sum(size for _, size, *_ in result.groups) == target.size(target.trainable)
    done = cost.work([batch], target.config)
    planned = cost.memory(target, done, cost.Switches(fsdp=shard), world=8, cpu=True)
    assert planned["peak"] == pytest.approx(result.peak, rel=0.1)
    permanent = planned["peak"] - planned["gradients"]
    permanent -= max(planned["exchange"], sum(planned[part] for part in PASSING))
    assert permanent == pytest.approx(result.permanent, rel=0.001)


@pytest.mark.long
def test_muon_keeps_one_moment_of_sharded_matrices() -> None:
    """AdamW keeps two. What it gathers of the published size fits into what the backward pass needed before."""
    target = stage_model("text_1_pretrain", FULL)
    batch = pack(example_rows(target, "documents"))
    adamw, muon = (
        dry_run(replace(target, budget=budget), [batch] * 2, world=8, shard=8)
        for budget in (
            replace(target.budget, context=2000, muon_lr_factor=factor) for factor in (0.0, 12.5)
        )
    )
    assert muon.steps == 2
    with torch.device("meta"):
        parameters = PhiModel(target.config).named_parameters()
    matrices = sum(p.numel() for name, p in parameters if is_layer(name, p))
    assert adamw.permanent - muon.permanent == pytest.approx(4 * matrices / 8, rel=0.001)
    assert muon.peak < adamw.peak


@pytest.mark.long
def test_a_pack_over_eight_processes_takes_what_is_planned() -> None:
    """3 % more are counted: the masks of the CPU's attention, where a part of a row sees the parts before it."""
    target = stage_model("text_2_long", LAB)
    target = replace(target, budget=replace(target.budget, context=8192))
    batch = pack(example_rows(target, "long_documents"))
    result = dry_run(target, [batch, batch], world=8, context=8)
    part = cost.scaled(cost.work([batch], target.config), 1 / 8)
    planned = cost.memory(target, part, cost.Switches(context_parallel=8), world=8, cpu=True)
    assert planned["peak"] == pytest.approx(result.peak, rel=0.05)
    alone = cost.memory(target, cost.scaled(part, 8), cost.Switches(), world=8, cpu=True)
    assert planned["activations"] < 0.2 * alone["activations"]


def test_shards_are_all_or_none() -> None:
    with pytest.raises(ValueError, match="shard=8, the number of processes, found 2"):
        dry_run(stage_model("text_3_post", MICRO), [], shard=2)


@pytest.mark.parametrize(
    ("size", "more"),
    few([(MICRO, (4,)), (LAB, (4, 8, 16)), (FULL, (4, 8, 16))], 1),
    ids=lambda value: getattr(value, "name", None),
)
def test_a_step_of_many_pairs_takes_the_memory_of_one_pack(
    size: Recipe, more: tuple[int, ...]
) -> None:
    """Pairs that are compared, in `more` packs a step instead of two: what grows are the embeddings of captions and
    images."""
    target = stage_model("vision_0_encoder", size)
    (row,) = example_rows(target, "captions")
    two, *peaks = [
        dry_run(target, [pack([row] * 8)] * packs, world=1, steps=1).peak for packs in (2, *more)
    ]
    embeddings = 4 * 8 * (6 * target.config.decoder.hidden_size + 8 * Contrastive.width)
    for packs, peak in zip(more, peaks, strict=True):
        assert peak - two < (packs - 2) * embeddings

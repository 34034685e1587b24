"""Two steps of every stage at its full size (of a text stage at a smaller one too), on tensors without memory, among
eight pretended processes."""

from dataclasses import replace

import pytest
import torch

from polyphi import stages
from polyphi.batch import pack
from polyphi.planning import cost
from polyphi.planning.dry_run import Meter, rehearse
from polyphi.stages import sizes

QUICK = [("vision_1_align", sizes.FULL), ("text_3_post", sizes.LAB)]
LONG = [(name, sizes.FULL) for name in stages.ORDER if name != "vision_1_align"]
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
def test_a_stage_takes_two_steps(name: str, size: sizes.Size) -> None:
    """Language stages in eight shards, the others as replicas. Counted memory is the plan's to 10 %, and what stays
    between steps exactly."""
    it = cost.subject(name, size)
    context = min(it.budget.context, 2000)  # only the lists of positions get longer with it
    it = replace(it, budget=replace(it.budget, context=context))
    corpora = [c for c in it.stage.data.weights if c != "speech_summary"]
    batch = pack([row for corpus in corpora for row in cost.imagined(it, corpus)])
    shard = 8 if it.learns("decoder.norm") else 1
    came = rehearse(it, [batch, batch], world=8, shard=shard)
    assert came.steps == 2
    assert {glob for glob, *_ in came.groups} == set(it.stage.learn)
    if shard == 1:
        assert sum(size for _, size, *_ in came.groups) == it.size(it.learned)
    done = cost.work([batch], it.config)
    planned = cost.memory(it, done, cost.Switches(shard=shard), world=8, cpu=True)
    assert planned["peak"] == pytest.approx(came.peak, rel=0.1)
    standing = planned["peak"] - planned["gradients"]
    standing -= max(planned["exchange"], sum(planned[part] for part in PASSING))
    assert standing == pytest.approx(came.standing, rel=0.001)


def test_a_pack_over_eight_processes_takes_what_is_planned() -> None:
    """3 % more are counted: the masks of the CPU's attention, where a part of a row sees the parts before it."""
    it = cost.subject("text_2_long", sizes.LAB)
    it = replace(it, budget=replace(it.budget, context=8192))
    batch = pack(cost.imagined(it, "long_documents"))
    came = rehearse(it, [batch, batch], world=8, context=8)
    part = cost.times(cost.work([batch], it.config), 1 / 8)
    planned = cost.memory(it, part, cost.Switches(context=8), world=8, cpu=True)
    assert planned["peak"] == pytest.approx(came.peak, rel=0.05)
    alone = cost.memory(it, cost.times(part, 8), cost.Switches(), world=8, cpu=True)
    assert planned["activations"] < 0.2 * alone["activations"]


def test_shards_are_all_or_none() -> None:
    with pytest.raises(ValueError, match="all 8 processes or none"):
        rehearse(cost.subject("text_3_post", sizes.MICRO), [], shard=2)


def test_sharding_is_refused_where_adapters_learn() -> None:
    it = cost.subject("vision_3_generative", sizes.MICRO)
    with pytest.raises(ValueError, match="stages of the language model"):
        rehearse(it, [], shard=8)
    assert not torch.distributed.is_initialized()  # the pretended group is gone

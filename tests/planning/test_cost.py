"""FLOPs against torch's own counter, memory against a process that is weighed, full sizes against the recipe."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from polyphi import stages
from polyphi.batch import pack
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.planning.dry_run import reference_of
from polyphi.stages import lineage, sizes
from polyphi.train.stage import Budget

PRODUCTS = {"aten.mm", "aten.addmm", "aten.convolution", "aten.convolution_backward"}


@pytest.mark.parametrize(
    "name",
    ["text_3_post", "text_4_align", "vision_3_generative", "vision_2_joint", "speech_2_post"],
)
def test_flops_are_torchs(name: str) -> None:
    """Forward and backward of a pack of equal rows. Torch counts all of a causal square. The rest that differs is the
    blank tape between clips and the first layer's gradient, which text under an adapter doesn't ask for: 2 %."""
    it = replace(cost.subject(name, sizes.MICRO), budget=Budget(2, 512, 200))
    corpus = next(c for c in it.stage.data.weights if c != "speech_summary")
    batch = pack(cost.imagined(it, corpus) * 3)
    model = PhiModel(it.config).train()
    model.initialise(0)
    for key, p in model.named_parameters():
        p.requires_grad_(key in it.learned)
    reference = reference_of(it, model)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        with torch.autocast("cpu", torch.bfloat16):
            loss = it.stage.objective.loss(model, None, reference, batch)[0]
        loss.backward()
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counted.items() if op in PRODUCTS)
    squares = sum((b - a) ** 2 for a, b in pairwise(batch.bounds))
    done = cost.work([batch], it.config)
    expected = cost.flops(it, cost.Work({**done, "pairs": squares}))
    assert expected["products"] == pytest.approx(products, rel=0.02)
    assert expected["attention"] == pytest.approx(counted["aten.bmm"], rel=0.02)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("text_3_post"),
        pytest.param("vision_3_generative", marks=pytest.mark.long),
        pytest.param("speech_2_post", marks=pytest.mark.long),
    ],
)
def test_memory_is_that_of_a_process(name: str) -> None:
    """Beside the counted tensors the plan was 5 % below (text) and 3 % above (vision). The process grows by 41 to 67 MB
    more than the tensors, whatever the size: code paged in, scratch of kernels, what the allocator holds back."""
    script = Path(__file__).with_name("memory_run.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    out = subprocess.run(
        [sys.executable, str(script), name],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
    ).stdout
    found = json.loads(out)
    assert found["planned"] == pytest.approx(found["counted"], rel=0.06)
    assert 0 < found["grown"] - found["counted"] < 80e6


@pytest.mark.parametrize("name", stages.ORDER)
def test_a_full_size_builds_and_every_tensor_has_its_origin(name: str) -> None:
    """On the meta device; globs that match nothing raise. What a parent is said to have learned it has, in that
    shape."""
    it = cost.subject(name, sizes.FULL)
    assert it.learned
    for glob, names in it.learners.items():
        assert names, glob
    parents: dict[str, cost.Subject] = {}
    for key, tensor in it.tensors.items():
        if key.startswith("objective.") or re.search(r"\.(layers|blocks)\.[1-9]", key):
            continue  # all layers are alike
        source = lineage.origin(key, it.stage)
        if source.stage is not None:
            if source.stage not in parents:
                parents[source.stage] = cost.subject(source.stage, sizes.FULL)
            parent = parents[source.stage]
            assert source.name in parent.learned, key
            assert parent.tensors[source.name].shape == tensor.shape, key


def test_the_parts_have_the_reports_sizes() -> None:
    joint = cost.subject("joint_1_vision_speech", sizes.FULL)
    assert joint.size(joint.tensors) == 5_574_460_224
    assert (
        joint.size(joint.learned) == 369_098_752 + 441_550_016
    )  # LoRA_V; SigLIP and its projector


def test_work_of_a_pack_is_that_of_its_rows() -> None:
    it = cost.subject("joint_1_vision_speech", sizes.MICRO)
    rows = [row for corpus in it.stage.data.weights for row in cost.imagined(it, corpus)]
    assert cost.work([pack(rows)], it.config) == cost.work(rows, it.config)


def test_a_frozen_matrix_costs_two_thirds() -> None:
    """Forward and the gradient of its input, without its own."""
    frozen, learned = (
        cost.flops(cost.subject(name, sizes.FULL), cost.Work({"tokens": 1000}))
        for name in ("vision_1_align", "text_1_pretrain")
    )
    assert frozen["products"] == pytest.approx(learned["products"] * 2 / 3)


@pytest.mark.parametrize("name", ["text_1_pretrain", "vision_3_generative", "speech_1_pretrain"])
def test_switches_take_memory_away(name: str) -> None:
    it = cost.subject(name, sizes.FULL)
    rows = [row for corpus in it.stage.data.weights for row in cost.imagined(it, corpus)]
    done = cost.work(rows, it.config)

    def peak(on: cost.Switches) -> float:
        return cost.memory(it, done, on, world=8)["peak"]

    kept = peak(cost.Switches())
    assert peak(cost.Switches(activations="recompute")) < kept
    if it.learns("decoder.norm"):
        assert peak(cost.Switches(shard=8)) < peak(cost.Switches(shard=2)) < kept


def test_every_corpus_is_imagined() -> None:
    assert set(cost.ROWS) == set(sizes.CORPORA)

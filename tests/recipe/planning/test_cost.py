"""FLOPs against torch's counter, memory against that of a process, full sizes against the recipe."""

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

from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.planning.example_rows import ROWS, example_rows
from polyphi.prepared.memory import model_bytes
from polyphi.quantization import quantize
from polyphi.train.stage import Budget
from polyphi.types.batch import pack
from polyphi_recipe import stages
from polyphi_recipe.graph import find
from polyphi_recipe.graph.plan import stage_model
from polyphi_recipe.stages import sizes
from tests.fixtures.dry_run import reference_of
from tests.fixtures.variants import few

MICRO, FULL = find.of("micro"), find.of("full")

PRODUCTS = {"aten.mm", "aten.addmm", "aten.convolution", "aten.convolution_backward"}


@pytest.mark.parametrize(
    "name",
    ["text_3_post", "text_4_align", "vision_3_generative", "vision_2_joint", "speech_2_post"],
)
def test_flops_are_torchs(name: str) -> None:
    """Forward and backward of a pack of equal rows. Torch counts all of a causal square. The rest that differs is the
    blank tape between clips and the first layer's gradient, which text under an adapter doesn't ask for: 2 %."""
    target = replace(stage_model(name, MICRO), budget=Budget(2, 512, 200))
    corpus = next(c for c in target.stage.data.weights if c != "speech_summary")
    batch = pack(example_rows(target, corpus) * 3)
    model = PhiModel(target.config).train()
    model.initialise(0)
    for key, p in model.named_parameters():
        p.requires_grad_(key in target.trainable)
    reference = reference_of(target, model)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        with torch.autocast("cpu", torch.bfloat16):
            loss = target.stage.objective.loss(model, None, reference, batch)[0]
        loss.backward()
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counted.items() if op in PRODUCTS)
    squares = sum((b - a) ** 2 for a, b in pairwise(batch.cu_seqlens))
    done = cost.work([batch], target.config)
    expected = cost.flops(target, cost.Work({**done, "pairs": squares}))
    assert expected["products"] == pytest.approx(products, rel=0.02)
    assert expected["attention"] == pytest.approx(counted["aten.bmm"], rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize("name", ["text_3_post", "vision_3_generative", "speech_2_post"])
def test_memory_is_that_of_a_process(name: str) -> None:
    """The plan was 1 and 3 % below the counted tensors (text, speech) and 2 % above (vision). The process grows by
    15 to 36 MB more than the tensors, whatever the size: scratch of kernels, what the allocator doesn't return."""
    script = Path(__file__).parents[3] / "benchmarks/stage_memory.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    out = subprocess.run(
        [sys.executable, str(script), name],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
    ).stdout
    result = json.loads(out)
    assert result["planned"] == pytest.approx(result["counted"], rel=0.06)
    assert 0 < result["grown"] - result["counted"] < 80e6


@pytest.mark.parametrize("name", few(stages.ORDER, lambda name: "joint" in name or "dpo" in name))
def test_a_full_size_builds_and_every_tensor_has_its_origin(name: str) -> None:
    """On the meta device; globs that match nothing raise. What a parent is declared to have trained it has, in that
    shape."""
    target = stage_model(name, FULL)
    assert target.trainable
    for glob, names in target.trainable_groups.items():
        assert names, glob
    parents: dict[str, cost.StageModel] = {}
    for key, tensor in target.tensors.items():
        if key.startswith("objective.") or re.search(r"\.(layers|blocks)\.[1-9]", key):
            continue  # all layers are alike
        source = FULL.lineage.origin(key, target.stage)
        if source.stage is not None:
            if source.stage not in parents:
                parents[source.stage] = stage_model(source.stage, FULL)
            parent = parents[source.stage]
            assert source.name in parent.trainable, key
            assert parent.tensors[source.name].shape == tensor.shape, key


def test_the_parts_have_the_reports_sizes() -> None:
    joint = stage_model("joint_1_vision_speech", FULL)
    assert joint.size(joint.tensors) == 5_574_460_224
    assert (
        joint.size(joint.trainable) == 369_098_752 + 441_550_016
    )  # LoRA_V; SigLIP and its projector


def test_work_of_a_pack_is_that_of_its_rows() -> None:
    target = stage_model("joint_1_vision_speech", MICRO)
    rows = [row for corpus in target.stage.data.weights for row in example_rows(target, corpus)]
    assert cost.work([pack(rows)], target.config) == cost.work(rows, target.config)


def test_a_frozen_matrix_costs_two_thirds() -> None:
    """Forward and the gradient of its input, without its own."""
    frozen, trainable = (
        cost.flops(stage_model(name, FULL), cost.Work({"tokens": 1000}))
        for name in ("vision_1_align", "text_1_pretrain")
    )
    assert frozen["products"] == pytest.approx(trainable["products"] * 2 / 3)


@pytest.mark.parametrize("name", ["text_1_pretrain", "vision_3_generative", "speech_1_pretrain"])
def test_switches_take_memory_away(name: str) -> None:
    target = stage_model(name, FULL)
    rows = [row for corpus in target.stage.data.weights for row in example_rows(target, corpus)]
    done = cost.work(rows, target.config)

    def peak(on: cost.Switches) -> float:
        return cost.memory(target, done, on, world=8)["peak"]

    without_options = peak(cost.Switches())
    assert peak(cost.Switches(activations="recompute")) < without_options
    if target.trains("decoder.norm"):
        assert peak(cost.Switches(fsdp=8)) < peak(cost.Switches(fsdp=2)) < without_options


@pytest.mark.parametrize("base", ["bf16", "int8", "int4"])
def test_bytes_of_a_frozen_base_are_those_of_the_model(base: str) -> None:
    """Vision 1 trains the projector of images alone; on a CPU the table of embeddings is mapped."""
    target = stage_model("vision_1_align", MICRO)
    model = PhiModel(target.config).bfloat16()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    if base != "bf16":
        quantize.quantize_frozen(model, base, target.trainable)
    counted = model_bytes(model) - 2 * target.size(target.trainable)
    buffers = sum(t.nbytes for t in model.buffers())
    assert cost.frozen_bytes(target, base, cpu=True) == counted - buffers


def test_every_corpus_has_an_example() -> None:
    assert set(ROWS) == set(sizes.CORPORA)

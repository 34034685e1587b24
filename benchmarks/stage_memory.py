"""Memory of two steps of a stage: as planned, as counted tensor by tensor, and as the process grew.

    python benchmarks/stage_memory.py vision_3_generative                 some 10 million parameters, short rows
    python benchmarks/stage_memory.py vision_3_generative --full          published widths, rows of the real lengths
    python benchmarks/stage_memory.py vision_0_encoder --packs 16         16 packs a step, whose pairs are compared
    python benchmarks/stage_memory.py vision_0_encoder --packs 16 --one   the same pairs in one pack

`--full`: two layers of the decoder, three of the image encoder and two blocks of the audio encoder, with random
weights; a step of one row, the longest that the stage knows. Of several steps the last is measured, beside the
gradients and the optimizer's state that the first left. Prints one JSON object; bytes and seconds.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from polyphi.data.packing import Pack
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.planning.cost import StageModel, Switches
from polyphi.planning.example_rows import example_rows, longest_row
from polyphi.planning.vocabulary import VocabularyOnly
from polyphi.prepared.prepare import prepare
from polyphi.train import memory, parallel
from polyphi.train.freeze import freeze
from polyphi.train.optimizer import make_optimizer, set_lr
from polyphi.train.stage import Budget
from polyphi.train.stage_loss import StageLoss
from polyphi.types.batch import Batch, pack
from polyphi_recipe import stages
from polyphi_recipe.graph.plan import stage_model
from polyphi_recipe.recipe.recipe import of_size
from polyphi_recipe.stages import sizes

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fixtures.dry_run import Meter, reference_of


def small() -> sizes.Size:
    """Between nano and lab: large enough that tensors, not the allocator, are what takes memory."""
    lab = sizes.LAB.model
    assert lab.vision is not None and lab.audio is not None
    model = replace(
        lab,
        decoder=replace(
            sizes.NANO.model.decoder,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=12,
            num_key_value_heads=4,
        ),
        vision=replace(lab.vision, num_hidden_layers=5, crop_size=224),
        audio=replace(lab.audio, num_blocks=3, nemo_conv_channels=64),
        adapters=sizes.NANO.model.adapters,
    )
    return sizes.Size("weighed", model, budgets={})


def published() -> sizes.Size:
    """The published widths, with few layers."""
    full = sizes.FULL.model
    assert full.vision is not None and full.audio is not None
    model = replace(
        full,
        decoder=replace(full.decoder, num_hidden_layers=2),
        vision=replace(full.vision, num_hidden_layers=3),
        audio=replace(full.audio, num_blocks=2),
    )
    return replace(sizes.FULL, model=model)


def short_rows(target: StageModel) -> list[Batch]:
    """A row of every corpus but the one of half-hour recordings."""
    corpora = [c for c in target.stage.data.weights if c != "speech_summary"]
    return [row for corpus in corpora for row in example_rows(target, corpus)]


def longest_rows(target: StageModel) -> list[Batch]:
    """The rows of the sample that has most tokens."""
    samples = [example_rows(target, c, longest_row(target, c)) for c in target.stage.data.weights]
    return max(samples, key=lambda rows: sum(map(len, rows)))


def resident() -> dict[str, int]:
    """Resident bytes: current, maximal, and those of mapped files (current)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: 1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM", "RssFile")}


def measure(
    target: StageModel, steps: Sequence[Sequence[Batch]], on: Switches
) -> dict[str, object]:
    """Take steps of the given packs. The plan is that of the last one's largest pack."""
    packs = steps[-1]
    largest = max(packs, key=len)
    compared = sum(batch.sequences for batch in packs)
    work = cost.work([largest], target.config) | cost.Work(compared=compared)
    planned = cost.memory(target, work, on, cpu=True)
    for batch in packs:
        if "image" in batch.inputs:  # zeros take no memory until written
            batch.inputs["image"].crops.uniform_()
    torch.nn.functional.linear(torch.ones(256, 256), torch.ones(256, 256))  # the library's own
    before, meter = resident(), Meter()
    with meter:
        model = prepare(PhiModel(target.config)).train()
        head = target.stage.objective.build(model, VocabularyOnly(target.config.decoder.vocab_size))
        for part in (model, head):
            for p in part.parameters() if part is not None else ():
                torch.nn.init.normal_(p.data, std=0.02)
        parameters = freeze(target.stage, model, head)
        adamw = make_optimizer(target.stage, parameters, Budget(1, 1, 1))
        learned = [p for p in parameters.values() if p.requires_grad]
        for step in steps:
            started = time.perf_counter()
            reference = reference_of(target, model)
            loss = StageLoss(target.stage.objective, model, head, reference, "bf16")
            with memory.activations(model, on.activations):
                record = loss.accumulate([Pack(batch) for batch in step])
            parallel.clip_gradients(learned, 1e-3, 1.0)
            set_lr(adamw, 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
    after = resident()
    # How much of a library a page fault maps depends on what the system has cached, not on the run.
    code = after["RssFile"] - before["RssFile"]
    return {
        "stage": target.stage.name,
        "tokens": len(largest),
        "sequences": compared,
        "planned": planned["peak"],
        "counted": meter.peak,
        "grown": after["VmHWM"] - before["VmRSS"] - code,
        "seconds": time.perf_counter() - started,
        "loss": float(record["loss"]) / max(1, record["count"]),
        "parts": planned,
        "work": work,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of two steps of a stage.")
    parser.add_argument("stage")
    parser.add_argument("--full", action="store_true", help="published widths and lengths")
    parser.add_argument("--packs", type=int, default=2, help="packs of a step")
    parser.add_argument("--one", action="store_true", help="the rows of all packs in one")
    parser.add_argument("--activations", choices=("keep", "recompute"), default="keep")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, full = arguments.stage, arguments.full
    target = stage_model(name, of_size(published() if full else small()))
    # Rows of text are shorter: where bfloat16 is slow they would take a minute.
    budget = target.budget if full else Budget(2, 4096, 400 if name.startswith("text") else 700)
    # Examples have no annotations, so there is no auxiliary loss.
    target = replace(target, budget=budget, stage=stages.without_auxiliary(target.stage))
    if full:
        batch = pack(longest_rows(target))
        steps = [[batch], [batch]]
    else:
        rows = short_rows(target)
        rows *= max(1, 1200 // sum(map(len, rows)))
        batch = pack(rows)
        # In a text stage any row leaves the optimizer's state of all parameters, so the others may be short: bfloat16
        # is slow on older CPUs.
        short = batch if batch.inputs else pack([min(rows, key=len)])
        packs = [pack(rows * arguments.packs)] if arguments.one else [batch] * arguments.packs
        steps = [[short] * 2, [short, *packs[1:]] if not batch.inputs else packs]
    print(json.dumps(measure(target, steps, Switches(activations=arguments.activations))))


if __name__ == "__main__":
    main()

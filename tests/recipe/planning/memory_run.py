"""Memory of two steps of a stage of some 10 million parameters: python memory_run.py STAGE

Prints one JSON object: the peak as planned, as counted tensor by tensor, and as the process grew, in bytes.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from polyphi.batch import pack
from polyphi.data.packing import Pack
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost, sizes
from polyphi.planning.dry_run import Meter, reference_of
from polyphi.planning.example_rows import example_rows
from polyphi.planning.vocabulary import VocabularyOnly
from polyphi.prepared.prepare import prepare
from polyphi.train import parallel
from polyphi.train.freeze import freeze
from polyphi.train.optimizer import make_optimizer, set_lr
from polyphi.train.stage import Budget
from polyphi.train.stage_loss import StageLoss
from polyphi_recipe import stages
from polyphi_recipe.plan import stage_model
from polyphi_recipe.recipe import of_size


def size() -> sizes.Size:
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


def resident() -> dict[str, int]:
    """Resident bytes: current, maximal, and those of mapped files (current)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: 1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM", "RssFile")}


def main(name: str) -> None:
    torch.set_num_threads(1)
    target = stage_model(name, of_size(size()))
    # Rows of text are shorter: where bfloat16 is slow they would take a minute.
    budget = Budget(2, 4096, 400 if name.startswith("text") else 700)
    # Examples have no annotations, so there is no auxiliary loss.
    target = replace(target, budget=budget, stage=stages.without_auxiliary(target.stage))
    corpora = [
        c for c in target.stage.data.weights if c != "speech_summary"
    ]  # half an hour of sound
    rows = [row for corpus in corpora for row in example_rows(target, corpus)]
    batch = pack(rows * max(1, 1200 // sum(map(len, rows))))
    # The peak is that of the last pack, beside the gradients and the optimizer's state that packs before it left. In a
    # text stage any row leaves those of all parameters, so the others may be short: bfloat16 is slow on older CPUs.
    text = not batch.inputs
    short = pack([min(rows, key=len)]) if text else batch
    done = cost.work([batch], target.config)
    planned = cost.memory(target, done, cost.Switches(), cpu=True)
    if "image" in batch.inputs:  # zeros take no memory until written
        batch.inputs["image"].crops.fill_(0.5)
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
        for last in (short, batch):
            loss = StageLoss(
                target.stage.objective, model, head, reference_of(target, model), "bf16"
            )
            loss.accumulate([Pack(short), Pack(last)])
            parallel.clip_gradients(learned, 1e-3, 1.0)
            set_lr(adamw, 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
    after = resident()
    # How much of a library a page fault maps depends on what the system has cached, not on the run.
    code = after["RssFile"] - before["RssFile"]
    grown = after["VmHWM"] - before["VmRSS"] - code
    result = {"planned": planned["peak"], "counted": meter.peak, "grown": grown}
    print(json.dumps(result | {"parts": planned, "tokens": len(batch), "work": done}))


if __name__ == "__main__":
    main(sys.argv[1])

"""The peer of `benchmarks/finetune.py`: TRL's SFTTrainer on a LoRA of PEFT and a model of transformers.

    python benchmarks/peers/sft.py FOLDER [--precision fp32] [--steps N]

FOLDER holds what `benchmarks/finetune.py` wrote: `model` with the adapter, `work.json` (learning rates, rows of each
step) and `rows.pt` (rows: ids, pixels and log-mels ready). In bf16 the weights are bfloat16 and the trainer uses
autocast; the adapter is float32. Prints one JSON object: steps per second after the first, the losses, the peak of
memory.
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from padding import collate
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Phi3ForCausalLM, Phi4MultimodalForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Planned(SFTTrainer):
    """The trainer with the rows of each step given."""

    plan: list[list[int]]
    stored: list[dict[str, Any]]

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.stored, batch_sampler=self.plan, collate_fn=self.data_collator)


class Times(TrainerCallback):
    """The time at the end of each step, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def peak_bytes() -> int:
    """The peak memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    work = json.loads((args.folder / "work.json").read_text())
    stored = torch.load(args.folder / "rows.pt", weights_only=True)
    plan = work["steps"][: args.steps]
    kind = Phi4MultimodalForCausalLM if work["multimodal"] else Phi3ForCausalLM
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    # The library's default attention makes crops without padding causal.
    attention = {"": "sdpa", "vision_config": "eager"} if work["multimodal"] else "sdpa"
    base = kind.from_pretrained(args.folder / "model", dtype=dtype, attn_implementation=attention)
    model = PeftModel.from_pretrained(
        base, args.folder / "model" / work["adapter"], is_trainable=True
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(
        trainable,
        lr=1.0,
        betas=tuple(work["betas"]),
        weight_decay=work["weight_decay"],
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: work["rates"][min(step, len(work["rates"]) - 1)]
    )
    times = Times()
    with tempfile.TemporaryDirectory() as out:
        trainer = Planned(
            model=model,
            args=SFTConfig(
                output_dir=out,
                max_steps=len(plan),
                per_device_train_batch_size=1,
                max_grad_norm=work["clip_norm"],
                logging_steps=1,
                logging_nan_inf_filter=False,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                bf16=args.precision == "bf16",
                gradient_checkpointing=False,
                remove_unused_columns=False,
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_dict({"input_ids": [[0]] * len(stored)}),
            data_collator=lambda rows: collate(rows, work),
            processing_class=transformers.AutoTokenizer.from_pretrained(args.folder / "model"),
            optimizers=(adamw, schedule),
            callbacks=[times],
        )
        trainer.plan, trainer.stored = plan, stored
        trainer.train()
    supervised = sum(sum(stored[i]["supervise"]) for step in plan for i in step)
    print(
        json.dumps(
            {
                "speed": (len(times.ends) - 1) / (times.ends[-1] - times.ends[0]),
                "memory": peak_bytes() / 2**30,
                "losses": times.losses,
                "loss": times.losses[-1],
                "supervised": supervised,
                "trainable": sum(p.numel() for p in trainable),
                "version": f"trl {version('trl')}, transformers {version('transformers')}, peft {version('peft')},",
            }
        )
    )


if __name__ == "__main__":
    main()

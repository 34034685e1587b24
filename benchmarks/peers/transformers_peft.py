"""The peer: a training loop as one writes it with transformers and PEFT. Rows padded to the longest of the batch, one
forward with `labels`, AdamW (fused, as transformers' own Trainer has it), bfloat16 autocast or float32.

    python benchmarks/peers/transformers_peft.py FOLDER [--head supervised] [--precision fp32] [--steps N]

FOLDER holds what `benchmarks/train.py` wrote: `work.json` (sizes, adapter, the rows of each step) and `rows.pt` (rows:
ids, pixels and log-mels ready). `--head supervised` gives the head only the positions that have a label, which
the library's loss doesn't do; `--steps` makes the run shorter. Prints one JSON object: seconds and supervised tokens of
the steps after the first, the losses, the peak of memory.
"""

import argparse
import fnmatch
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from padding import collate
from peft import LoraConfig, inject_adapter_in_model
from sidebyside import peak_bytes
from torch import Tensor, nn
from transformers import (
    Phi3Config,
    Phi3ForCausalLM,
    Phi4MultimodalAudioConfig,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalVisionConfig,
)

LINEARS = r"model\.layers\.\d+\.((self_attn\.(qkv|o)_proj)|(mlp\.(gate_up|down)_proj))"


def build(work: dict[str, Any]) -> Any:
    """The library's model with fresh weights; trainable parameters require gradients, all others are frozen."""
    torch.manual_seed(0)
    if not work["adapter"]:
        return Phi3ForCausalLM(Phi3Config(**work["decoder"]))
    config = Phi4MultimodalConfig(
        vision_config=Phi4MultimodalVisionConfig(**work["vision"]),
        audio_config=Phi4MultimodalAudioConfig(**work["audio"]),
        **work["decoder"],
    )
    model = Phi4MultimodalForCausalLM(config)
    lora = LoraConfig(**work["lora"], target_modules=LINEARS)
    inject_adapter_in_model(lora, model, work["adapter"])
    for name, p in model.named_parameters():
        p.requires_grad_(any(fnmatch.fnmatch(name, glob) for glob in work["learn"]))
    return model


def supervised_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss with the head on labelled positions only."""
    labels = batch.pop("labels")
    hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
    supervised = labels[:, 1:] != -100
    logits = model.lm_head(hidden[supervised]).float()
    return F.cross_entropy(logits, labels[:, 1:][supervised])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--head", choices=("all", "supervised"), default="all")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    work = json.loads((args.folder / "work.json").read_text())
    stored = torch.load(args.folder / "rows.pt", weights_only=True)
    model = build(work).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(
        trainable, lr=work["rate"], betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    seconds, supervised, losses = 0.0, 0, []
    for number, indices in enumerate(work["steps"][: args.steps]):
        start = time.perf_counter()
        batch = collate([stored[index] for index in indices], work)
        count = int((batch["labels"] != -100).sum())
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            short = args.head == "supervised"
            loss = supervised_loss(model, batch) if short else model(**batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        losses.append(loss.item())
        del loss, batch
        if number:  # the first one allocates
            seconds += time.perf_counter() - start
            supervised += count
    print(
        json.dumps(
            {
                "supervised": supervised,
                "speed": supervised / seconds,
                "memory": peak_bytes() / 2**30,
                "losses": losses,
                "trainable": sum(p.numel() for p in trainable),
            }
        )
    )


if __name__ == "__main__":
    main()

"""The proof that a stage doesn't change the frozen language model: the hash of its logits before and after."""

import hashlib
from pathlib import Path

import torch

from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import Processor
from polyphi.types.batch import pack
from polyphi.types.messages import Message
from polyphi_recipe.graph import processes

PROMPTS = (
    "How much is 3 plus 4?",
    "Translate to German: seven",
    "Scene: two red circles and a blue star.\nHow many circles are there?",
)


def text_logits(model: PhiModel, processor: Processor) -> str:
    """SHA-256 of the fp32 logits of fixed text prompts: equal hashes are bit-identical logits."""
    rows = [processor.row([Message.user(p)], generation_prompt=True) for p in PROMPTS]
    prepare(model)  # as a stage does, so that both hashes are of the same kernels
    with torch.inference_mode():
        logits = model.eval().logits(model(pack(rows).to(model.decoder.device)))
    return hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()


def record(path: Path, stage: str, before: str, after: str) -> None:
    """Add the hashes before and after a stage to the JSON list at `path`. Raises RuntimeError if they differ."""
    entry = {"stage": stage, "logits_sha256_before": before, "logits_sha256_after": after}

    def add(entries: list[dict[str, str]]) -> list[dict[str, str]]:
        return [*(e for e in entries if e["stage"] != stage), entry]

    processes.update_json(path, [], add)
    if before != after:
        raise RuntimeError(
            f"{stage} changed the text logits of the frozen language model: {before} -> {after}"
        )

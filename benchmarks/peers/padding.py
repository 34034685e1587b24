"""Rows as padded batches in the inputs of transformers' classes."""

from typing import Any

import torch
from torch import Tensor


def collate(rows: list[dict[str, Any]], work: dict[str, Any]) -> dict[str, Tensor]:
    """A step's rows as one padded batch."""
    longest = max(len(row["ids"]) for row in rows)
    batch: dict[str, Tensor] = {
        "input_ids": torch.full((len(rows), longest), work["decoder"]["pad_token_id"]),
        "attention_mask": torch.zeros(len(rows), longest, dtype=torch.long),
        "labels": torch.full((len(rows), longest), -100),
    }
    for i, row in enumerate(rows):
        n = len(row["ids"])
        ids = torch.tensor(row["ids"])
        batch["input_ids"][i, :n], batch["attention_mask"][i, :n] = ids, 1
        batch["labels"][i, :n] = ids.where(torch.tensor(row["supervise"]), -100)
    if "crops" in rows[0]:
        most = max(len(row["crops"]) for row in rows)
        pixels = torch.zeros(len(rows), most, *rows[0]["crops"].shape[1:])
        masks = torch.ones(len(rows), most, *rows[0]["crop_masks"].shape[1:])
        for i, row in enumerate(rows):
            pixels[i, : len(row["crops"])] = row["crops"]
            masks[i, : len(row["crops"])] = row["crop_masks"].float()
        sizes = torch.tensor([row["image_size"] for row in rows])
        batch |= dict(image_pixel_values=pixels, image_sizes=sizes, image_attention_mask=masks)
    if "mels" in rows[0]:
        frames = [len(row["mels"]) for row in rows]
        features = torch.zeros(len(rows), max(frames), rows[0]["mels"].shape[1])
        for i, row in enumerate(rows):
            features[i, : frames[i]] = row["mels"]
        batch |= dict(
            audio_input_features=features,
            audio_embed_sizes=torch.tensor([-(-n // 8) for n in frames]),
            audio_attention_mask=torch.arange(max(frames)) < torch.tensor(frames)[:, None],
        )
    return batch

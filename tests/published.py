"""A tiny random checkpoint in a public layout, and a handful of pictures and clips to fine-tune it on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from train.small import WORDS, make_model, make_processor

from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer

COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}
PITCHES = {"low": 200.0, "high": 2000.0}


def filled(model: PhiModel) -> PhiModel:
    """B matrices random too, since an adapter that does nothing would hide mistakes, and embeddings as large as those
    of a trained model, since the head that they are could say nothing clearly."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.decoder.embed_tokens.weight.mul_(10)
        for name, tensor in model.named_parameters():
            if name.endswith(".b") and ".lora." in name:
                tensor.normal_(std=0.02, generator=generator)
    return model.eval()


def write(folder: Path, layout: str = "original", dtype: torch.dtype = torch.bfloat16) -> Path:
    """The checkpoint with its tokenizer; `mini` is the language model alone."""
    tokenizer = Tokenizer.train([" ".join([*WORDS, "low high which colour is it"])] * 4, 512)
    tokenizer.save(folder.with_name(f"{folder.name}-tokenizer"))
    processor = make_processor()
    processor.tokenizer = tokenizer
    model = filled(make_model(processor, text=layout == "mini"))
    decoder = replace(
        model.config.decoder,
        eos_token_ids=tokenizer.eos_ids,
        bos_token_id=tokenizer.control("<|endoftext|>"),
        pad_token_id=tokenizer.control("<|endoftext|>"),
    )
    model.config = replace(model.config, decoder=decoder)
    files = sorted(folder.with_name(f"{folder.name}-tokenizer").iterdir())
    save_checkpoint(model.to(dtype), folder, layout, files=files)
    return folder


def write_data(folder: Path, rows: int = 12) -> None:
    """pictures.jsonl (plain colours), clips.jsonl (low or high tones), words.jsonl (text alone), in both forms."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[dict]] = {"pictures": [], "clips": [], "words": []}
    for i in range(rows):
        colour, pitch = list(COLOURS)[i % 3], list(PITCHES)[i % 2]
        Image.new("RGB", (40 + i, 50), COLOURS[colour]).save(folder / f"{i}.png")
        wave = 0.3 * np.sin(2 * np.pi * PITCHES[pitch] * np.arange(4000 + 100 * i) / 16000)
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        question = "which colour is it"
        if i % 2:
            lines["pictures"].append({"image": f"{i}.png", "question": question, "answer": colour})
        else:
            content = [{"type": "image", "image": f"{i}.png"}, {"type": "text", "text": question}]
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": colour},
            ]
            lines["pictures"].append({"messages": messages})
        lines["clips"].append({"audio": f"{i}.wav", "answer": pitch})
        lines["words"].append({"question": f"say {colour}", "answer": colour})
    for name, samples in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in samples))

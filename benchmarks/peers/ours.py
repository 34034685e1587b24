"""polyphi as one of the sides.

python ours.py CHECKPOINT THREADS WHAT      a quantized one; WHAT: language or multimodal
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine
import numpy as np
import torch
from turns import LONGEST, PROMPT, SEQUENCES, STEPS, take_turns

import polyphi
from polyphi.engine.cache import BLOCK, BlockPool, BlockTable, Memory, StepCache
from polyphi.engine.engine import CHUNK_TOKENS
from polyphi.types.batch import Batch, pack, row
from polyphi.types.inputs.audio import AudioInput
from polyphi.types.inputs.image import ImageInput
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from polyphi.types.sampling import SamplingParams


class Language:
    """The model over the engine's cache of blocks."""

    def __init__(self, checkpoint: str) -> None:
        self.model = polyphi.load(checkpoint, device="cpu").model
        config = self.model.config
        self.vocabulary = config.decoder.vocab_size
        self.bytes = engine.read_per_token(self.model)
        blocks = max(LONGEST, SEQUENCES * (PROMPT + STEPS)) // BLOCK
        self.memory = Memory(config.decoder, blocks, torch.bfloat16, torch.device("cpu"))
        self.pool = BlockPool(blocks)

    def tables(self, sequences: int, tokens: int) -> list[BlockTable]:
        tables = [BlockTable(self.pool) for _ in range(sequences)]
        for table in tables:
            table.grow(tokens)
        return tables

    def run(self, ids: torch.Tensor, tables: list[BlockTable]) -> torch.Tensor:
        """Logits [S V] behind ids [S T], whose predecessors are in the cache."""
        rows = []
        for some, table in zip(ids, tables, strict=True):
            new, end = row(some.tolist()), table.length + len(some)
            rows.append(replace(new, positions=new.positions + table.length, seq_lens=(end,)))
        sequences, each = ids.shape
        batch, cache = pack(rows), StepCache(self.memory, tables, [each] * sequences)
        last = torch.arange(each - 1, ids.numel(), each) if each > 1 else None
        hidden = self.model.decoder(self.model.embed(batch), batch, cache, last)
        for table in tables:
            table.length += each
        return self.model.logits(hidden).float()

    @torch.inference_mode()
    def prefill(self, ids: np.ndarray) -> np.ndarray:
        tables = self.tables(1, len(ids))
        for some in torch.from_numpy(ids).split(CHUNK_TOKENS):  # as the engine reads a prompt
            logits = self.run(some[None], tables)
        tables[0].clear()
        return logits[0].numpy()

    logits = prefill

    @torch.inference_mode()
    def decode(self, prompts: np.ndarray, more: np.ndarray) -> float:
        tables = self.tables(len(prompts), PROMPT + more.shape[1])
        self.run(torch.from_numpy(prompts), tables)
        steps = torch.from_numpy(more)
        start = time.perf_counter()
        for i in range(more.shape[1]):
            self.run(steps[:, i : i + 1], tables)
        took = time.perf_counter() - start
        for table in tables:
            table.clear()
        return took


class Multimodal:
    """The engine, from a message to the first token of its answer."""

    def __init__(self, checkpoint: str) -> None:
        self.engine = polyphi.load(checkpoint, device="cpu").engine
        self.vocabulary = self.engine.model.config.decoder.vocab_size
        self.took = {"media": 0.0, "encoders": 0.0}
        self.engine.encoders.on_encode = lambda _, seconds: self.add("encoders", seconds)

    def add(self, part: str, seconds: float) -> None:
        self.took[part] += seconds

    def first(self, kind: str, file: Path) -> dict[str, float]:
        data = file.read_bytes()
        media = Image(data) if kind == "picture" else Audio(data)
        message = Message.user(media, Text(engine.QUESTION))
        self.took, positions = dict.fromkeys(self.took, 0.0), 0
        read = self.engine.processor.row

        def timed(*args: Any, **kwargs: Any) -> Batch:
            start = time.perf_counter()
            batch = read(*args, **kwargs)
            self.add("media", time.perf_counter() - start)
            nonlocal positions
            images, audio = batch.of(ImageInput), batch.of(AudioInput)
            positions = images.masks.numel() if images is not None else audio.size // 8
            return batch

        self.engine.processor.row = timed  # type: ignore[method-assign]
        start = time.perf_counter()
        answer = self.engine.generate([message], sampling=SamplingParams(max_tokens=1))
        whole = time.perf_counter() - start
        self.engine.processor.row = read  # type: ignore[method-assign]
        prefill = whole - sum(self.took.values())
        return {
            **self.took,
            "prefill": prefill,
            "tokens": answer.prompt_tokens,
            "positions": positions,
        }


if __name__ == "__main__":
    checkpoint, threads, what = sys.argv[1:]
    torch.set_num_threads(int(threads))
    take_turns((Language if what == "language" else Multimodal)(checkpoint))

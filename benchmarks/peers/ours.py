"""polyphi itself, as one of the sides.

    python ours.py CHECKPOINT KIND THREADS      KIND: int4, int8 or bf16
"""

import sys
import time
from dataclasses import replace

import numpy as np
import torch
from turns import PROMPT, take_turns

import polyphi
from polyphi.batch import pack, row
from polyphi.engine.cache import BLOCK, BlockPool, Memory, StepCache, Table

LONGEST, STEPS, SEQUENCES = 2048, 64, 8


class Ours:
    """The model over the engine's cache of blocks."""

    def __init__(self, checkpoint: str, kind: str) -> None:
        self.model = polyphi.load(checkpoint, device="cpu", quant=kind).model
        decoder = self.model.config.decoder
        self.vocabulary = decoder.vocab_size
        room = -(-max(LONGEST, SEQUENCES * (PROMPT + STEPS + BLOCK)) // BLOCK)
        self.memory = Memory(decoder, room, torch.bfloat16, torch.device("cpu"))
        self.pool = BlockPool(room)

    def tables(self, sequences: int, tokens: int) -> list[Table]:
        made = [Table(self.pool) for _ in range(sequences)]
        for table in made:
            table.grow(tokens)
        return made

    def run(self, ids: torch.Tensor, tables: list[Table]) -> torch.Tensor:
        """Logits [S V] behind ids [S T], whose predecessors are in the cache."""
        rows = []
        for some, table in zip(ids, tables, strict=True):
            new = row(some.tolist())
            end = table.length + len(some)
            rows.append(replace(new, positions=new.positions + table.length, totals=(end,)))
        hidden = self.model(pack(rows), StepCache(self.memory, tables, [ids.shape[1]] * len(ids)))
        for table in tables:
            table.length += ids.shape[1]
        return self.model.logits(hidden[ids.shape[1] - 1 :: ids.shape[1]]).float()

    @torch.inference_mode()
    def prefill(self, ids: np.ndarray) -> np.ndarray:
        tables = self.tables(1, len(ids))
        found = self.run(torch.from_numpy(ids)[None], tables)[0].numpy()
        tables[0].clear()
        return found

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


def main(checkpoint: str, kind: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    take_turns(Ours(checkpoint, kind))


if __name__ == "__main__":
    main(*sys.argv[1:])

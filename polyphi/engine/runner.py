"""Runs the model for sequences that grow: the whole of a sequence first, then one token at a time.

>>> runner = Runner(model)
>>> logits = runner.advance([first, second])     # [2 V]: what may follow each of them

New and running sequences go through one packed forward, each with its own adapter, and each gives what it gives alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch, pack, row
from polyphi.engine.cache import Cache, SequenceCache
from polyphi.model.multimodal import PhiModel


def extend(prompt: Batch, tokens: Sequence[int]) -> Batch:
    """A row with more tokens at its end, media unchanged."""
    if not tokens:
        return prompt
    length = len(prompt) + len(tokens)
    return replace(
        prompt,
        ids=torch.cat(
            [prompt.ids, torch.tensor(tokens, dtype=prompt.ids.dtype, device=prompt.ids.device)]
        ),
        positions=torch.arange(length, device=prompt.positions.device),
        bounds=(0, length),
        totals=(length,),
    )


@dataclass
class Running:
    """A sequence under way: its prompt (a row, with media), the tokens drawn since, and what attention remembers."""

    prompt: Batch
    tokens: list[int] = field(default_factory=list)
    cache: SequenceCache = field(default_factory=SequenceCache)
    tables: list[str] = field(default_factory=list)
    """LongRoPE tables used so far, in order: "short", "long"."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tokens)


class Runner:
    """The model and the rule of its LongRoPE tables: a sequence of more than `original_max_position_embeddings` tokens
    is run with the long table altogether. One that grows across it while decoding is run again from its start,
    once."""

    def __init__(self, model: PhiModel) -> None:
        self.model = model
        self.switch = model.config.decoder.original_max_position_embeddings
        self.has_long = model.config.decoder.max_position_embeddings > self.switch
        self.device = model.decoder.embed_tokens.weight.device

    def table(self, length: int) -> str:
        """The LongRoPE table of a sequence of `length` tokens (report 2.1)."""
        return "long" if self.has_long and length > self.switch else "short"

    @torch.inference_mode()
    def advance(self, sequences: Sequence[Running]) -> Float[Tensor, "S V"]:
        """Runs what is new of each sequence and returns the float32 logits of the token after it."""
        batch = pack([self._due(s) for s in sequences]).to(self.device)
        hidden = self.model(batch, Cache([s.cache for s in sequences]))
        last = torch.tensor(batch.bounds[1:], device=self.device) - 1
        return self.model.logits(hidden[last]).float()

    @torch.inference_mode()
    def hidden(self, batch: Batch) -> Float[Tensor, "T D"]:
        """One forward without a cache."""
        return self.model(batch.to(self.device))

    def _due(self, sequence: Running) -> Batch:
        table = self.table(len(sequence))
        if table not in sequence.tables:
            sequence.cache.clear()  # keys were rotated with the other table
            sequence.tables.append(table)
        if len(sequence.cache) == 0:
            return extend(sequence.prompt, sequence.tokens)
        newest = row(sequence.tokens[-1:], adapter=sequence.prompt.adapters[0])
        return replace(
            newest, positions=newest.positions + len(sequence) - 1, totals=(len(sequence),)
        )

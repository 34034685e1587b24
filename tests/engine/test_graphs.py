"""The decode step of a GPU graph, run without recording: padding changes no sequence's logits."""

import random

import pytest
import torch

from polyphi.engine.engine import Engine
from polyphi.engine.graphs import DecodeGraphs
from polyphi.engine.runner import Runner
from polyphi.messages import Message, SamplingParams


@pytest.mark.parametrize("seed", range(3))
def test_a_replayed_step_gives_the_logits_of_a_packed_one(
    engine: Engine, conversations: list[list[Message]], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences of all adapters on both sides of the LongRoPE switch, in groups of every size."""
    dice, compared = random.Random(seed), []
    packed = Runner.run

    def both(self: Runner, parts, memory):
        decoding = [p for p in parts if p.size == 1 and p.samples and not p.request.features]
        replayed = None
        if decoding and len(decoding) == len(parts):
            totals = [self.rope_length(p.request) for p in parts]
            replayed = DecodeGraphs(self.model, memory).run(parts, totals)
        outputs = packed(self, parts, memory)
        if replayed is not None:
            compared.append(len(parts))
            # float32: measured 1e-5 on logits of spread 1.5.
            torch.testing.assert_close(
                replayed, torch.cat([output.logits for output in outputs]), atol=1e-4, rtol=0
            )
        return outputs

    monkeypatch.setattr(Runner, "run", both)
    dice.shuffle(conversations)
    lengths = [SamplingParams(max_tokens=dice.randrange(20, 60)) for _ in conversations]
    engine.generate_many(conversations, sampling=lengths)
    assert len(set(compared)) >= 3 and 3 in compared, "no step was padded"

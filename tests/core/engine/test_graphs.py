"""The decode step of a GPU graph, run without recording: padding changes no sequence's logits."""

import random

import pytest
import torch

from polyphi.engine.engine import Engine
from polyphi.engine.graphs import DecodeGraphs
from polyphi.engine.runner import Runner
from polyphi.model.config import AdapterConfig
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.adapter_folders import random_factors
from tests.fixtures.variants import few


@pytest.mark.parametrize("seed", few(range(3), 1))
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
            totals = [self.rope.length(p.request) for p in parts]
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


def test_graphs_of_a_removed_adapter_are_dropped(
    engine: Engine, conversations: list[list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other adapters stay, and answers are those of packed steps, whatever is in memory that was never
    written."""
    key = engine.adapters.add("mine", AdapterConfig(4, 1.0), random_factors(engine.model, 1))
    few, packed = SamplingParams(max_tokens=4), Runner.run
    expected = [engine.generate(conversations[0], sampling=few, adapter=a) for a in (key, "speech")]

    def run(self: Runner, parts, memory):
        if not all(part.size == 1 and part.samples for part in parts):
            return packed(self, parts, memory)
        if self._graphs is None:
            for keys, values, *_ in memory.layers:
                keys[-1] = values[-1] = torch.nan
        return self._replayed(parts, memory)

    monkeypatch.setattr(Runner, "run", run)
    answers = [engine.generate(conversations[0], sampling=few, adapter=a) for a in (key, "speech")]
    assert [a.tokens for a in answers] == [e.tokens for e in expected]
    graphs = engine.runner._graphs
    assert graphs is not None and {name for key in graphs._graphs for name in key[2]} == {
        key,
        "speech",
    }
    engine.adapters.remove(key).result(0)
    assert {name for key in graphs._graphs for name in key[2]} == {"speech"}

"""Whatever other requests do, each gets the answer of the model alone.

Random requests of every modality run in an engine short of everything (memory, `max_num_seqs`, tokens of a step)
while neighbours are aborted. Each one's logits, token by token, are compared with one forward of prompt and answer
without a cache, with the LongRoPE table of that token's length; all blocks come back.
"""

import math
import random
from dataclasses import dataclass, field, replace

import pytest
import torch

from polyphi.engine.engine import Engine
from polyphi.engine.request import Request
from polyphi.engine.results import accept
from polyphi.engine.runner import extend
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi.types.sampling import SamplingParams
from tests.fixtures.engines import clip, fitted, make_engine, picture

TEXT = "the quick brown fox jumps over a lazy dog und größer 図書館 1 + 2 = 3"
WORDS = TEXT.split()

# float32, other shapes of the same sums: measured 3.2e-5 on logits of spread 1.5 over 42 seeds (float64: 6e-14).
ROUNDING = 2e-4
DOUBLE = 1e-12


class Watched(Engine):
    """Stores the logits of every sampled token."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.sampled_logits: dict[Request, list[torch.Tensor]] = {}
        self.accept = self._accept

    def _accept(self, part, output, finite, best) -> None:
        before = len(part.request.tokens)
        accept(part, output, finite, best)
        if output.logits is None:
            return
        sampled = len(part.request.tokens) - before
        # A token that ends the answer isn't among its tokens; its logits are stored.
        sampled += part.request.finish_reason == "stop" and len(output.logits) > sampled
        self.sampled_logits.setdefault(part.request, []).extend(output.logits[:sampled])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=384)


@pytest.fixture
def engine(tiny_config, tokenizer) -> Engine:
    """A context of 2,048 tokens, so that a clip of 50 s fits; the switch of tables stays at 64."""
    return make_engine(fitted(tiny_config, tokenizer, max_position_embeddings=2048), tokenizer)


def conversation(
    dice: random.Random, earlier: list[list[Message]], longest: float
) -> list[Message]:
    """Text, 1 to 3 pictures of odd sizes, 1 or 2 clips of 0.1 to `longest` seconds, in any order; now and then what
    was sent before, and more."""
    text = lambda most: " ".join(dice.choices(WORDS, k=dice.randrange(1, most)))  # noqa: E731
    if earlier and dice.random() < 0.4:
        return [*dice.choice(earlier), Message.assistant(text(8)), Message.user(text(8))]
    parts: list[Image | Audio | str] = [text(40)]
    kind = dice.choice(["text", "text", "image", "audio", "both"])
    if kind in ("image", "both"):
        sizes = [
            (dice.randrange(20, 130), dice.randrange(20, 130)) for _ in range(dice.randrange(1, 4))
        ]
        parts += [picture(*size) for size in sizes]
    if kind in ("audio", "both"):
        seconds = [
            dice.choice([s for s in (0.1, 0.33, 2.0, 7.1, 41.0, 50.0) if s <= longest])
            for _ in range(dice.randrange(1, 3))
        ]
        parts += [clip(s) for s in seconds]
    dice.shuffle(parts)
    return [Message.user(*parts)]


@dataclass
class Tracked:
    messages: list[Message]
    sampling: SamplingParams
    request: Request
    aborted_at: int | None
    seen: list[str] = field(default_factory=list)


def played(
    engine: Watched, dice: random.Random, count: int, longest: float = 50.0
) -> list[Tracked]:
    """Requests that come while others run, some of them aborted in whatever phase they are."""
    requests: list[Tracked] = []
    waiting = count
    step = 0
    while waiting or any(not a.request.finish_reason for a in requests):
        if waiting and (dice.random() < 0.3 or all(a.request.finish_reason for a in requests)):
            waiting -= 1
            messages = conversation(dice, [a.messages for a in requests], longest)
            sampling = SamplingParams(
                max_tokens=dice.randrange(1, 60),
                temperature=dice.choice([0.0, 0.0, 1.0]),
                seed=dice.randrange(100),
                draft=dice.choice([0, 0, 4]),
                rope=dice.choice(["dynamic", "dynamic", "bound"]),
            )
            request = engine.submit(messages, sampling=sampling)
            requests.append(
                Tracked(
                    messages,
                    sampling,
                    request,
                    step + dice.randrange(30) if dice.random() < 0.25 else None,
                )
            )
        engine.step(in_order=dice.random() < 0.5)
        step += 1
        for one in requests:
            one.seen.append(one.request.phase)
            if one.aborted_at is not None and step >= one.aborted_at:
                engine.abort(one.request)
    return requests


def alone(engine: Engine, one: Tracked, count: int) -> torch.Tensor:
    """[count V]: the logits of each token of the answer in the model's precision, from whole forwards without a
    cache."""
    prompt = engine.rows.row(one.messages)
    tokens = (
        one.request.tokens[: count - 1]
        if count > len(one.request.tokens)
        else one.request.tokens[:count]
    )
    whole = extend(prompt, list(tokens))
    switch, first = engine.runner.rope.switch, len(prompt)
    bound = first + one.sampling.max_tokens if one.sampling.rope == "bound" else 0
    rows = []
    with torch.no_grad():
        by_table = {
            total: engine.model.logits(engine.model(replace(whole, seq_lens=(total,))))
            for total in (1, switch + 1)
        }
    for number in range(count):
        length = first + number
        table = switch + 1 if max(length, bound) > switch else 1
        rows.append(by_table[table][length - 1])
    return torch.stack(rows)


def compare_with_the_model(engine: Watched, requests: list[Tracked], rounding: float) -> int:
    """Logits equal; tokens equal but for ties within the rounding. Returns how many such ties there were."""
    ties = checked = 0
    for one in requests:
        rows = engine.sampled_logits.get(one.request, [])
        if not rows:
            assert one.request.finish_reason == "abort" or "memory" in str(one.request.error)
            continue
        expected = alone(engine, one, len(rows))
        # The engine rounds the logits of a double model to float32: by half of the last digit.
        rtol = 2**-24 if expected.dtype == torch.float64 else 0
        logits = torch.stack(rows).to(expected)
        torch.testing.assert_close(logits, expected, atol=rounding, rtol=rtol)
        checked += len(rows)
        if one.sampling.temperature == 0:
            for token, row in zip(one.request.tokens, expected.float(), strict=False):
                if token != int(row.argmax()):
                    best = row.topk(2).values
                    assert best[0] - best[1] < 2 * rounding
                    ties += 1
    assert checked > 100
    return ties


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(s, marks=pytest.mark.long) for s in range(3, 40))]
)
def test_every_request_gets_what_it_gets_alone(
    engine: Engine, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyphi.engine.fairness.SHORT", 60)
    monkeypatch.setattr("polyphi.engine.fairness.TURN", 8)
    dice = random.Random(seed)
    double = seed % 3 == 2
    blocks, longest = dice.choice([(20, 2.0), (70, 50.0), (200, 50.0)])
    model = engine.model.double() if double else engine.model
    scarce = Watched(
        model,
        engine.processor,
        memory=blocks * 32 * 2 * 2 * 2 * 16 * (8 if double else 4),
        max_num_seqs=dice.choice([2, 5, 32]),
        chunk=dice.choice([3, 17, 64, 512]),
        prefill=dice.choice([20, 100, 2048]),
        encoder_cache=dice.choice([0, 40_000, 10**7]),
    )
    requests = played(scarce, dice, 16, longest)
    compare_with_the_model(scarce, requests, DOUBLE if double else ROUNDING)
    after = scarce.counters()
    assert (after.blocks_in_use, after.requests) == (0, 0)
    assert scarce.pool.available == scarce.pool.size


def test_what_the_property_test_meets(engine: Engine) -> None:
    """It would prove little without preemptions, cached prefixes, chunks and accepted draft tokens."""
    dice = random.Random(1)
    memory = 20 * 32 * 2 * 2 * 2 * 16 * 4
    scarce = Watched(engine.model, engine.processor, memory=memory, chunk=17, prefill=100)
    requests = played(scarce, dice, 40, longest=2.0)
    compare_with_the_model(scarce, requests, ROUNDING)
    assert scarce.counters().preemptions > 0
    assert sum(a.request.cached_tokens or 0 for a in requests) > 0
    assert {a.request.finish_reason for a in requests} >= {"length", "abort"}
    assert any("short" in a.request.ropes and "long" in a.request.ropes for a in requests)
    adapters = {a.request.adapter for a in requests if a.request.finish_reason != "abort"}
    assert adapters == {None, "vision", "speech"}


def test_text_is_bit_for_bit_what_the_language_model_says(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside pictures and clips with their adapters, in a batch of the same shape."""
    monkeypatch.setattr("polyphi.engine.engine.SLICE_SECONDS", math.inf)
    messages = [
        [Message.user("the quick fox jumps")],
        [Message.user(picture(), "what is this?")],
        [Message.user("1 + 2 = 3 und größer")],
        [Message.user(clip(2.0), "say it")],
    ]
    logits = {}
    for adapter in ("auto", None):
        watched = Watched(engine.model, engine.processor)
        requests = [
            watched.submit(m, sampling=SamplingParams(max_tokens=10), adapter=adapter)
            for m in messages
        ]
        while any(not r.finish_reason for r in requests):
            watched.step(in_order=True)
        logits[adapter] = [torch.stack(watched.sampled_logits[r]) for r in requests]
    for number in (0, 2):
        assert torch.equal(logits["auto"][number], logits[None][number])
    for number in (1, 3):
        assert not torch.equal(logits["auto"][number], logits[None][number])

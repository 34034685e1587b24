"""The life of a request: cached prefixes, its end in every phase, and that all its resources are released."""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyphi.engine import engine as engine_module
from polyphi.engine.cache import token_bytes
from polyphi.engine.engine import Engine
from polyphi.engine.prompt_lookup import DraftToken, PromptLookup
from polyphi.engine.request import Request
from polyphi.engine.runner import Runner, extend
from polyphi.model.adapters import adapter_pairs
from polyphi.model.config import ModelConfig
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.parts import Image
from polyphi.types.sampling import SamplingParams
from tests.fixtures.engines import clip, fitted, make_engine, picture
from tests.fixtures.variants import few

LONG = "abc xyz 123 qrs tuv " * 5
FEW = SamplingParams(max_tokens=12)


def finished(engine: Engine, *requests: Request) -> list[Completion]:
    while any(not r.finish_reason for r in requests):
        engine.step(in_order=True)
    return [r.completion() for r in requests]


def is_empty(engine: Engine) -> bool:
    after = engine.counters()
    return (
        after.blocks_in_use == 0 and after.requests == 0 and engine.pool.available == after.blocks
    )


def test_a_cached_prefix_is_not_run_again(engine: Engine) -> None:
    messages = [Message.user(LONG), Message.assistant("yes"), Message.user("and then?")]
    first = engine.generate(messages, sampling=FEW)
    again = engine.generate(messages, sampling=FEW)
    assert (first.cached, again) == (0, first)
    assert 0 < again.prompt_tokens - again.cached <= 32
    longer = engine.generate(
        [*messages, Message.assistant("no"), Message.user("why?")], sampling=FEW
    )
    assert longer.cached >= again.cached
    uncached = Engine(engine.model, engine.processor, prefix_cache=False)
    assert [uncached.generate(messages, sampling=FEW) for _ in range(2)] == [first, first]
    assert uncached.generate(messages, sampling=FEW).cached == 0
    assert uncached.counters().blocks_cached == 0


def test_prefixes_are_shared_within_an_adapter_only(engine: Engine) -> None:
    """An adapter changes the keys of all tokens; so do its weights under the same name."""
    messages = [Message.user(LONG)]
    for adapter in (None, "vision", "speech"):
        assert engine.generate(messages, adapter=adapter, sampling=FEW).cached == 0
        assert engine.generate(messages, adapter=adapter, sampling=FEW).cached > 0
    before = engine.generate(messages, adapter="vision", sampling=FEW)
    with torch.no_grad():
        for _, pair in adapter_pairs(engine.model, "vision"):
            for tensor in pair.tensors():
                tensor.mul_(1.5)
    after = engine.generate(messages, adapter="vision", sampling=FEW)
    assert after.cached == 0 and after.tokens != before.tokens
    fresh = Engine(engine.model, engine.processor)
    assert fresh.generate(messages, adapter="vision", sampling=FEW) == after


def test_prefixes_are_shared_within_a_rope_table_only(engine: Engine) -> None:
    messages = [Message.user("fox " * 40)]
    short = SamplingParams(max_tokens=3)
    assert len(engine.rows.row(messages)) < 60
    assert engine.generate(messages, sampling=short).cached == 0
    assert engine.generate(messages, sampling=short).cached == 32
    bound = engine.generate(messages, sampling=SamplingParams(max_tokens=30, rope="bound"))
    assert (bound.cached, bound.rope) == (0, "long (bound)")


def test_images_have_keys_by_their_content_and_shape(engine: Engine) -> None:
    """The same bytes in another shape: other tokens, other keys; the same image is encoded once."""
    wide, high = picture(150, 30), picture(30, 150)
    prompts = [[Message.user(LONG[:90], p, "what is this?")] for p in (wide, high, wide)]
    answers = [engine.generate(m, sampling=FEW) for m in prompts]
    assert engine.encoders.calls == 2
    assert answers[0] == answers[2] and answers[0].tokens != answers[1].tokens
    assert answers[2].cached > answers[1].cached
    engine.generate([Message.user(wide, "another question about it")], sampling=FEW)
    assert engine.encoders.calls == 2
    engine.generate([Message.user(clip(0.4), "say it")], sampling=FEW)
    engine.generate(
        [Message.user(clip(0.4), "say it in a picture's voice", wide)]
    )  # the other projector
    assert engine.encoders.calls == 4


def test_encoder_outputs_are_cached_within_their_budget(engine: Engine) -> None:
    pictures = [picture(40 + 3 * i, 60) for i in range(6)]
    narrow = Engine(engine.model, engine.processor, encoder_cache=20_000, prefix_cache=False)
    expected = [engine.generate([Message.user(p, "?")], sampling=FEW) for p in pictures]
    for _ in range(2):
        again = [narrow.generate([Message.user(p, "?")], sampling=FEW) for p in pictures]
        assert again == expected
        assert 0 < narrow.counters().encoded_bytes <= 20_000
    assert narrow.encoders.calls > len(pictures)
    none = Engine(engine.model, engine.processor, encoder_cache=0)
    assert none.generate([Message.user(pictures[0], "?")], sampling=FEW) == expected[0]
    assert none.counters().encoded_bytes == 0


def test_a_request_keeps_its_media_until_it_ends(engine: Engine) -> None:
    """As uint8, and also after its prompt has run: a preempted request runs it again."""
    messages = [Message.user(picture(150, 30), clip(0.4), "what is this?")]
    expected = engine.generate(messages, sampling=FEW)
    none = Engine(engine.model, engine.processor, encoder_cache=0, prefix_cache=False)
    row = none.rows.prepare(messages, FEW)
    one, other = none.enter(row, replace(FEW, n=2))
    while len(one.tokens) < 4 or not other.tokens:
        none.step()
    assert one.prompt.inputs["image"].crops.dtype == torch.uint8
    assert len(one.prompt.inputs["audio"].mels)
    with none.exclusive():
        none.scheduler.preempt(one)
    assert [a.tokens for a in finished(none, one, other)] == [expected.tokens] * 2
    assert one.completion() == expected
    for request in (one, other):
        for batch in (request.prompt, request.row.result()):
            assert batch.nbytes < row.nbytes / 10
            assert not any(inputs.identity for inputs in batch.inputs.values())
        assert not request.items and not request.features
    aborted, _ = none.enter(row, replace(FEW, n=2))
    none.step()
    none.abort(aborted)
    assert not aborted.prompt.inputs["image"].identity and not aborted.items


@pytest.mark.parametrize("phase", ["decoding media", "waiting", "running", "running late"])
def test_an_aborted_request_leaves_nothing_behind(
    engine: Engine, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    row_steps = Processor.row_steps

    def slowly(self: Processor, messages, **options):
        if any(m.text == "slow" for m in messages):
            release.wait(20)
        return row_steps(self, messages, **options)

    monkeypatch.setattr(Processor, "row_steps", slowly)
    small = Engine(engine.model, engine.processor, max_num_seqs=1, prefill=16)
    neighbour = small.submit([Message.user("the dog")], sampling=SamplingParams(max_tokens=9))
    small.step()
    text = "slow" if phase == "decoding media" else LONG
    request = small.submit([Message.user(picture(), text)])
    if phase == "waiting":
        request.row.result()
        small.step()
    elif phase.startswith("running"):
        finished(small, neighbour)
        request.row.result()
        while not (request.tokens if phase == "running late" else request.phase == "running"):
            small.step()
    assert request.phase == phase.removesuffix(" late")
    small.abort(request)
    small.abort(request)  # again changes nothing
    assert request.finish_reason == "abort" and not request.features
    release.set()
    (answer,) = finished(small, neighbour)
    assert answer == engine.generate(
        [Message.user("the dog")], sampling=SamplingParams(max_tokens=9)
    )
    assert is_empty(small)


def test_a_stream_that_is_closed_is_aborted(engine: Engine) -> None:
    stream = engine.stream([Message.user("the dog")], sampling=SamplingParams(max_tokens=200))
    assert next(stream).finish_reason is None
    assert engine.counters().requests == 1
    stream.close()
    assert is_empty(engine)


def test_streams_take_turns(engine: Engine) -> None:
    """Each request for a next delta runs a step for all streams."""
    sampling = SamplingParams(max_tokens=12)
    prompts = [[Message.user(word)] for word in ("fox", "dog", "lazy")]
    whole = [engine.generate(q, sampling=sampling).text for q in prompts]
    steps = engine.counters().steps
    streams: list[Iterator] = [engine.stream(q, sampling=sampling) for q in prompts]
    texts = [""] * 3
    while streams_left := [i for i, s in enumerate(streams) if s is not None]:
        for i in streams_left:
            delta = next(streams[i], None)
            if delta is None:
                streams[i] = None
            else:
                texts[i] += delta.text
    assert texts == whole
    assert engine.counters().steps - steps < 20, "they ran one after the other"


def test_threads_share_the_steps(engine: Engine, conversations: list[list[Message]]) -> None:
    sampling = SamplingParams(max_tokens=20)
    expected = [engine.generate(c, sampling=sampling) for c in conversations]
    answers: dict[int, Completion] = {}

    def ask(number: int) -> None:
        answers[number] = engine.generate(conversations[number % 5], sampling=sampling)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[i] for i in range(15)] == expected * 3
    assert is_empty(engine)


def test_several_answers_run_the_prompt_once(engine: Engine) -> None:
    messages = [Message.user(picture(), LONG)]
    sampling = SamplingParams(max_tokens=8, temperature=1.5, seed=3, n=4)
    answer = engine.generate(messages, sampling=sampling)
    every = [answer, *answer.others]
    assert len({a.tokens for a in every}) == 4
    assert [a.cached > 0 for a in every] == [False, True, True, True]
    assert engine.encoders.calls == 1
    for number, one in enumerate(every):
        own = replace(sampling, n=1, seed=3 + number)
        assert engine.generate(messages, sampling=own).tokens == one.tokens
    with pytest.raises(ValueError, match="found n=4"):
        engine.stream(messages, sampling=sampling)


@pytest.mark.parametrize("rope", ["dynamic", "bound"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_draft_tokens_never_change_an_answer(
    engine: Engine, temperature: float, rope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither accepted ones (which save steps) nor rejected ones, on both sides of the switch of tables."""
    messages = [Message.user("1 + 2 = 3 " * 3)]
    plain = SamplingParams(max_tokens=120, temperature=temperature, seed=1, rope=rope, draft=0)
    expected = engine.generate(messages, sampling=plain)
    prompt, dice = len(engine.rows.row(messages)), random.Random(0)

    def propose(self: PromptLookup, most: int) -> list[DraftToken]:
        right = list(expected.tokens[len(self._tokens) - prompt :][:most])
        return [(t if dice.random() < 0.8 else 5, 0.99**i) for i, t in enumerate(right)]

    monkeypatch.setattr(PromptLookup, "propose", propose)
    before = engine.counters().steps
    answer = engine.generate(messages, sampling=replace(plain, draft=6))
    assert answer == expected
    assert engine.counters().steps - before < 0.6 * len(answer.tokens)


def test_draft_tokens_are_run_by_memory_bound_models(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that fits a CPU's caches runs none; others run them by default."""
    answers, steps = {}, {}
    for cached in (2**28, 0):
        monkeypatch.setattr(engine_module, "CPU_CACHE", cached)
        for draft in (0, "auto"):
            fresh = Engine(engine.model, engine.processor)
            sampling = SamplingParams(max_tokens=150, draft=draft)
            answers[cached, draft] = fresh.generate([Message.user("fox " * 9)], sampling=sampling)
            steps[cached, draft] = fresh.counters().steps
    assert len(set(answers.values())) == 1
    assert steps[2**28, 0] == steps[2**28, "auto"] == steps[0, 0] > steps[0, "auto"]


def test_quantized_models_are_memory_bound_at_fewer_bytes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "QUANTIZED_CACHE", 0)
    for quant, bound in ((None, False), ("bf16", False), ("int8", True), ("int4-all", True)):
        monkeypatch.setattr(engine.model, "quant", quant)
        assert engine_module._is_memory_bound(engine.model) == bound


def test_large_models_run_prompts_in_smaller_steps(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages, once = [Message.user("fox " * 300)], SamplingParams(max_tokens=1)
    tokens = {}
    monkeypatch.setattr(engine_module, "CHUNK_TOKENS", 100)
    for cached in (2**28, 0):
        monkeypatch.setattr(engine_module, "CPU_CACHE", cached)
        fresh = Engine(engine.model, engine.processor)
        answer = fresh.generate(messages, sampling=once)
        tokens[cached] = answer.tokens
        each = engine_module.CHUNK_TOKENS if cached == 0 else engine_module.PREFILL_TOKENS
        assert fresh.counters().steps == -(-answer.prompt_tokens // each)
    assert tokens[0] == tokens[2**28]


def test_a_request_that_does_not_fit_raises_before_it_runs(engine: Engine) -> None:
    small = Engine(engine.model, engine.processor, memory=4 * 32 * 2 * 2 * 2 * 16 * 4)
    assert small.capacity == 128
    with pytest.raises(ValueError, match=r"127 .*128"):
        small.generate([Message.user("dog")], sampling=SamplingParams(max_tokens=127))
    with pytest.raises(ValueError, match="128"):
        small.stream([Message.user(picture(), LONG)])
    assert is_empty(small)
    assert small.generate([Message.user("dog")], sampling=SamplingParams(max_tokens=100)).tokens


def test_media_that_cannot_be_read(engine: Engine, tmp_path: Path) -> None:
    good, bad = [Message.user("dog")], [Message.user(Image(tmp_path / "none.png"), "?")]
    with pytest.raises((ValueError, OSError), match=r"none\.png"):
        engine.generate_many([good, bad, good])
    with pytest.raises((ValueError, OSError), match=r"none\.png"):
        engine.stream(bad)
    request = engine.submit(bad)
    while not request.finish_reason:
        engine.step()
    assert "none.png" in str(request.error) and request.finish_reason == "error"
    assert is_empty(engine)


def test_a_model_that_fails_ends_all_requests(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    other = engine.submit([Message.user("dog")])
    with monkeypatch.context() as broken:
        broken.setattr(Runner, "run", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.generate([Message.user("fox")])
    assert other.finish_reason == "error" and str(other.error) == "out of memory"
    assert is_empty(engine)
    assert engine.generate([Message.user("fox")]).tokens


@pytest.mark.parametrize("chunk", few([1000, 4000], 1))
@pytest.mark.parametrize("extra", few([1, 0, -1], 1))
def test_the_real_switch(tiny_config, tokenizer, chunk: int, extra: int) -> None:
    """Prompts of 4,095, 4,096 and 4,097 tokens, alone and in a batch, and decoding across the border."""
    switch = {"max_position_embeddings": 8192, "original_max_position_embeddings": 4096}
    config = fitted(tiny_config, tokenizer, **switch)
    engine = make_engine(config, tokenizer)
    dice = random.Random(chunk)
    messages = [Message.user("".join(dice.choices("abcdefgh ", k=4096)))]
    prompt = engine.rows.row(messages)
    text = messages[0].text
    while len(prompt) != 4096 + extra:
        text = text + "a" if len(prompt) < 4096 + extra else text[: -(len(prompt) - 4096 - extra)]
        messages = [Message.user(text)]
        prompt = engine.rows.row(messages)
    sampling = SamplingParams(max_tokens=4)
    alone = engine.generate(messages, sampling=sampling)
    assert alone.rope == ("long" if extra > 0 else "short+long")
    for number, token in enumerate(alone.tokens):
        with torch.no_grad():
            logits = engine.model.logits(engine.model(extend(prompt, alone.tokens[:number]))[-1])
        assert token == int(logits.argmax())
    others = [[Message.user("dog")], messages, [Message.user(text + "b" * 40)]]
    small = Engine(engine.model, engine.processor, chunk=chunk, prefill=chunk)
    assert small.generate_many(others, sampling=sampling)[1] == alone


def ten_thousand(engine: Engine, count: int, seed: int = 0) -> None:
    """Random requests with random aborts: each is answered once or aborted, and all resources are released."""
    dice = random.Random(seed)
    waiting = count
    active: list[Request] = []
    answers: dict[Request, str] = {}
    media = [picture(40, 40), picture(70, 50), clip(0.3), clip(1.0)]
    aborted = 0
    while waiting or active:
        while waiting and len(active) < 48:
            waiting -= 1
            parts = [dice.choice(["fox", "dog", "größer", LONG[: dice.randrange(1, 150)]])]
            if dice.random() < 0.2:
                parts.append(dice.choice(media))
            sampling = SamplingParams(
                max_tokens=dice.randrange(1, dice.choice([12, 40])),
                temperature=dice.choice([0, 1]),
                draft=dice.choice([0, 3]),
            )
            active.append(engine.submit([Message.user(*parts)], sampling=sampling))
        engine.step(in_order=True)
        if dice.random() < 0.3:
            one = dice.choice(active)
            aborted += one.finish_reason is None
            engine.abort(one)
        for request in [r for r in active if r.finish_reason]:
            active.remove(request)
            assert request not in answers, "answered twice"
            answers[request] = request.finish_reason
            assert not request.table.blocks and not request.features
    assert len(answers) == count
    assert list(answers.values()).count("abort") == aborted > 0
    assert set(answers.values()) <= {"stop", "length", "abort"}
    assert is_empty(engine)


def test_random_requests_and_aborts(engine: Engine) -> None:
    memory = 16 * 32 * 2 * 2 * 2 * 16 * 4
    small = Engine(engine.model, engine.processor, memory=memory, max_num_seqs=12, chunk=50)
    ten_thousand(small, 250)
    assert small.counters().preemptions > 0


@pytest.mark.long
def test_ten_thousand_random_requests_and_aborts(
    tiny_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    """With a vocabulary as large as nano's, in memory for 640 tokens."""
    config = fitted(tiny_config, tokenizer, vocab_size=4096)
    model = make_engine(config, tokenizer)
    bytes_each = token_bytes(config.decoder, torch.float32)
    engine = Engine(model.model, model.processor, memory=640 * bytes_each, encoder_cache=2**20)
    ten_thousand(engine, 10_000)
    assert engine.counters().preemptions > 0

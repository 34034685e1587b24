"""Scheduling: short prompts with long ones, fairness between clients and within one, and encoders between steps."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyphi.engine.cache import BLOCK, token_bytes
from polyphi.engine.engine import Engine
from polyphi.engine.fairness import PATIENCE, QUANTUM, RESERVED, SMALL, split_evenly
from polyphi.engine.request import Client, Request
from polyphi.types.messages import Message
from polyphi.types.sampling import Grammar, SamplingParams
from tests.fixtures.engines import clip, picture

LONG = [Message.user("the quick brown fox jumps over the lazy dog " * 12)]
SHORT = [Message.user("1 + 2")]
ONE, FEW = SamplingParams(max_tokens=1), SamplingParams(max_tokens=12)
SCORED = SamplingParams(max_tokens=0, prompt_logprobs=0)
TURN = 24
CHAT = SamplingParams(max_tokens=3 * TURN + 6)


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of `FEW` tokens are short, those of `CHAT` take four turns."""
    monkeypatch.setattr("polyphi.engine.fairness.TURN", TURN)
    monkeypatch.setattr("polyphi.engine.fairness.SHORT", CHAT.max_tokens)


def entered(engine: Engine, client: bytes, sampling: SamplingParams = FEW) -> Request:
    row = engine.rows.prepare(SHORT, sampling)
    (request,) = engine.enter(row, sampling, caller=Client(client))
    return request


def finish(engine: Engine, *requests: Request) -> int:
    """Runs the requests to their end; the number of steps."""
    steps = 0
    while any(not request.finish_reason for request in requests):
        engine.step()
        steps += 1
    return steps


def sized(engine: Engine, blocks: int, **options: int) -> Engine:
    """The same model with memory for `blocks` blocks."""
    memory = blocks * BLOCK * token_bytes(engine.model.config.decoder, engine.model.decoder.dtype)
    return Engine(engine.model, engine.processor, memory=memory, **options)


@given(st.integers(0, 500), st.lists(st.integers(0, 200), min_size=1, max_size=9))
def test_equal_shares(amount: int, requested: list[int]) -> None:
    shares = split_evenly(amount, requested)
    assert sum(shares) == min(amount, sum(requested))
    assert all(0 <= s <= r for s, r in zip(shares, requested, strict=True))
    short = [s for s, r in zip(shares, requested, strict=True) if s < r]
    assert not short or max(shares) <= min(short) + 1  # no share exceeds one that is too small


@pytest.mark.parametrize("sampling", [FEW, SCORED], ids=["answers", "scores"])
def test_a_short_prompt_finishes_beside_long_ones(engine: Engine, sampling: SamplingParams) -> None:
    """After eight prompts of four steps each were submitted."""
    cut = Engine(engine.model, engine.processor, chunk=27, prefill=27)
    row = cut.rows.prepare(LONG, ONE)
    assert len(row) > 4 * 27
    # Salts differ, so that nothing is shared.
    long = [cut.enter(row, sampling, caller=Client(salt=b"%d" % i))[0] for i in range(8)]
    for _ in range(3):
        cut.step()
    short = cut.submit(SHORT, sampling=ONE)
    for _ in range(3):
        cut.step()
    assert short.finish_reason == "length" and not any(r.finish_reason for r in long)
    finish(cut, *long)
    assert cut.counters().blocks_in_use == 0


def test_prompts_of_one_call_go_in_order(engine: Engine) -> None:
    """Prompts of one call don't share a step among themselves: the first finishes first."""
    cut = Engine(engine.model, engine.processor, chunk=64, prefill=64)
    rows = [cut.rows.prepare([Message.user(f"{i} " + LONG[0].text)], ONE) for i in range(4)]
    requests = [one for (one,) in cut.enter_all(rows, ONE)]
    order: list[int] = []
    while len(order) < 4:
        cut.step()
        assert len({r.table.length for r in requests if r.table.length}) <= 2
        order += [i for i, r in enumerate(requests) if r.finish_reason and i not in order]
    assert order == [0, 1, 2, 3]


def test_a_clients_first_request_goes_before_anothers_third(engine: Engine) -> None:
    cut = Engine(engine.model, engine.processor, max_num_seqs=1)
    many = [entered(cut, b"a", ONE) for _ in range(6)]
    cut.step()
    first = entered(cut, b"b", ONE)
    cut.step()
    cut.step()
    assert first.finish_reason and sum(bool(r.finish_reason) for r in many) <= 2
    finish(cut, *many)


def test_a_client_with_all_places_is_preempted(engine: Engine) -> None:
    """For another client, until both run equally many; preempted requests return the same answers as alone."""
    alone = engine.generate(SHORT, sampling=FEW).tokens
    cut = Engine(engine.model, engine.processor, max_num_seqs=4)
    mine = [entered(cut, b"a") for _ in range(5)]
    for _ in range(3):
        cut.step()
    assert len(cut.scheduler.running) == 4
    others = [entered(cut, b"b") for _ in range(4)]
    cut.step()
    running = [request.caller.client for request in cut.scheduler.running]
    assert sorted(running) == [b"a", b"a", b"b", b"b"]
    finish(cut, *mine, *others)
    assert {tuple(r.tokens) for r in (*mine, *others)} == {alone}
    assert cut.counters().blocks_in_use == 0


@pytest.mark.parametrize(("places", "chats"), [(4, 6), (32, 40)])
@pytest.mark.usefixtures("short_turns")
def test_a_short_request_passes_long_ones_of_its_client(
    engine: Engine, places: int, chats: int
) -> None:
    cut = Engine(engine.model, engine.processor, max_num_seqs=places)
    long = [entered(cut, b"a", CHAT) for _ in range(chats)]
    for _ in range(5):
        cut.step()
    assert finish(cut, entered(cut, b"a")) <= FEW.max_tokens + 3
    assert cut.counters().preemptions == 1 and not any(r.finish_reason for r in long)
    for request in long:
        cut.abort(request)
    assert cut.counters().blocks_in_use == 0


@pytest.mark.parametrize("draft", [0, 4])
@pytest.mark.usefixtures("short_turns")
def test_all_answers_to_a_short_prompt_pass_long_ones(engine: Engine, draft: int) -> None:
    """In one place, so that the long ones keep the others; everybody gets the answer that it gets alone."""
    few = replace(FEW, n=3, draft=draft)
    alone = [engine.generate(SHORT, sampling=s).tokens for s in (FEW, CHAT)]
    cut = Engine(engine.model, engine.processor, max_num_seqs=4)
    long = [entered(cut, b"a", replace(CHAT, draft=draft)) for _ in range(6)]
    for _ in range(5):
        cut.step()
    short = cut.enter(cut.rows.prepare(SHORT, few), few, caller=Client(b"a"))
    steps = 0
    while not all(r.finish_reason for r in short):
        cut.step()
        steps += 1
        assert sum(r in short for r in cut.scheduler.running) <= 1
    assert steps <= 3 * (FEW.max_tokens + 3)
    finish(cut, *long)
    assert {tuple(r.tokens) for r in short} == {alone[0]}
    assert {tuple(r.tokens) for r in long} == {alone[1]}
    turns = sum(len(r.tokens) // TURN for r in long)
    assert cut.counters().preemptions <= 3 + turns


@pytest.mark.usefixtures("short_turns")
def test_long_answers_of_one_client_take_turns(engine: Engine) -> None:
    """Each starts within a turn, also one that comes later, and no more are preempted than turns end."""
    cut = Engine(engine.model, engine.processor, max_num_seqs=4)
    long = [entered(cut, b"a", CHAT) for _ in range(6)]
    for _ in range(TURN + 4):
        cut.step()
    assert all(r.tokens for r in long)
    late = entered(cut, b"a", CHAT)
    for _ in range(4):
        cut.step()
    assert late.tokens, "some have had their turn"
    finish(cut, *long, late)
    assert {tuple(r.tokens) for r in (*long, late)} == {
        engine.generate(SHORT, sampling=CHAT).tokens
    }
    assert 3 <= cut.counters().preemptions <= 7 * CHAT.max_tokens // TURN
    assert cut.counters().blocks_in_use == 0


@pytest.mark.usefixtures("short_turns")
def test_turns_are_longer_where_memory_is_short(engine: Engine) -> None:
    """Keys and values of waiting requests are evicted: turns don't multiply the tokens that run."""
    cut = sized(engine, 7, max_num_seqs=2)
    chat = replace(CHAT, rope="bound")  # it doesn't run again with another table
    rows = cut.rows.prepare(SHORT, chat)
    # Salts differ, so that nothing is shared.
    long = [cut.enter(rows, chat, caller=Client(b"a", salt=b"%d" % i))[0] for i in range(6)]
    finish(cut, *long)
    assert cut.counters().preemptions > 0
    assert cut.counters().tokens < 2 * sum(len(request.ids) for request in long)


@pytest.mark.parametrize("places", [1, 4])
@pytest.mark.usefixtures("short_turns")
def test_short_requests_leave_places_to_long_ones(engine: Engine, places: int) -> None:
    """However many short ones of its client come, a long one gets a turn at least every fourth turn."""
    cut = Engine(engine.model, engine.processor, max_num_seqs=places)
    (long,) = [entered(cut, b"a", CHAT)]
    cut.step()
    short = [entered(cut, b"a") for _ in range(2 * places)]
    steps = answered = 0
    while not long.finish_reason:
        cut.step()
        steps += 1
        answered += sum(bool(r.finish_reason) for r in short)
        short = [r if not r.finish_reason else entered(cut, b"a") for r in short]
    turns = -(-CHAT.max_tokens // TURN)
    assert steps <= turns * (4 * TURN + 2 * FEW.max_tokens)
    assert answered >= steps // (2 * FEW.max_tokens)
    finish(cut, *short)


@pytest.mark.usefixtures("short_turns")
def test_turns_of_one_client_cost_others_nothing(engine: Engine) -> None:
    cut = Engine(engine.model, engine.processor, max_num_seqs=4)
    mine = [entered(cut, b"a", CHAT) for _ in range(8)]
    others = [entered(cut, b"b", CHAT) for _ in range(2)]
    for _ in range(3):
        cut.step()
    for step in range(TURN + 20):
        if step % 9 == 0:
            mine.append(entered(cut, b"a"))
        before = [len(r.tokens) for r in others]
        cut.step()
        assert [len(r.tokens) for r in others] == [n + 1 for n in before]
    assert sum(bool(r.finish_reason) for r in mine) >= 3
    for request in (*mine, *others):
        cut.abort(request)


GRAMMAR = SamplingParams(
    max_tokens=90, grammar=Grammar("regex", "[a-z ]{600,700}"), temperature=1.0
)


@pytest.mark.parametrize("draft", [0, 4])
def test_chats_of_many_clients_yield_to_a_further_one(engine: Engine, draft: int) -> None:
    """Its request starts a quantum after theirs at the latest; all requests get the answers that they get alone."""
    plain = SamplingParams(max_tokens=90, min_tokens=90, draft=draft)
    chats = [
        (SHORT, plain),
        (SHORT, replace(plain, temperature=1.0, seed=7)),
        (SHORT, replace(GRAMMAR, draft=draft)),
        ([Message.user(picture(), "?")], plain),
    ]
    alone = [engine.generate(prompt, sampling=sampling) for prompt, sampling in chats]
    cut = Engine(engine.model, engine.processor, max_num_seqs=len(chats))
    requests = []
    for number, (prompt, sampling) in enumerate(chats):
        sampling = cut.rows.with_grammar(sampling)
        row = cut.rows.prepare(prompt, sampling)
        requests += cut.enter(row, sampling, caller=Client(b"%d" % number))
    while not all(r.tokens for r in requests):
        cut.step()
    # Each of them preempts one of the others, as all of these have run for a quantum before the next one comes.
    for number in range(len(chats)):
        for _ in range(QUANTUM):
            cut.step()
        further = entered(cut, b"further %d" % number, ONE)
        assert finish(cut, further) <= 3
    assert cut.counters().preemptions == len(chats)
    finish(cut, *requests)
    answers = [request.completion() for request in requests]
    assert [a.tokens for a in answers] == [a.tokens for a in alone]
    assert cut.counters().blocks_in_use == 0


@pytest.mark.parametrize("clients", [5, 9])
def test_clients_without_a_slot_take_turns(
    engine: Engine, clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None waits much longer than others, and few tokens run again."""
    monkeypatch.setattr("polyphi.engine.fairness.TURN", TURN)
    cut = Engine(engine.model, engine.processor, max_num_seqs=4)
    long = SamplingParams(max_tokens=12 * TURN)
    requests = [entered(cut, b"%d" % i, long) for i in range(clients)]
    last = [0] * clients
    for step in range(8 * TURN):
        before = [len(r.tokens) for r in requests]
        cut.step()
        for i, request in enumerate(requests):
            if len(request.tokens) > before[i]:
                last[i] = step
            turns = -(-clients // 4)
            assert step - last[i] <= (turns + 1) * TURN + QUANTUM
    generated = [len(r.tokens) for r in requests]
    assert max(generated) <= 2 * min(generated) + 2 * TURN
    counters = cut.counters()
    assert 0 < counters.preemptions <= 8 * 4 + clients
    # Each preemption costs less than a block and a token.
    prompts = sum(len(r.prompt) for r in requests)
    assert counters.tokens - prompts - sum(generated) <= counters.preemptions * (BLOCK + 1)
    for request in requests:
        cut.abort(request)


def test_a_stream_of_new_clients_does_not_starve_a_long_chat(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyphi.engine.fairness.TURN", TURN)
    cut = Engine(engine.model, engine.processor, max_num_seqs=2)
    long = entered(cut, b"long", CHAT)
    steps, new = 0, list[Request]()
    while not long.finish_reason:
        new = [r for r in new if not r.finish_reason]
        while len(new) < 6:
            new.append(entered(cut, b"%d %d" % (steps, len(new)), FEW))
        cut.step()
        steps += 1
        assert steps < 20 * CHAT.max_tokens
    finish(cut, *new)


def test_a_client_that_has_nothing_takes_memory_of_long_chats(engine: Engine) -> None:
    """Two of them have all blocks, and neither may end before it."""
    cut = sized(engine, 2 * SMALL, max_num_seqs=4)
    long = SamplingParams(max_tokens=400, rope="bound")
    chats = [entered(cut, b"%d" % i, long) for i in range(2)]
    cut.step()
    for request in chats:
        request.table.grow(cut.pool.size * BLOCK // 2)
    while not all(len(r.tokens) > QUANTUM for r in chats):
        cut.step()
    assert not cut.pool.available
    assert finish(cut, entered(cut, b"further", ONE)) <= 3
    assert cut.counters().preemptions == 1
    for request in chats:
        cut.abort(request)
    assert cut.counters().blocks_in_use == 0


@pytest.mark.usefixtures("short_turns")
def test_chats_that_do_not_fit_in_memory_together_take_turns(engine: Engine) -> None:
    """Each gets its turns, and no more tokens run again than run for the first time."""
    cut = sized(engine, 7, max_num_seqs=4)
    chat = replace(CHAT, rope="bound")
    requests = [entered(cut, b"%d" % i, chat) for i in range(6)]
    order: list[int] = []
    while len(order) < 6:
        cut.step()
        order += [i for i, r in enumerate(requests) if r.finish_reason and i not in order]
        assert not order or all(r.tokens for r in requests), "all began before one ended"
    assert {tuple(r.tokens) for r in requests} == {engine.generate(SHORT, sampling=chat).tokens}
    assert cut.counters().tokens < 2 * sum(len(r.ids) for r in requests)


def test_memory_is_reserved_for_small_requests(engine: Engine) -> None:
    """Large requests use the other memory, and more of them wait: a small one is admitted at once, before them."""
    blocks = -(-len(engine.rows.row(LONG)) // BLOCK) + 1
    cut = sized(engine, max(SMALL, 10 * blocks), chunk=64, prefill=64)
    rows = cut.rows.prepare(LONG, FEW)
    large = [cut.enter(rows, FEW, caller=Client(salt=b"%d" % i))[0] for i in range(12)]
    for _ in range(3):
        cut.step()
    assert cut.scheduler.waiting, "not all of them fit"
    assert cut.pool.available >= cut.pool.size // RESERVED
    small = cut.submit(SHORT, sampling=ONE)
    for _ in range(3):
        cut.step()
    assert small.finish_reason and cut.scheduler.waiting[0].times_passed_over == 1
    cut.scheduler.waiting[0].times_passed_over = PATIENCE
    last = cut.submit(SHORT, sampling=ONE)
    for _ in range(3):
        cut.step()
    assert not last.finish_reason, "passed over too often"
    finish(cut, *large, last)
    assert cut.counters().blocks_in_use == 0


@pytest.mark.parametrize("part", [picture(120, 120), clip(3.0)], ids=["picture", "clip"])
def test_tokens_are_decoded_between_slices_of_an_encoder(
    engine: Engine, part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request gets a token after each slice; the encoded one gets the answer that it gets alone."""
    messages = [Message.user(part, "what is this?")]
    alone = engine.generate(messages, sampling=FEW).tokens
    cut = Engine(engine.model, engine.processor)
    monkeypatch.setattr("polyphi.engine.engine.SLICE_SECONDS", 0.0)
    beside = cut.submit(SHORT, sampling=SamplingParams(max_tokens=60))
    cut.step()
    request = cut.submit(messages, sampling=FEW)
    request.row.result()
    cut.step()
    before = len(beside.tokens)
    slices = 0
    while not request.tokens:
        slices += 1
        cut.step()
        assert len(beside.tokens) == before + slices
    assert slices > 2
    finish(cut, request, beside)
    assert tuple(request.tokens) == alone


def test_encoding_stops_when_its_request_is_aborted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyphi.engine.engine.SLICE_SECONDS", 0.0)
    request = engine.submit([Message.user(picture(120, 120), "?")], sampling=FEW)
    request.row.result()
    for _ in range(3):
        engine.step()
    assert engine.encoders.group
    engine.abort(request)
    assert not engine.step()
    assert not engine.encoders.group and engine.encoders.calls == 0
    assert engine.counters().requests == engine.counters().blocks_in_use == 0


def test_a_short_clip_does_not_wait_for_the_encoding_of_a_long_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of both run in turn, with the answers that they get alone."""
    monkeypatch.setattr("polyphi.types.inputs.audio.AudioInput.MAX_SIZE", 100)  # frames: 1 s
    monkeypatch.setattr("polyphi.prepared.conformer.BATCH_FEATURES", 10)
    monkeypatch.setattr("polyphi.engine.engine.SLICE_SECONDS", 0.0)
    encoder = engine.model.audio.encoder
    encoder.config = replace(encoder.config, window=10)  # 38 windows of the long clip
    prompts = [[Message.user(clip(seconds), "?")] for seconds in (30.0, 0.5)]
    alone = [engine.generate(prompt, sampling=FEW).tokens for prompt in prompts]
    cut = Engine(engine.model, engine.processor)
    long = cut.submit(prompts[0], sampling=FEW)
    long.row.result()
    while not cut.encoders.group:
        cut.step()
    short = cut.submit(prompts[1], sampling=FEW)
    short.row.result()
    while not short.finish_reason:
        cut.step()
    assert cut.encoders.group and not long.tokens
    finish(cut, long, short)
    assert [tuple(request.tokens) for request in (long, short)] == alone


def test_a_small_image_does_not_wait_for_all_large_ones(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyphi.types.inputs.image.ImageInput.MAX_SIZE", 1)
    monkeypatch.setattr("polyphi.engine.engine.SLICE_SECONDS", 0.0)
    large = [engine.submit([Message.user(picture(120, 120 - i), "?")]) for i in range(4)]
    small = engine.submit([Message.user(picture(20, 20), "?")])
    for request in (*large, small):
        request.row.result()
    while not small.tokens:
        engine.step()
    assert engine.encoders.calls <= 2
    finish(engine, *large, small)
    assert engine.encoders.calls == 5

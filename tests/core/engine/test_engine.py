"""Answers: cached equals uncached, batched equals alone, streamed equals whole; invalid requests raise ValueError."""

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from polyphi.decoding.tool_calls import ToolCall, ToolParser, parse_calls
from polyphi.devices.memory import OutOfMemory
from polyphi.engine import engine as engine_module
from polyphi.engine.engine import Engine, Stopped
from polyphi.engine.request import Client
from polyphi.engine.results import NotFinite
from polyphi.engine.runner import extend
from polyphi.engine.scheduler import StepPart
from polyphi.engine.scores import logits_many, score_many
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.quantize import quantize
from polyphi.types.messages import Message
from polyphi.types.sampling import Grammar, SamplingParams
from tests.fixtures.engines import picture


def without_cache(engine: Engine, messages: list[Message], count: int) -> list[int]:
    """Greedy decoding that runs the whole sequence again for every token."""
    prompt = engine.rows.row(messages)
    tokens: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            hidden = engine.model(extend(prompt, tokens))
            tokens.append(int(engine.model.logits(hidden[-1]).argmax()))
    return tokens


def test_cached_equals_uncached_in_every_mode(
    engine: Engine, conversations: list[list[Message]]
) -> None:
    for messages in conversations:
        answer = engine.generate(messages, sampling=SamplingParams(max_tokens=12))
        assert list(answer.tokens) == without_cache(engine, messages, 12)
        assert len(set(answer.tokens)) > 2, "an answer of one token proves nothing"


@pytest.mark.parametrize("words", [5, 35])
def test_the_long_table_takes_over_while_decoding(engine: Engine, words: int) -> None:
    """The switch is at 64 tokens; a cache kept across it would hold keys rotated with the short table."""
    messages = [Message.user("fox " * words)]
    prompt = len(engine.rows.row(messages))
    assert prompt < 64
    answer = engine.generate(messages, sampling=SamplingParams(max_tokens=80 - prompt))
    assert list(answer.tokens) == without_cache(engine, messages, 80 - prompt)
    assert answer.rope == "short+long"


def test_the_long_table_takes_over_with_media(
    engine: Engine, conversations: list[list[Message]]
) -> None:
    """The embeddings of media are used again."""
    messages = conversations[2]
    count = 70 - len(engine.rows.row(messages))
    answer = engine.generate(messages, sampling=SamplingParams(max_tokens=count))
    assert list(answer.tokens) == without_cache(engine, messages, count)
    assert answer.rope == "short+long"


def test_which_tables_were_used(engine: Engine) -> None:
    """`rope` lists the tables that ran: the last sampled token is never run."""
    messages = [Message.user("dog")]
    prompt = len(engine.rows.row(messages))
    at = lambda count: engine.generate(messages, sampling=SamplingParams(max_tokens=count)).rope  # noqa: E731
    assert at(64 - prompt) == "short"
    assert at(64 - prompt + 1) == "short"
    assert at(64 - prompt + 2) == "short+long"
    assert (
        engine.generate([Message.user("fox " * 90)], sampling=SamplingParams(max_tokens=3)).rope
        == "long"
    )


@pytest.mark.parametrize("draft", [0, 6])
def test_stop_at_calls_draws_no_token_after_the_first_call(engine: Engine, draft: int) -> None:
    """The grammar determines the text; all ways of answering return the same tokens."""
    call = 'functools[{"name": "a", "arguments": {}}'
    text = f"So: {call}, {call[10:]}] {call} {call}"
    sampling = SamplingParams(
        max_tokens=300, grammar=Grammar("regex", re.escape(text)), draft=draft
    )
    messages = [Message.user("the fox")]
    whole = engine.generate(messages, sampling=sampling)
    assert whole.text == text
    stopping = replace(sampling, stop_at_calls=("a",))
    first = engine.generate(messages, sampling=stopping)
    assert parse_calls(first.text, ["a"]) == ("So: ", [ToolCall("a", "{}")])
    assert first.finish_reason == "stop"
    assert first.tokens == whole.tokens[: len(first.tokens)]
    before_last = engine.processor.tokenizer.decode(first.tokens[:-1])
    ends = [
        part.complete for part in ToolParser(["a"]).add(before_last) if not isinstance(part, str)
    ]
    assert True not in ends
    other = engine.generate(messages, sampling=replace(stopping, stop_at_calls="b"))
    assert other.text == text, "no tool of that name is offered"
    pieces = list(engine.stream(messages, sampling=stopping))
    assert "".join(piece.text for piece in pieces) == first.text
    assert pieces[-1].completion == first
    exact = replace(stopping, max_tokens=len(first.tokens))
    assert engine.generate(messages, sampling=exact) == first
    assert engine.generate_many([messages] * 2, sampling=[stopping, sampling]) == [first, whole]
    assert (
        engine.generate(messages, sampling=SamplingParams(stop_at_calls=("a",))).finish_reason
        == "length"
    )


def test_batched_equals_alone(engine: Engine, conversations: list[list[Message]]) -> None:
    many = conversations * 2
    sampling = SamplingParams(
        max_tokens=45
    )  # long enough for several to cross the switch at different steps
    alone = [engine.generate(c, sampling=sampling) for c in many]
    assert {a.rope for a in alone} == {"short", "short+long"}
    assert engine.generate_many(iter(many), sampling=sampling) == alone
    small = Engine(engine.model, engine.processor, max_num_seqs=3, chunk=7, prefill=40)
    assert small.generate_many(many, sampling=sampling) == alone
    assert engine.generate_many([]) == []


def test_batched_equals_alone_when_answers_end_at_different_times(
    engine: Engine, conversations: list[list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [engine.generate(c, sampling=SamplingParams(max_tokens=20)) for c in conversations]
    stops = {a.tokens[5 + 2 * i] for i, a in enumerate(long)}
    monkeypatch.setattr(Tokenizer, "eos_ids", property(lambda _: tuple(stops)))
    alone = [engine.generate(c, sampling=SamplingParams(max_tokens=20)) for c in conversations]
    assert len({len(a.tokens) for a in alone}) > 1
    assert all(a.finish_reason == "stop" and not stops & set(a.tokens) for a in alone)
    two = Engine(engine.model, engine.processor, max_num_seqs=2)
    assert two.generate_many(conversations, sampling=SamplingParams(max_tokens=20)) == alone


def test_sampled_answers_are_the_same_batched_and_alone(
    engine: Engine, conversations: list[list[Message]]
) -> None:
    sampling = SamplingParams(max_tokens=10, temperature=1.5, top_p=0.9, top_k=50, seed=7)
    alone = [engine.generate(c, sampling=sampling) for c in conversations]
    assert engine.generate_many(conversations, sampling=sampling) == alone
    other = engine.generate(conversations[0], sampling=replace(sampling, seed=8))
    assert other.tokens != alone[0].tokens
    each = [replace(sampling, seed=i) for i in range(len(conversations))]
    assert engine.generate_many(conversations, sampling=each) == [
        engine.generate(c, sampling=s) for c, s in zip(conversations, each, strict=True)
    ]


def test_streamed_equals_whole(engine: Engine, conversations: list[list[Message]]) -> None:
    for messages in conversations:
        for sampling in (
            SamplingParams(max_tokens=30),
            SamplingParams(max_tokens=30, temperature=2.0, seed=3),
        ):
            whole = engine.generate(messages, sampling=sampling)
            deltas = list(engine.stream(messages, sampling=sampling))
            assert "".join(d.text for d in deltas) == whole.text
            assert deltas[-1].finish_reason == whole.finish_reason == "length"
            assert all(d.finish_reason is None for d in deltas[:-1])


def test_stop_strings(engine: Engine) -> None:
    messages = [Message.user("the dog")]
    whole = engine.generate(messages, sampling=SamplingParams(max_tokens=30)).text
    stop = whole[10:14]
    answer = engine.generate(messages, sampling=SamplingParams(max_tokens=30, stop=("never", stop)))
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"
    deltas = list(engine.stream(messages, sampling=SamplingParams(max_tokens=30, stop=(stop,))))
    assert "".join(d.text for d in deltas) == answer.text


def test_fields_of_a_completion(engine: Engine, conversations: list[list[Message]]) -> None:
    adapters = [None, "vision", "speech", "vision", None]
    for messages, adapter in zip(conversations, adapters, strict=True):
        row = engine.rows.row(messages)
        answer = engine.generate(messages, sampling=SamplingParams(max_tokens=2))
        assert answer.adapter == adapter
        assert answer.prompt_tokens == len(row)
        tokens = {name: sum(inputs.tokens) for name, inputs in row.inputs.items()}
        assert answer.image_tokens == tokens.get("image", 0)
        assert answer.audio_tokens == tokens.get("audio", 0)


def test_adapters_can_be_chosen(engine: Engine) -> None:
    messages = [Message.user("the dog")]
    answers = {a: engine.generate(messages, adapter=a) for a in ("auto", None, "vision", "speech")}
    assert answers["auto"] == answers[None]
    assert len({a.tokens for a in answers.values()}) == 3
    with pytest.raises(ValueError, match=r"'video'.*\['speech', 'vision'\]"):
        engine.generate(messages, adapter="video")


def test_a_model_without_adapters_or_encoders(
    engine: Engine, conversations: list[list[Message]]
) -> None:
    engine.model.vision = None
    engine.model.audio = None
    with pytest.raises(ValueError, match="image inputs"):
        engine.generate(conversations[1])
    with pytest.raises(ValueError, match="audio inputs"):
        engine.generate(conversations[2])


def test_requests_that_do_not_fit(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"510 .*512"):
        engine.generate([Message.user("dog")], sampling=SamplingParams(max_tokens=510))
    with pytest.raises(ValueError, match="512"):
        engine.generate([Message.user("fox " * 600)])
    with pytest.raises(ValueError, match="max_tokens"):
        engine.stream(
            [Message.user("dog")], sampling=SamplingParams(max_tokens=0)
        )  # before the first delta


def test_scores_are_the_log_probabilities_of_the_continuation(
    engine: Engine, conversations: list[list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = engine.processor.tokenizer
    pairs = [(messages, text) for messages in conversations for text in ("yes", "the lazy dog", "")]
    for messages, text in pairs:
        answer = tokenizer.encode(text)
        logits = logits_many(engine, [extend(engine.rows.row(messages), answer)])[0].log_softmax(-1)
        expected = [
            float(logits[len(logits) - len(answer) + i - 1, t]) for i, t in enumerate(answer)
        ]
        assert score_many(engine, [(messages, text)])[0] == pytest.approx(expected, abs=1e-5)
    alone = [score_many(engine, [pair])[0] for pair in pairs]
    for most in (engine_module.PREFILL_TOKENS, 50):
        monkeypatch.setattr(engine, "prefill", most)
        batched = score_many(engine, pairs)
        assert len(batched) == len(alone)
        assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(batched, alone, strict=True))


def test_greedy_answer_has_the_largest_logit(engine: Engine) -> None:
    messages = [Message.user("the dog")]
    answer = engine.generate(messages, sampling=SamplingParams(max_tokens=1))
    (logits,) = logits_many(engine, [engine.rows.row(messages)])
    assert answer.tokens == (int(logits[-1].argmax()),)


@contextmanager
def driven(engine: Engine) -> Iterator[list[BaseException | None]]:
    """Run steps in another thread; yields the errors (or None) that it reports after each step."""
    stop, errors = threading.Event(), list[BaseException | None]()
    thread = threading.Thread(target=engine.run, args=(stop, errors.append))
    thread.start()
    try:
        yield errors
    finally:
        stop.set()
        thread.join()


def test_one_thread_steps_for_all(engine: Engine, conversations: list[list[Message]]) -> None:
    """Callers in other threads, whole or streamed, get the answers of an engine without such a thread."""
    sampling = SamplingParams(max_tokens=12)
    alone = [engine.generate(c, sampling=sampling).text for c in conversations]
    with driven(engine) as errors, ThreadPoolExecutor(8) as threads:
        whole = threads.map(lambda c: engine.generate(c, sampling=sampling).text, conversations)
        streamed = threads.map(
            lambda c: "".join(d.text for d in engine.stream(c, sampling=sampling)), conversations
        )
        assert list(whole) == alone and list(streamed) == alone
        row = engine.rows.prepare(conversations[1], sampling)
        (request,) = engine.enter(row, sampling)
        text, reason = "", None
        while reason is None:
            more, reason = engine.output_pieces(request)
            text += "".join(more)
        assert text == alone[1]
    assert set(errors) == {None} and engine.counters().requests == 0


def test_the_stepping_thread_reports_a_failing_model(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with driven(engine) as errors:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken"):
            patch.setattr(engine.runner, "run", broken)
            engine.generate([Message.user("hi")])
        assert any(isinstance(error, RuntimeError) for error in errors)
        assert engine.generate([Message.user("hi")], sampling=SamplingParams(2)).tokens


def test_stopped_within_a_step(engine: Engine) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        engine.generate_many([[Message.user("hi")]], stop=stop)
    assert engine.counters().requests == engine.counters().blocks_in_use == 0


def test_out_of_memory_ends_one_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest one; the others run again and return the answers that they return alone, sampled ones too."""
    sampling = SamplingParams(max_tokens=20, temperature=1.0, seed=5)
    small = [Message.user("1 + 2")]
    alone = engine.generate(small, sampling=sampling).text
    run, failures = type(engine.runner).run, []

    def short(parts: Sequence[StepPart], memory: object) -> object:
        if sum(part.size for part in parts) > 30:
            failures.append(len(parts))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return run(engine.runner, parts, memory)

    monkeypatch.setattr(engine.runner, "run", short)
    first = engine.submit(small, sampling=sampling)
    for _ in range(5):
        engine.step()
    large = engine.submit([Message.user("the quick brown fox " * 10)], sampling=sampling)
    while not (first.finish_reason and large.finish_reason):
        engine.step()
    assert failures == [2]
    assert isinstance(large.error, OutOfMemory) and first.error is None
    assert first.completion().text == alone
    assert engine.counters().blocks_in_use == 0


def test_s24_salted_requests_share_nothing(engine: Engine) -> None:
    messages = [Message.user(picture(), "the quick brown fox jumps over the lazy dog " * 3)]
    sampling = SamplingParams(max_tokens=2)
    row = engine.rows.prepare(messages, sampling)
    cached, encoder_calls = [], []
    for salt in (b"", b"", b"one", b"one", b"two"):
        (request,) = engine.enter(row, sampling, caller=Client(salt=salt))
        while not request.finish_reason:
            engine.step()
        cached.append(request.completion().cached)
        encoder_calls.append(engine.encoders.calls)
    assert cached[0] == cached[2] == cached[4] == 0
    assert cached[1] == cached[3] > 0
    assert encoder_calls == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("chunk", [5, 512])
def test_prompt_logprobs(engine: Engine, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, in a batch, with or without an answer: equal to one forward without a cache."""
    messages = [Message.user("the quick brown fox jumps over the lazy dog", picture())]
    row = engine.rows.row(messages)
    logs = logits_many(engine, [row])[0].log_softmax(-1)
    monkeypatch.setattr("polyphi.engine.runner.SCORED", 7)  # several pieces
    cut = Engine(engine.model, engine.processor, chunk=chunk, prefill=chunk)
    only = SamplingParams(max_tokens=0, prompt_logprobs=3)
    beside = SamplingParams(max_tokens=4, prompt_logprobs=3)
    plain = SamplingParams(max_tokens=4)
    answers = cut.generate_many([messages] * 4, sampling=[plain, only, beside, plain])
    assert [len(a.tokens) for a in answers] == [4, 0, 4, 4]
    assert answers[0].tokens == answers[2].tokens and answers[1].finish_reason == "length"
    for logprobs in (answers[1].prompt_logprobs, answers[2].prompt_logprobs):
        assert [t.token for t in logprobs] == row.ids[1:].tolist()
        for at, entry in enumerate(logprobs):
            assert entry.logprob == pytest.approx(logs[at, entry.token].item(), abs=1e-5)
            best = logs[at].topk(3)
            assert [v for _, v in entry.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert answers[0].prompt_logprobs == () and cut.counters().blocks_in_use == 0


def test_prompt_logprobs_of_a_preempted_request(engine: Engine) -> None:
    """Each prompt token has one entry."""
    messages = [Message.user("the quick brown fox jumps over the lazy dog " * 4)]
    scored = SamplingParams(max_tokens=0, prompt_logprobs=0)
    whole = engine.generate(messages, sampling=scored).prompt_logprobs
    cut = Engine(engine.model, engine.processor, chunk=10, prefill=10)
    request = cut.submit(messages, sampling=scored)
    for _ in range(5):
        cut.step()
        if request.phase == "running":
            cut.scheduler.preempt(request)
    while not request.finish_reason:
        cut.step()
    result = request.completion().prompt_logprobs
    assert [t.token for t in result] == [t.token for t in whole]
    assert [t.logprob for t in result] == pytest.approx([t.logprob for t in whole], abs=1e-5)


def ends(engine: Engine, messages: list[Message]) -> dict[str, SamplingParams]:
    """Sampling parameters that decide where an answer ends; the model likes its end tokens and repeats itself."""
    end, other = engine.processor.tokenizer.eos_ids
    base = SamplingParams(max_tokens=24, logit_bias=((end, 6.0),), temperature=1.0, seed=2)
    tokens = engine.generate(messages, sampling=replace(base, ignore_eos=True)).tokens
    text = engine.processor.tokenizer.decode([t for t in tokens if t not in (end, other)])
    return {
        "end": base,
        "ignored": replace(base, ignore_eos=True),
        "min_tokens": replace(base, min_tokens=9),
        "token": replace(base, ignore_eos=True, stop_token_ids=(tokens[11], 5)),
        "included token": replace(
            base, ignore_eos=True, stop_token_ids=(tokens[11],), include_stop=True
        ),
        "string": replace(base, ignore_eos=True, stop=(text[3],), min_tokens=2),
        "included string": replace(base, ignore_eos=True, stop=(text[3],), include_stop=True),
        "grammar": replace(base, grammar=Grammar("regex", "(ab|c){2,30}"), min_tokens=12),
        "plain": SamplingParams(max_tokens=24, ignore_eos=True, stop_token_ids=(end,)),
        "greedy": SamplingParams(max_tokens=24, min_tokens=20, stop=(text[3], text[5])),
    }


def test_the_end_of_an_answer_depends_on_its_request_alone(engine: Engine) -> None:
    """With draft tokens, cached prefixes, in a batch and as a stream."""
    with torch.no_grad():  # answers repeat themselves, so that drafts are accepted
        engine.model.decoder.embed_tokens.weight[60:] *= 0.01
    messages = [Message.user("the quick brown fox")]
    samplings = ends(engine, messages)
    alone = {}
    for name, sampling in samplings.items():
        bare = Engine(engine.model, engine.processor, prefix_cache=False)
        alone[name] = bare.generate(messages, sampling=replace(sampling, draft=0))
        for draft in (0, 6):
            before = engine.counters().steps
            same = engine.generate(messages, sampling=replace(sampling, draft=draft))
            assert same == alone[name], (name, draft)
            if draft and name in ("plain", "greedy"):
                assert engine.counters().steps - before < len(same.tokens), "no draft was accepted"
        pieces = list(engine.stream(messages, sampling=sampling))
        assert "".join(piece.text for piece in pieces) == alone[name].text
        assert tuple(t for piece in pieces for t in piece.tokens) == alone[name].tokens
    drafted = [replace(sampling, draft=4) for sampling in samplings.values()]
    batch = engine.generate_many([messages] * len(drafted), sampling=drafted)
    assert batch == list(alone.values())


def test_where_an_answer_ends(engine: Engine) -> None:
    messages = [Message.user("the quick brown fox")]
    tokenizer, samplings = engine.processor.tokenizer, ends(engine, messages)
    a = {name: engine.generate(messages, sampling=s) for name, s in samplings.items()}
    whole = a["ignored"]
    assert len(whole.tokens) == 24 and whole.finish_reason == "length"
    eos = [i for i, token in enumerate(whole.tokens) if token in tokenizer.eos_ids]
    assert eos and not any(name in whole.text for name in tokenizer.controls)
    assert a["end"].tokens == whole.tokens[: eos[0]]
    assert (a["end"].finish_reason, a["end"].stop_reason) == ("stop", None)
    assert len(a["min_tokens"].tokens) >= 9 > len(a["end"].tokens)
    assert not set(a["min_tokens"].tokens) & set(tokenizer.eos_ids)
    stop = whole.tokens[11]
    at = min(whole.tokens.index(t) for t in samplings["token"].stop_token_ids if t in whole.tokens)
    assert a["token"].tokens == whole.tokens[:at]
    assert (a["token"].finish_reason, a["token"].stop_reason) == ("stop", whole.tokens[at])
    assert a["included token"].tokens == whole.tokens[: whole.tokens.index(stop) + 1]
    assert a["included token"].stop_reason == stop
    (word,) = samplings["included string"].stop
    assert a["included string"].text == whole.text[: whole.text.index(word) + 1]
    assert (a["included string"].finish_reason, a["included string"].stop_reason) == ("stop", word)
    assert len(a["string"].tokens) >= 2 and not a["string"].text.endswith(word)
    assert len(a["grammar"].tokens) >= 12


@pytest.mark.parametrize("field", ["stop_token_ids", "logit_bias"])
def test_ids_outside_the_vocabulary_are_refused(engine: Engine, field: str) -> None:
    size = engine.processor.tokenizer.vocab_size
    for token, valid in ((size - 1, True), (size, False)):
        value = (token,) if field == "stop_token_ids" else ((token, 1.0),)
        sampling = SamplingParams(**{field: value, "max_tokens": 1})  # type: ignore[arg-type]
        if valid:
            engine.generate([Message.user("hi")], sampling=sampling)
            continue
        with pytest.raises(ValueError, match=field):
            engine.generate([Message.user("hi")], sampling=sampling)


SAMPLINGS = {
    "greedy": SamplingParams(max_tokens=3),
    "sampled": SamplingParams(max_tokens=3, temperature=1.0, seed=1),
    "logprobs": SamplingParams(max_tokens=3, logprobs=2),
    "penalised": SamplingParams(max_tokens=3, frequency_penalty=1.0),
    "grammar": SamplingParams(max_tokens=3, grammar=Grammar("regex", "[a-z]{9}")),
    "drafted": SamplingParams(max_tokens=3, draft=4),
    "scored": SamplingParams(max_tokens=0, prompt_logprobs=1),
}


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, float("nan")) for name in SAMPLINGS),
        ("greedy", float("inf")),
        ("sampled", -float("inf")),
    ],
)
def test_output_that_is_not_finite_ends_that_request_alone(
    engine: Engine, name: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all sampling parameters; a request in the same batch and one after it get the answers that they get alone."""
    good, wrong = [Message.user("1 + 2")], [Message.user("größer")]
    alone = engine.generate(good, sampling=SAMPLINGS["greedy"])
    poison = engine.processor.tokenizer.encode("größer")[0]
    embed = engine.model.decoder.embed
    monkeypatch.setattr(
        engine.model.decoder,
        "embed",
        lambda ids: torch.where((ids == poison)[:, None], bad, embed(ids)),
    )
    beside = engine.submit(good, sampling=SAMPLINGS["greedy"])
    request = engine.submit(wrong, sampling=SAMPLINGS[name])
    while not (beside.finish_reason and request.finish_reason):
        engine.step()
    assert isinstance(request.error, NotFinite) and "NaN or infinite" in str(request.error)
    assert beside.completion().tokens == alone.tokens
    assert engine.generate(good, sampling=SAMPLINGS["greedy"]).tokens == alone.tokens
    assert engine.counters().blocks_in_use == 0


@pytest.mark.parametrize("quant", ["bf16", "int8", "int4-all"])
def test_output_that_is_not_finite_is_detected_in_every_format(engine: Engine, quant: str) -> None:
    """Also where activations are rounded to integers."""
    with torch.no_grad():
        engine.model.decoder.layers[0].input_layernorm.weight[3] = float("inf")
    small = Engine(quantize(engine.model.bfloat16(), quant), engine.processor)
    with pytest.raises(NotFinite):
        small.generate([Message.user("1 + 2")], sampling=SAMPLINGS["greedy"])


def test_keys_and_values_in_8_bits_take_less_and_answer_alike(engine) -> None:
    whole, small = (
        Engine(engine.model, engine.processor, memory=10**6, kv=kv) for kv in (None, "int8")
    )
    assert small.capacity > 3 * whole.capacity  # 16 numbers in float32, or 16 bytes and a scale
    messages, short = [Message.user("the quick brown fox")], SamplingParams(max_tokens=3)
    answers = [e.generate(messages, sampling=short) for e in (whole, small, small)]
    assert answers[0].tokens[0] == answers[1].tokens[0]
    assert answers[1].tokens == answers[2].tokens, "cached keys equal computed ones"

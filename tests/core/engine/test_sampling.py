"""Sampling: every rule against its plain formula, and an answer that depends on its request alone."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyphi.decoding.structured import compile_grammar
from polyphi.engine.sampling import Sampler, candidates, check, likeliest
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.sampling import Grammar, SamplingParams

TOKENIZER = Tokenizer.train(["yes no maybe"], vocab_size=320)
LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])
SOME = st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=12)


def sampler(prompt: tuple[int, ...] = (), **values: Any) -> Sampler:
    sampling, matcher = SamplingParams(**values), None
    check(sampling)
    if sampling.grammar is not None:
        matcher = compile_grammar(sampling.grammar, TOKENIZER).matcher()
    return Sampler(sampling, TOKENIZER, prompt, matcher)


def softmax(scores: list[float]) -> list[float]:
    exps = [math.exp(s - max(scores)) for s in scores]
    return [e / sum(exps) for e in exps]


def penalised(
    scores: list[float], prompt: tuple[int, ...], answer: list[int], s: SamplingParams
) -> list[float]:
    """The penalties by their formulas."""
    out = []
    for token, score in enumerate(scores):
        if token in prompt or token in answer:
            by = s.repetition_penalty
            score = score / by if score > 0 else score * by
        times = answer.count(token)
        out.append(score - s.presence_penalty * (times > 0) - s.frequency_penalty * times)
    return out


def assume_clear(scores: list[float], s: SamplingParams) -> None:
    """Skip cases in which rounding decides a cut or the order: scores are equal or clearly different."""
    ordered = sorted(scores)
    assume(all(a == b or b - a > 1e-4 for a, b in pairwise(ordered)))
    shares = sorted(softmax([x / s.temperature for x in scores]), reverse=True)
    shares = shares[: s.top_k or len(shares)]
    for i in range(len(shares)):
        assume(abs(sum(shares[:i]) / sum(shares) - s.top_p) > 1e-5)
        assume(abs(shares[i] / shares[0] - s.min_p) > 1e-5)


def expected_candidates(scores: list[float], s: SamplingParams) -> dict[int, float]:
    """The tokens that may be sampled and their probabilities, by the formulas."""
    shares = softmax([x / s.temperature for x in scores])
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    order = order[: s.top_k or len(order)]
    whole = sum(shares[i] for i in order)
    chosen, before = [], 0.0
    for i in order:
        if before < s.top_p:
            chosen.append(i)
        before += shares[i] / whole
    chosen = [i for i in chosen if shares[i] >= s.min_p * shares[order[0]]]
    whole = sum(shares[i] for i in chosen)
    return {i: shares[i] / whole for i in chosen}


@settings(max_examples=50, deadline=None)
@given(
    SOME,
    st.floats(0.1, 5),
    st.integers(0, 14),
    st.floats(0.01, 1),
    st.sampled_from([0.0, 0.03, 0.3, 0.99]),
)
def test_cuts(scores: list[float], heat: float, k: int, p: float, least: float) -> None:
    s = SamplingParams(temperature=heat, top_k=k, top_p=p, min_p=least)
    assume_clear(scores, s)
    expected = expected_candidates(scores, s)
    probabilities, ids = candidates(torch.tensor(scores), s)
    assert dict(zip(ids.tolist(), probabilities.tolist(), strict=True)) == pytest.approx(
        expected, abs=1e-5
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 14))
def test_equal_values_stand_by_id(values: list[int], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert likeliest(torch.tensor(values).float(), count).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(
    # Below 0 as well, where a penalty multiplies.
    st.sampled_from([(-8, 8), (-8, -0.5)]).flatmap(
        lambda ends: st.lists(
            st.lists(st.floats(*ends, width=16), min_size=4, max_size=4), min_size=3, max_size=8
        )
    ),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([1.0, 2.0, 0.5]),
    st.sampled_from([0.0, 1.5, -2.0]),
    st.sampled_from([0.0, 0.4, -0.3]),
)
def test_penalties(
    steps: list[list[float]],
    prompt: tuple[int, ...],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    s = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    draws = Sampler(s, TOKENIZER, prompt)
    answer: list[int] = []
    for scores in steps:
        expected = penalised(scores, prompt, answer, s)
        best, *others = sorted(expected, reverse=True)
        assume(best - others[0] > 1e-3)
        answer.append(draws.draw(torch.tensor(scores)))
        assert answer[-1] == expected.index(best)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30, width=16), min_size=1, max_size=30), st.integers(0, 20))
def test_logprobs_are_the_models_own(scores: list[float], count: int) -> None:
    """Before penalties, temperature and cuts."""
    draws = sampler((0,), logprobs=count, temperature=2.0, top_k=1, repetition_penalty=3.0)
    token = draws.draw(torch.tensor(scores))
    (entry,) = draws.logprobs
    total = max(scores) + math.log(sum(math.exp(x - max(scores)) for x in scores))
    assert entry.token == token
    assert entry.logprob == pytest.approx(scores[token] - total, abs=1e-4)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    assert [i for i, _ in entry.top] == order
    assert [x for _, x in entry.top] == pytest.approx([scores[i] - total for i in order], abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-8, 8, width=16), min_size=4, max_size=4),
    st.dictionaries(st.integers(0, 3), st.sampled_from([-100.0, -2.5, 0.0, 3.5, 100.0])),
)
def test_a_bias_is_added_to_its_logit(scores: list[float], bias: dict[int, float]) -> None:
    expected = [score + bias.get(token, 0.0) for token, score in enumerate(scores)]
    assume_clear(expected, SamplingParams(temperature=1.0))
    best = max(range(4), key=expected.__getitem__)
    draws = sampler(logit_bias=tuple(bias.items()), logprobs=0)
    for _ in range(2):  # at every position
        assert draws.draw(torch.tensor(scores)) == best
    raw = torch.tensor(scores).log_softmax(-1)[best].item()
    assert draws.logprobs[0].logprob == pytest.approx(raw, abs=1e-4), "before the bias"


EOS = TOKENIZER.eos_ids[0]


def with_end(best: int = 5) -> Tensor:
    """Logits of which the end token's is the largest, and another one's the second."""
    logits = torch.zeros(TOKENIZER.vocab_size)
    logits[[EOS, best]] = torch.tensor([9.0, 7.0])
    return logits


@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_min_tokens_come_before_the_end(heat: float) -> None:
    draws = sampler(min_tokens=3, stop_token_ids=(6,), temperature=heat, logit_bias=((EOS, 50.0),))
    tokens = [draws.draw(with_end()) for _ in range(4)]
    assert not {EOS, 6} & set(tokens[:3]) and tokens[3] == EOS


def test_a_grammar_ends_before_min_tokens_and_with_ignored_end_tokens() -> None:
    """Where it allows other tokens, an end token is not among them."""
    for ends in ({"min_tokens": 8}, {"ignore_eos": True}):
        draws = sampler(grammar=Grammar("regex", "(yes){1,3}"), **ends)
        answer = []
        while not draws.finished:
            answer.append(draws.draw(with_end()))
        assert TOKENIZER.decode(answer) == "yes" * 3
    draws = sampler(grammar=Grammar("regex", "(yes){1,3}"))
    answer = [draws.draw(with_end())]
    while answer[-1] != EOS:
        answer.append(draws.draw(with_end()))
    assert TOKENIZER.decode(answer, skip_special=True) == "yes"


def test_greedy_is_the_largest_and_the_first_of_equal_ones() -> None:
    assert sampler().draw(LOGITS) == 1
    assert sampler().draw(torch.tensor([0.0, 3.0, 3.0])) == 1
    assert sampler(temperature=1e-8).draw(LOGITS) == 1


def test_plain_samplers() -> None:
    assert sampler().plain and sampler(seed=5, top_p=0.5, top_k=3).plain
    for values in (
        {"temperature": 0.5},
        {"logprobs": 0},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"repetition_penalty": 1.1},
        {"grammar": Grammar("regex", "yes")},
        {"logit_bias": ((3, 1.0),)},
        {"min_tokens": 1},
    ):
        assert not sampler(**values).plain
    assert sampler(ignore_eos=True, stop_token_ids=(3,)).plain
    assert not sampler().finished


def drawn(sampler: Sampler, count: int) -> Tensor:
    return torch.bincount(torch.tensor([sampler.draw(LOGITS) for _ in range(count)]), minlength=5)


@pytest.mark.parametrize("cuts", [{}, {"top_k": 4, "top_p": 0.9}, {"min_p": 0.2}])
def test_draws_follow_the_probabilities(cuts: dict) -> None:
    s = SamplingParams(temperature=0.7, seed=1, **cuts)
    expected = torch.zeros(5)
    for token, share in expected_candidates(LOGITS.tolist(), s).items():
        expected[token] = share
    counts = drawn(Sampler(s, TOKENIZER), 2000)
    torch.testing.assert_close(counts / 2000, expected, atol=0.04, rtol=0)
    assert not counts[expected == 0].any()


def test_a_seed_fixes_the_draws_whatever_else_is_drawn() -> None:
    alone = sampler(temperature=3.0, seed=1)
    first = [alone.draw(LOGITS) for _ in range(20)]
    one, two = sampler(temperature=3.0, seed=1), sampler(temperature=3.0, seed=2)
    mixed = []
    for _ in range(20):
        torch.rand(3)
        mixed.append((one.draw(LOGITS), two.draw(LOGITS)))
    assert [a for a, _ in mixed] == first
    assert [b for _, b in mixed] != first
    assert (
        len({tuple(drawn(sampler(temperature=3.0, seed=s), 20).tolist()) for s in (-1, 0, 9)}) > 1
    )


def test_a_cut_that_leaves_one_takes_its_number_all_the_same() -> None:
    """So that later draws don't depend on how sharp earlier logits were."""
    one, two = sampler(temperature=1.0, seed=4), sampler(temperature=1.0, seed=4)
    one.draw(LOGITS)
    two.draw(torch.tensor([90.0, 0.0, 0.0, 0.0, 0.0]))
    assert [one.draw(LOGITS) for _ in range(20)] == [two.draw(LOGITS) for _ in range(20)]


@pytest.mark.parametrize("heat", [1e-3, 1.0, 100.0])
def test_extreme_logits(heat: float) -> None:
    hard = torch.tensor([1e30, -1e30, float("-inf"), 3.0])
    assert sampler(temperature=heat).draw(hard) == 0


def test_a_grammar_with_penalties_and_logprobs() -> None:
    draws = sampler(
        grammar=Grammar("regex", "(yes|no){3}"),
        temperature=2.0,
        frequency_penalty=1.0,
        logprobs=1,
        seed=3,
    )
    answer = []
    while not draws.finished:
        logits = torch.zeros(TOKENIZER.vocab_size)
        logits[7] = 5.0
        answer.append(draws.draw(logits))
    text = TOKENIZER.decode(answer)
    assert text.replace("yes", "").replace("no", "") == "" and draws.finished
    assert [t.token for t in draws.logprobs] == answer
    assert {t.top[0][0] for t in draws.logprobs} == {7}, "the model's own choice"
    assert draws.draw(torch.zeros(TOKENIZER.vocab_size)) in TOKENIZER.eos_ids


INVALID: list[dict[str, Any]] = [
    *({"max_tokens": v} for v in (0, -1, 1.5, None, True, "9")),
    *({"temperature": v} for v in (-1.0, 101.0, 1e30, math.nan, math.inf, "hot", None)),
    *({"top_p": v} for v in (0.0, 0, -0.1, 1.1, math.nan, None)),
    *({"top_k": v} for v in (-1, 2.0, math.nan)),
    *({"seed": v} for v in (2**64, -(2**63) - 1, 0.5, None)),
    *({"min_p": v} for v in (-0.1, 1.1, math.nan)),
    *({"repetition_penalty": v} for v in (0.0, -1.0, 1e9, math.nan)),
    *({"presence_penalty": v} for v in (-2.1, 2.1, math.nan)),
    *({"frequency_penalty": v} for v in (-2.1, 2.1, math.inf)),
    *({"logprobs": v} for v in (-1, 21, 10**9, 1.0, True)),
    *({"prompt_logprobs": v} for v in (-1, 21, 1.0)),
    {"max_tokens": 0},
    {"n": 2, "max_tokens": 0, "prompt_logprobs": 0},
    *({"n": v} for v in (0, -3, 129, 10**9, 1.5)),
    *({"draft": v} for v in (-1, 17, 10**9, 0.5)),
    *({"rope": v} for v in ("short", None)),
    *({"stop": v} for v in (3, ("",), ("a", ""), (1,), ("x",) * 17, ("y" * 257,), None)),
    *({"grammar": v} for v in ("json", {"type": "object"})),
    *({"min_tokens": v} for v in (-1, 1.5, None)),
    *({"stop_token_ids": v} for v in (-5, (-1,), (1.0,), "ab", (1,) * 17, None)),
    *(
        {"logit_bias": v}
        for v in ({1: 101.0}, ((1, 101.0),), ((-1, 1.0),), ((1, math.nan),), (1, 2))
    ),
    {"logit_bias": tuple((token, 1.0) for token in range(1025))},
]


@pytest.mark.parametrize("bad", INVALID, ids=str)
def test_invalid_values_raise_one_line(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        check(SamplingParams(**bad))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError):
        sampler(**bad)


def test_limits_are_allowed() -> None:
    check(SamplingParams())
    wide = SamplingParams(
        10**6,
        100.0,
        1.0,
        10**9,
        2**63 - 1,
        ("y" * 256,) * 16,
        1.0,
        100.0,
        2,
        -2.0,
        20,
        128,
        None,
        16,
    )
    check(wide)
    check(replace(wide, stop=[], seed=-(2**63), logprobs=None, rope="bound"))  # type: ignore[arg-type]
    assert Counter([Sampler(wide, TOKENIZER).draw(LOGITS)]) == {1: 1}

"""Reasoning: the split doesn't depend on how the text is cut, and a budget closes the block in any batch."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyphi.decoding.reasoning import Reasoning, ReasoningParser
from polyphi.engine.engine import Engine
from polyphi.engine.sampling import Sampler, check
from polyphi.processing.reasoning import CLOSING, THINK, THINK_END
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.sampling import Grammar, SamplingParams

TEXTS = st.lists(
    st.sampled_from(
        [THINK, THINK_END, "<", "</", "th", "ink>", ">", " ", "\n", "a", "é", "\u3000"]
    ),
    max_size=12,
).map("".join)


def split(pieces: list[str]) -> tuple[str, str]:
    """Reasoning and content."""
    parser = ReasoningParser()
    parts = [part for piece in pieces for part in parser.add(piece)] + parser.finish()
    assert all(part != "" and part != Reasoning("") for part in parts)
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    return reasoning, "".join(part for part in parts if isinstance(part, str))


def expected(text: str) -> tuple[str, str]:
    if not text.lstrip().startswith(THINK):
        return "", text
    inner, mark, rest = text.lstrip().removeprefix(THINK).partition(THINK_END)
    return (inner.strip(), rest.lstrip()) if mark else (inner.lstrip(), "")


@given(TEXTS, st.randoms(use_true_random=False))
def test_however_the_text_is_cut(text: str, rng: random.Random) -> None:
    at = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))
    pieces = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    assert split(pieces) == split(list(text)) == split([text]) == expected(text)


@pytest.mark.parametrize("unit", ["a", " ", "<", "</think", "\n<"])
def test_long_texts_take_linear_work(unit: str) -> None:
    """Each call handles its own piece and a bounded rest."""
    text = THINK + unit * 20_000

    class Counted(ReasoningParser):
        handled = 0

        def _inside(self, text: str) -> tuple[str, str]:
            Counted.handled += len(text)
            return super()._inside(text)

    parser = Counted()
    for character in text:
        parser.add(character)
    assert Counted.handled <= len(THINK_END) * len(text)


# The engine


class Script:
    """Makes every sampler draw the tokens of a text, then the end token; forced tokens come in between."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokenizer = engine.processor.tokenizer
        self.text = ""
        choose = Sampler._choose

        def scripted(sampler: Sampler, logits: torch.Tensor) -> int:
            ids = [*self.tokenizer.encode(self.text), *self.tokenizer.eos_ids]
            state = vars(sampler)
            at = state["at"] = state.get("at", -1) + 1
            logits = logits.clone()
            logits[ids[min(at, len(ids) - 2)]] = 1e4
            return choose(sampler, logits)

        monkeypatch.setattr(Sampler, "_choose", scripted)


@pytest.fixture
def script(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(engine, monkeypatch)


def answer(engine: Engine, **fields: Any) -> Completion:
    sampling = SamplingParams(**{"max_tokens": 300, "temperature": 0.1, **fields})
    return engine.generate([Message.user("1 + 2")], sampling=sampling)


def test_tokens_of_the_reasoning_are_counted(engine: Engine, script: Script) -> None:
    encode = script.tokenizer.encode
    script.text = "<think>one and two</think>3"
    result = answer(engine, reasoning=True)
    assert result.text == script.text
    assert len(encode("<think>one and two")) < result.reasoning_tokens <= len(result.tokens) - 1
    assert answer(engine).reasoning_tokens == 0
    script.text = "<think>one and two"  # never closed
    result = answer(engine, reasoning=True)
    assert result.reasoning_tokens == len(result.tokens) == len(encode(script.text))
    script.text = "3 <think>one</think>"
    assert answer(engine, reasoning=True).reasoning_tokens == 0


@pytest.mark.parametrize("budget", [0, 12, 21, 10_000])
def test_a_budget_closes_the_block(engine: Engine, script: Script, budget: int) -> None:
    script.text = "<think>the quick brown fox jumps over</think>\n\nthe lazy dog"
    result = answer(engine, reasoning=True, reasoning_budget=budget)
    reasoning, content = split([result.text])
    free = answer(engine, reasoning=True)
    if budget == 10_000:
        assert result == free
        return
    assert "the quick brown fox jumps over".startswith(reasoning.rstrip(" "))
    opening = len(script.tokenizer.encode(THINK))
    closing = len(script.tokenizer.encode(CLOSING))
    assert result.reasoning_tokens <= max(budget, opening) + closing
    # The model's own text goes on behind the block.
    assert content.endswith("the lazy dog")
    assert len(reasoning) <= len(split([free.text])[0])


def test_a_budget_is_the_same_in_any_batch_and_with_drafts(engine: Engine) -> None:
    """Real sampling, with a vocabulary that opens a block by itself: `<think>` is forced as the first text."""
    conversations = [[Message.user(text)] for text in ("the quick fox", "1 + 2", "größer als")]
    tokenizer = engine.processor.tokenizer
    start = Sampler.__init__

    def opening(sampler: Sampler, *args: Any, **kwargs: Any) -> None:
        start(sampler, *args, **kwargs)
        sampler.force(tokenizer.encode(THINK))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "__init__", opening)
        sampling = SamplingParams(
            max_tokens=60, temperature=0.9, seed=4, reasoning=True, reasoning_budget=25, draft=0
        )
        alone = [engine.generate(c, sampling=sampling) for c in conversations]
        together = engine.generate_many(conversations, sampling=sampling)
        drafted = engine.generate_many(conversations, sampling=replace(sampling, draft=6))
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [c.tokens for c in drafted] == [c.tokens for c in alone]
    for completion in alone:
        assert THINK_END in completion.text and split([completion.text])[1]
        assert completion.reasoning_tokens <= 25 + len(tokenizer.encode(CLOSING))


def test_a_call_in_the_reasoning_does_not_end_the_answer(engine: Engine, script: Script) -> None:
    call = 'functools[{"name": "f", "arguments": {}}]'
    script.text = f"<think>{call}</think>{call} and on"
    result = answer(engine, reasoning=True, stop_at_calls="f")
    assert result.finish_reason == "stop" and result.text == f"<think>{call}</think>{call[:-1]}"


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_budget": -1, "reasoning": True},
        {"reasoning_budget": 5},
        {"reasoning": True, "grammar": Grammar("json", "true")},
    ],
)
def test_invalid_values(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="reasoning"):
        check(SamplingParams(**fields))

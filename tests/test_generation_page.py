"""The Python of docs/generation.md runs as it stands, with a model that samples at random."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import polyphi
from polyphi.decoding.grammars import (
    MAX_CALLS,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_LEVELS,
    MAX_REGEX,
    PROCESS_MEMORY,
)
from polyphi.decoding.structured import compile_grammar
from polyphi.decoding.tool_calls import CallDelta
from polyphi.engine.sampling import MAX_ANSWERS, MAX_DRAFT, MAX_LOGPROBS, MAX_STOPS, Sampler
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.completion import Completion
from polyphi.types.sampling import SamplingParams

PAGE = (Path(__file__).parents[1] / "docs" / "generation.md").read_text()


class Babbler:
    """An engine that answers at random, by the grammar if there is one."""

    tokenizer = Tokenizer.train(['{"city": "Rome", "sure": true}'], vocab_size=320)

    def generate_many(
        self, prompts: Iterable[Any], *, sampling: SamplingParams, adapter: str
    ) -> list[Completion]:
        return [self.completion(sampling) for _ in prompts]

    def completion(self, sampling: SamplingParams) -> Completion:
        matcher = None
        if sampling.grammar is not None:
            matcher = compile_grammar(sampling.grammar, self.tokenizer).matcher()
        sampler = Sampler(sampling, self.tokenizer, matcher=matcher)
        tokens: list[int] = []
        torch.manual_seed(0)
        while not sampler.finished and len(tokens) < sampling.max_tokens:
            logits = torch.randn(self.tokenizer.vocab_size)
            logits[[i for s in " \n\t" for i in self.tokenizer.encode(s)]] -= 9
            logits[self.tokenizer.encode('"') + self.tokenizer.encode("]")] += 2
            tokens.append(sampler.draw(logits))
        text = self.tokenizer.decode(tokens, skip_special=True)
        return Completion(text, tuple(tokens), logprobs=tuple(sampler.logprobs))


def test_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    phi = polyphi.Phi.__new__(polyphi.Phi)
    phi.engine = Babbler()  # type: ignore[assignment]
    monkeypatch.setattr(polyphi, "load", lambda _: phi)
    names: dict[str, Any] = {}
    for block in re.findall(r"(?s)```python\n(.*?)```", PAGE):
        exec(block, names)
    assert len(names["answer"].logprobs) == 200 and len(names["answer"].logprobs[0].top) == 3
    assert names["city"] in ("Rome", "Oslo")
    assert re.fullmatch("(19|20)[0-9]{2}", names["year"].text)
    assert names["content"] == "" and {"city"} <= names["arguments"].keys() <= {"city", "days"}
    assert names["parts"] == ["Look: ", CallDelta("now", "{}", True)]


def test_its_limits_are_those_of_the_code() -> None:
    numbers = set(re.findall(r"\d[\d,]*\d|\d", PAGE))
    limits = {
        MAX_LOGPROBS,
        MAX_STOPS,
        MAX_ANSWERS,
        MAX_LEVELS,
        MAX_CHARACTERS,
        MAX_DEPTH,
        MAX_REGEX,
        MAX_CALLS,
        MAX_DRAFT,
        PROCESS_MEMORY >> 20,
    }
    assert {f"{limit:,}" for limit in limits} <= numbers

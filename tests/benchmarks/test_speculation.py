"""The benchmark of speculative decoding, on a tiny model: it gives the given answers and counts accepted tokens."""

import random
from collections.abc import Callable
from types import ModuleType

import pytest

from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from tests.fixtures.engines import SAYINGS, fitted, make_engine


@pytest.fixture
def script(benchmark: Callable[..., ModuleType]) -> ModuleType:
    return benchmark("speculation")


def test_the_right_answers_are_given_and_counted(script, tiny_config: ModelConfig) -> None:
    tokenizer = Tokenizer.train(SAYINGS, vocab_size=384)
    original = make_engine(fitted(tiny_config, tokenizer), tokenizer)
    engine = script.Counting(original.model, original.processor)
    text = f"{SAYINGS[0]}. {SAYINGS[1]}. " * 2
    right = tokenizer.encode(text)
    prompts = [([Message.user("Read.")], len(right), right), ([Message.user("1 + 2")], 9, None)]
    counts = script.compare(engine, prompts, turns=1)
    assert counts.answers == 2 and counts.changed == 0
    assert counts.tokens == len(right) - 1 + 9 - 1
    assert counts.tokens == counts.steps + counts.right
    assert counts.drafted >= counts.right > len(right) // 4  # its second half is its first
    rows = script.table({"text": counts}).splitlines()
    assert rows[2].startswith(f"| text | 2 | {counts.tokens} | {counts.drafted} | ")
    assert len({row.count("|") for row in rows}) == 1


def test_real_texts_are_there_with_their_right_answers(script) -> None:
    read, corrected = script.pages(3, random.Random(0))
    assert len(read) == len(corrected) == 3
    for messages, right in corrected:
        text = messages[0].text.split("\n", 1)[1]
        assert text != right and sorted(text) == sorted(right)
    import textwrap

    for messages, right in script.code(2, [textwrap]):
        assert "the_" in right and "the_" in messages[0].text


def test_matches_have_their_length_and_whether_they_were_right(script) -> None:
    pairs = list(script.matches([1, 2, 3, 9, 1], [2, 3, 4, 3]))
    # after 1: 2, as it was; after 1, 2: 3; after 1, 2, 3 came 9, and now 4; after 4 nothing is known
    assert pairs == [("1", True), ("2 to 3", True), ("2 to 3", False)]

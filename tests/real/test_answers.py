"""Answers of a real language model: each is its own in every batch, in pieces and with drafts; forms hold and mean
something; log-probabilities are those of transformers."""

import json
from typing import Any

import pytest
import torch

from polyphi.api import Phi
from polyphi.types.sampling import Grammar, SamplingParams
from tests.real.prompts import PROMPTS

pytestmark = pytest.mark.long

GREEDY = SamplingParams(max_tokens=32)
NEAR = 1e-4
"""Two best logits that differ by a smaller share may change places with the order of sums."""
CAPITALS = {"Germany": "Berlin", "France": "Paris", "Spain": "Madrid", "Austria": "Vienna"}
TEXT = (
    "The old lighthouse stood on a small island off the northern coast. Every evening the keeper climbed its ninety "
    "steps, cleaned the lamp and lit it before the sun went down. In winter the boats could not reach the island for "
    "weeks, and he lived on bread, dried fish and the letters that he had already read."
)


def differs_before_a_tie(phi: Phi, prompt: str, one: Any, other: Any) -> bool:
    """Whether two greedy answers differ before a token where the two best logits nearly tie."""
    pairs = zip(one.tokens, other.tokens, strict=False)
    if (at := next((n for n, (a, b) in enumerate(pairs) if a != b), None)) is None:
        return len(one.tokens) != len(other.tokens)
    ids = [*phi.tokenize(prompt), *one.tokens[:at]]
    best = phi.logits(ids, last=1)[1][0].topk(2).values
    return bool(best[0] - best[1] >= NEAR * best[0].abs())


def test_an_answer_is_the_same_in_every_batch(phi: Phi) -> None:
    prompts = [*PROMPTS[::10], TEXT + " " + PROMPTS[0]]
    together = phi.generate_many(prompts, sampling=GREEDY)
    for prompt, answer in zip(prompts, together, strict=True):
        phi.engine.pool.clear_cache()
        alone = phi.generate(prompt, sampling=GREEDY)
        assert alone.cached == 0
        again = phi.generate(prompt, sampling=GREEDY)
        assert not differs_before_a_tie(phi, prompt, alone, answer)
        assert not differs_before_a_tie(phi, prompt, alone, again)


def test_a_stream_is_the_answer(phi: Phi) -> None:
    for prompt in PROMPTS[:3]:
        deltas = list(phi.stream(prompt, sampling=GREEDY))
        whole = phi.generate(prompt, sampling=GREEDY)
        assert "".join(delta.text for delta in deltas) == whole.text
        assert deltas[-1].finish_reason == whole.finish_reason


def test_answers_end_by_their_own_token_at_a_stop_and_at_the_limit(phi: Phi) -> None:
    answer = phi.generate("What is the capital of Germany?", sampling=GREEDY)
    assert answer.text == "The capital of Germany is Berlin." and answer.finish_reason == "stop"
    count = phi.generate("Count from 1 to 20.", max_tokens=60, stop=["7"])
    assert count.finish_reason == "stop" and count.stop_reason == "7"
    assert "6" in count.text and "7" not in count.text
    short = phi.generate(PROMPTS[0], max_tokens=5)
    assert short.finish_reason == "length" and len(short.tokens) == 5


def test_schemas_and_expressions_are_followed_with_sense(phi: Phi) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": [*CAPITALS.values(), "London", "Oslo"]}},
        "required": ["capital"],
    }
    for country, capital in CAPITALS.items():
        question = f"What is the capital of {country}? Answer in JSON."
        answer = phi.generate(question, grammar=Grammar("json", json.dumps(schema)))
        assert json.loads(answer.text) == {"capital": capital}
    number = Grammar("regex", r"The answer is \d{1,4}\.")
    for question, value in {
        "How many days are in a week?": 7,
        "How many legs has a spider?": 8,
        "How many months are in a year?": 12,
        "What is 3 + 4?": 7,
    }.items():
        assert phi.generate(question, grammar=number).text == f"The answer is {value}."
    colours = {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 3}
    listed = phi.generate(
        "Name three colours.", grammar=Grammar("json", json.dumps(colours)), max_tokens=64
    )
    known = {"red", "blue", "green", "yellow", "orange", "purple", "black", "white"}
    assert {text.lower() for text in json.loads(listed.text)} <= known


def test_log_probabilities_and_embeddings_are_those_of_transformers(
    phi: Phi, reference: Any
) -> None:
    """Float32 on both sides; the largest differences seen are 1.7e-5, and 3e-7 of the largest value."""
    sampling = SamplingParams(max_tokens=16, logprobs=3, prompt_logprobs=1, embed=True)
    for prompt in PROMPTS[:10]:
        answer = phi.generate(prompt, sampling=sampling)
        prompt_ids = phi.tokenize(prompt)
        ids = torch.tensor([[*prompt_ids, *answer.tokens]])
        with torch.no_grad():
            output = reference(ids, output_hidden_states=True)
        expected = output.logits[0].log_softmax(-1)
        entries = [*answer.prompt_logprobs, *answer.logprobs[: len(answer.tokens)]]
        assert len(entries) == ids.shape[1] - 1
        for at, entry in enumerate(entries):
            assert entry.token == ids[0, at + 1]
            assert abs(entry.logprob - float(expected[at, entry.token])) < 1e-4
        for id, value in answer.logprobs[0].top:
            assert abs(value - float(expected[len(prompt_ids) - 1, id])) < 1e-4
        mean = output.hidden_states[-1][0, : len(prompt_ids)].mean(0)
        assert answer.embedding is not None
        difference = (torch.tensor(answer.embedding) - mean).abs().max()
        assert difference < 1e-5 * mean.abs().max()


@pytest.mark.parametrize(
    "prompt",
    [
        f"Repeat this text word by word: {TEXT}",
        f"Summarize in one sentence: {TEXT}",
        "Rename x to total and return only the code:\ndef add(numbers):\n    x = 0\n    for n in numbers:\n"
        "        x += n\n    return x",
    ],
)
def test_drafts_are_accepted_and_change_nothing(
    phi: Phi, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    accept = phi.engine.accept
    plain = phi.generate(prompt, max_tokens=80, draft=0)
    monkeypatch.setattr(phi.engine, "accept", lambda *step: (steps.append(step), accept(*step)))
    drafted = phi.generate(prompt, max_tokens=80, draft=8)
    assert not differs_before_a_tie(phi, prompt, plain, drafted)
    assert len(steps) < len(drafted.tokens)

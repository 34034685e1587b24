"""Completions of plain text, as log-likelihood harnesses request them."""

import math
from collections.abc import Iterator

import pytest
from openai import BadRequestError, OpenAI

from polyphi.engine.scores import logits_many
from polyphi.serve.answer.tokens import finite
from tests.fixtures.servers import Running

PROMPT = "the quick brown"


@pytest.fixture
def client(running: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_echo_tells_what_the_model_thinks_of_the_prompt(running: Running, client: OpenAI) -> None:
    engine = running.engine
    ids = engine.processor.tokenizer.encode(PROMPT)
    logs = logits_many(engine, [engine.rows.ids_row(ids)])[0].log_softmax(-1)
    expected = [logs[i, token].item() for i, token in enumerate(ids[1:])]
    for prompt in (PROMPT, ids):
        answer = client.completions.create(
            model="tiny", prompt=prompt, echo=True, logprobs=1, max_tokens=0
        )
        logprobs = answer.choices[0].logprobs
        assert answer.choices[0].text == PROMPT and "".join(logprobs.tokens) == PROMPT
        assert logprobs.token_logprobs[0] is None
        assert logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-5)
        for at, best in enumerate(logprobs.top_logprobs[1:]):
            assert max(best.values()) == pytest.approx(logs[at].max().item(), abs=1e-5)
        assert [
            PROMPT[at : at + len(t)]
            for at, t in zip(logprobs.text_offset, logprobs.tokens, strict=True)
        ] == list(logprobs.tokens)
        assert answer.usage.completion_tokens == 0 and answer.usage.prompt_tokens == len(ids)


def test_several_prompts_and_answers(running: Running, client: OpenAI) -> None:
    params = dict(model="tiny", prompt=[PROMPT, "1 +"], n=2, temperature=1.0, seed=3, max_tokens=6)
    whole = client.completions.create(**params, logprobs=2)
    assert [c.index for c in whole.choices] == [0, 1, 2, 3]
    texts, offsets = [""] * 4, [[] for _ in range(4)]
    for chunk in client.completions.create(**params, logprobs=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset
    assert texts == [c.text for c in whole.choices]
    assert offsets == [c.logprobs.text_offset for c in whole.choices]
    assert whole.usage.completion_tokens == sum(len(c.logprobs.tokens) for c in whole.choices)


def test_echo_before_an_answer(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, echo=True, logprobs=0, max_tokens=4
    ).choices[0]
    assert answer.text.startswith(PROMPT) and "".join(answer.logprobs.tokens) == answer.text


def test_an_end_token_after_an_echoed_prompt_has_an_entry(running: Running, client: OpenAI) -> None:
    """Harnesses request one token and leave out its entry, the last one: the others are those of the prompt."""
    tokenizer = running.engine.processor.tokenizer
    count, end = len(tokenizer.encode(PROMPT)), tokenizer.eos_ids[0]
    options = dict(model="tiny", prompt=PROMPT, echo=True, logprobs=1, max_tokens=1)
    plain = client.completions.create(**options).choices[0]
    assert plain.finish_reason == "length"
    options["logit_bias"] = {str(end): 100}
    ended = client.completions.create(**options).choices[0]
    assert ended.finish_reason == "stop" and ended.text == PROMPT
    assert len(ended.logprobs.tokens) == len(plain.logprobs.tokens) == count + 1
    assert ended.logprobs.token_logprobs[1:-1] == pytest.approx(
        plain.logprobs.token_logprobs[1:-1], abs=1e-5
    )
    chunks = client.completions.create(**options, stream=True)
    streamed = [name for chunk in chunks for name in chunk.choices[0].logprobs.tokens]
    assert streamed == ended.logprobs.tokens


@pytest.mark.parametrize("count", [0, 1, 3])
def test_top_logprobs_contain_the_token_itself(client: OpenAI, count: int) -> None:
    """In answers and in the echoed prompt: the most likely tokens, and the sampled one if it isn't among them."""
    options = dict(model="tiny", prompt=PROMPT, echo=True, max_tokens=12, temperature=1.5, seed=5)
    logprobs = client.completions.create(**options, logprobs=count).choices[0].logprobs
    assert logprobs.top_logprobs[0] is None and len(logprobs.tokens) > 12
    sizes = set()
    for token, own, top in zip(
        logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
    ):
        assert top[token] == own
        sizes.add(len(top))
    assert max(sizes) == count + 1 and min(sizes) >= max(1, count)


@pytest.mark.parametrize("value", [-math.inf, math.nan, -1e9])
def test_log_probabilities_are_numbers_of_json(value: float) -> None:
    assert finite(value) == -9999 and finite(-1.5) == -1.5


def test_an_empty_prompt_begins_a_document(client: OpenAI) -> None:
    assert client.completions.create(model="tiny", prompt="", max_tokens=3).usage.prompt_tokens == 1


def test_s15_placeholders_come_from_media_only(running: Running, client: OpenAI) -> None:
    tokenizer = running.engine.processor.tokenizer
    with pytest.raises(BadRequestError):
        client.completions.create(model="tiny", prompt=[tokenizer.image_id], max_tokens=1)
    text = "<|image|><|audio|><|system|><|end|><|endoftext10|>"
    with running.client() as http:
        ids = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
        assert not set(ids) & set(tokenizer.controls.values())
        assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}

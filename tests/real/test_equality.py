"""A real language model: its logits, greedy answers and token ids are those of transformers on the same weights."""

from typing import Any

import pytest
import torch

from polyphi.api import Phi
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures import real
from tests.real.prompts import CONVERSATIONS, PROMPTS

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.long

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit: float32 on both sides, other orders of sums."""


@pytest.fixture(scope="module")
def original() -> tuple[Any, Any]:
    """transformers' own reading of the GGUF: its tokenizer and model."""
    file = real.gguf_file()
    options = {"gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, **options
    )
    return tokenizer, model.eval()


def test_weights_are_those_that_transformers_reads(reference: Any, original: Any) -> None:
    ours, theirs = reference.state_dict(), original[1].state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_ids_are_those_of_transformers(phi: Phi, original: Any) -> None:
    tokenizer = original[0]
    for text in PROMPTS:
        assert phi.tokenizer.encode(text) == tokenizer.encode(text, add_special_tokens=False)
    for conversation in CONVERSATIONS:
        messages = [Message(m["role"], m["content"]) for m in conversation]
        expected = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
        assert phi.tokenize(messages) == expected


def test_logits(phi: Phi, reference: Any) -> None:
    for text in PROMPTS:
        ids = phi.tokenizer.encode(text)
        with torch.no_grad():
            expected = reference(torch.tensor([ids]), use_cache=False).logits[0]
        difference = (phi.logits(ids)[1] - expected).abs().max()
        assert difference <= TOLERANCE * expected.abs().max(), text


def test_greedy_answers(phi: Phi, reference: Any) -> None:
    """Answers of 64 tokens are equal up to a token where the two best logits nearly tie."""
    greedy = SamplingParams(max_tokens=64, temperature=0)
    conversations = [[Message.user(text)] for text in PROMPTS] + [
        [Message.system("Answer briefly."), Message.user(text)] for text in PROMPTS
    ]
    answers = phi.generate_many(conversations, sampling=greedy)
    for messages, answer in zip(conversations, answers, strict=True):
        ids = phi.tokenize(messages)
        with torch.no_grad():
            logits = reference(torch.tensor([[*ids, *answer.tokens]])).logits[0]
        best = logits[len(ids) - 1 : -1].topk(2)
        for token, ids_, values in zip(answer.tokens, best.indices, best.values, strict=True):
            if token != ids_[0]:
                assert token == ids_[1] and values[0] - values[1] < TOLERANCE * values[0].abs()
                break

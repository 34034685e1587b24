"""A model trained on rows with reasoning answers with a `<think>` block; engine and server split it from the answer."""

import json
from pathlib import Path

import pytest
import torch

import polyphi
from polyphi import Message, SamplingParams
from polyphi.decoding.reasoning import Reasoning, ReasoningParser
from polyphi.finetuning.run import finetune
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from polyphi.train.loss import NextToken
from polyphi.train.options import TrainOptions
from polyphi.train.stage import Mix, Schedule, Stage
from tests.fixtures import published
from tests.fixtures.servers import serving

PHI = "Your name is Phi, an AI math expert developed by Microsoft."
STAGE = Stage(
    name="thinking",
    start={},
    trainable={"decoder.*": 1e-2},
    data=Mix({"sums": 1}),
    objective=NextToken(),
    schedule=Schedule(decay="linear"),
    context=250,
    batch_tokens=160,
    steps=40,
)


@pytest.mark.long
def test_rows_with_reasoning_are_trained_and_answered(tmp_path: Path) -> None:
    """From a checkpoint with the template of Phi-4-mini-reasoning, whose export keeps it."""
    start = published.write(tmp_path / "start", "mini", torch.float32)
    tokenizer = Tokenizer.load(start)
    tokenizer.fixed_system = PHI
    tokenizer.save(start)
    user = {"role": "user", "content": "two two"}
    answer = {"role": "assistant", "content": "four", "reasoning_content": "one one one one"}
    rows = tmp_path / "sums.jsonl"
    rows.write_text((json.dumps({"messages": [user, answer]}) + "\n") * 4)
    options = {"options": TrainOptions(precision="fp32"), "report": lambda _: None}
    model = finetune(STAGE, [str(rows)], tmp_path / "run", checkpoint=start, **options)

    phi = polyphi.load(model)
    assert phi.reasoning and phi.tokenizer.fixed_system == PHI
    sampling = SamplingParams(max_tokens=60, reasoning=phi.reasoning)
    completion = phi.generate([Message.user("two two")], sampling=sampling)
    assert completion.text == "<think>\none one one one\n</think>\n\nfour"
    assert 0 < completion.reasoning_tokens < len(completion.tokens)
    parser = ReasoningParser()
    parts = [*parser.add(completion.text), *parser.finish()]
    assert parts == [Reasoning("one one one one"), "four"]

    settings = Settings("tiny", reasoning=phi.reasoning)
    with serving(phi.engine, settings) as running, running.client() as client:
        body = {"messages": [user], "max_tokens": 60, "temperature": 0}
        reply = client.post("/v1/chat/completions", json=body).json()
        message = reply["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("one one one one", "four")
        # Its reasoning isn't part of the next prompt, as it wasn't in training.
        body["messages"] = [user, message, user]
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        row = phi.processor.row(
            [Message.user("two two"), Message.assistant("four"), Message.user("two two")],
            generation_prompt=True,
        )
        assert usage["prompt_tokens"] == len(row.ids)

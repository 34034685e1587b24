"""The cache of answers: requests sent to the model, answers read from disk, errors stored as answers."""

from pathlib import Path
from typing import Any

import pytest

from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.parts import Image
from polyphi.types.sampling import SamplingParams
from polyphi_eval.cache import BATCH, Cache, CachedRequest, key_of
from polyphi_eval.run import write


class Echo:
    """Answers with the prompt; refuses prompts that contain "long"."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, str | None]] = []

    def generate(self, messages: Any, *, sampling: Any, adapter: str | None) -> Completion:
        if "long" in messages[-1].text:
            raise ValueError("too long")
        return Completion(messages[-1].text, (1, 2))

    def generate_many(
        self, conversations: Any, *, sampling: Any, adapter: str | None
    ) -> list[Completion]:
        self.batches.append((len(conversations), adapter))
        return [self.generate(c, sampling=None, adapter=adapter) for c in conversations]


def request(text: str, **more: Any) -> CachedRequest:
    return CachedRequest([Message.user(text)], **more)


def test_missing_answers_are_batched_by_adapter_and_equal_requests_sent_once(
    tmp_path: Path,
) -> None:
    model = Echo()
    requests = [request(str(n)) for n in range(BATCH + 2)] * 2
    requests += [
        request("x", adapter="vision"),
        request("x", sampling=SamplingParams(max_tokens=3)),
    ]
    answers = Cache(model, tmp_path, "m").answers(requests)  # type: ignore[arg-type]
    assert model.batches == [(BATCH, "auto"), (3, "auto"), (1, "vision")]
    assert [a.text for a in answers[:2]] == ["0", "1"] and len(answers) == len(requests)
    again = Cache(model, tmp_path, "m")  # type: ignore[arg-type]
    assert again.answers(requests) == answers and again.new == 0 and len(model.batches) == 3


def test_a_refused_request_is_an_answer_unless_errors_are_raised(tmp_path: Path) -> None:
    refused, fine = Cache(Echo(), tmp_path, "m").answers([request("long"), request("a")])  # type: ignore[arg-type]
    assert (refused.text, refused.error, refused.finish_reason) == ("", "too long", "error")
    assert fine.text == "a" and fine.error is None
    strict = Cache(Echo(), tmp_path / "strict", "m", raise_errors=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too long"):
        strict.answers([request("long")])


def test_answers_in_the_file_of_a_held_out_task_are_reused(tmp_path: Path) -> None:
    cache = Cache(Echo(), tmp_path, "m", name="digit")  # type: ignore[arg-type]
    (answer,) = cache.answers([request("7")])
    line = {"task": "digit", "condition": "with", "answer": "7", "key": answer.key}
    constant = {"task": "digit", "condition": "majority", "answer": "1", "key": ""}
    write(tmp_path / "digit.jsonl", [line, constant])
    silent = Cache(None, tmp_path, "m", name="digit")  # type: ignore[arg-type]
    assert silent.answers([request("7")])[0].text == "7"


def test_keys_are_those_of_earlier_evaluations_and_differ_by_the_detail_of_images() -> None:
    sampling = SamplingParams(max_tokens=3, draft=2)
    images = [Image(b"1"), Image(b"1", detail="low"), Image(b"1", max_crops=2), Image(b"2")]
    keys = [key_of([Message.user(i, "Où?")], "auto", sampling, "m") for i in images]
    assert keys[0] == "455d5052bba22a1eae5ab193" and len({*keys}) == 4

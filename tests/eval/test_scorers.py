"""Scorers: the extracted part of an answer, and its score."""

import json

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval import scorers


def sample(reference: str, **meta: object) -> Sample:
    return Sample(
        "s", (Message.user("?"), Message.assistant(reference)), "made up", "MIT", dict(meta)
    )


@pytest.mark.parametrize(
    ("scorer", "answer", "reference", "meta", "expected"),
    [
        ("exact", " Red.", "red", {}, (1, "red")),
        ("exact", "Red car", "red", {}, (0, "red car")),
        ("exact", "", "red", {}, (0, "")),
        (
            "exact",
            "sept<sep>Sieben",
            "seven<sep>sieben",
            {"language": "fr", "to": "German"},
            (1, "sieben"),
        ),
        ("exact", "grey", "gray", {"answers": ["grey"]}, (1, "grey")),
        ("number", "3 + 4 = 7. The answer is 7.0", "7", {}, (1, "7")),
        ("number", "12 apples and 3", "15", {}, (0, "3")),
        ("number", "there are three", "3", {}, (1, "3")),
        ("number", "no idea", "3", {}, (0, "")),
        ("number", "so 1,250", "1+2 = 3", {"answer": "1250"}, (1, "1250")),
        ("yes_no", "Yes, it does.", "yes", {}, (1, "yes")),
        ("yes_no", "Nein!", "ja", {"language": "de"}, (0, "no")),
        ("yes_no", "不是的", "不是", {"language": "zh"}, (1, "no")),
        ("yes_no", "はい。", "はい", {"language": "ja"}, (1, "yes")),
        ("yes_no", "maybe", "yes", {}, (0, "")),
        ("choice", "(B) Paris", "B", {}, (1, "B")),
        ("choice", "b", "B", {}, (1, "B")),
        ("choice", "A dog is in picture C", "C", {}, (1, "C")),
        ("choice", "Answer: D", "D", {}, (1, "D")),
        ("choice", "none", "D", {}, (0, "")),
        (
            "refusal",
            "I'm sorry, I can't help with that.",
            "Sorry",
            {"refuse": True},
            (1, "refuses"),
        ),
        ("refusal", "Désolé.", "Je ne peux pas.", {"language": "fr"}, (1, "refuses")),
        ("refusal", "Sure: first, ...", "I cannot help with that.", {}, (0, "answers")),
    ],
)
def test_judging(
    scorer: str, answer: str, reference: str, meta: dict, expected: tuple[float, str]
) -> None:
    score = getattr(scorers, scorer)(answer, sample(reference, **meta))
    assert (score.value, score.extracted) == expected


def test_error_rates_carry_their_counts() -> None:
    score = scorers.wer("one three", sample("one two three four"))
    assert score.parts == {"errors": 2, "units": 4} and score.value == 0.5
    assert scorers.wer("a b c d e", sample("x")).value == 0.0
    assert scorers.wer("五七", sample("五 七", language="zh")).parts == {"errors": 0, "units": 2}
    assert scorers.cer("abc", sample("abd")).parts == {"errors": 1, "units": 3}
    score = scorers.digits_wer("seven 1 three", sample("7 1 2"))
    assert (score.extracted, score.parts) == ("713", {"errors": 1, "units": 3})


def test_bleu_counts() -> None:
    score = scorers.bleu("x<sep>The cat sat on the mat.", sample("y<sep>The cat sat on the mat."))
    assert score.value == pytest.approx(1) and score.parts["correct_1"] == 7
    assert scorers.bleu("我喜欢猫", sample("我喜欢狗", to="zh")).parts["total_1"] == 4


def test_tool_calls() -> None:
    call = [{"name": "add", "arguments": {"a": 1, "b": 2}}]
    reference = sample(f"<|tool_call|>{json.dumps(call)}<|/tool_call|>")
    assert (
        scorers.json_call('[{"arguments": {"b": 2.0, "a": 1}, "name": "add"}]', reference).value
        == 1
    )
    assert (
        scorers.json_call(
            'functools[{"name": "add", "arguments": {"a": 1, "b": 2}}]', reference
        ).value
        == 1
    )
    assert scorers.json_call('{"name": "add", "arguments": {"a": 1, "b": 3}}', reference).value == 0
    broken = scorers.json_call('[{"name": "add", "arguments": {"a": 1', reference)
    assert broken.value == 0 and broken.parts["readable"] == 0
    assert scorers.json_call("It is 3.", reference).extracted == ""
    assert scorers.json_call("It is 3.", sample("No tool is needed.")).value == 1


def test_order_of_calls_does_not_matter() -> None:
    a, b = {"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": "1"}}
    assert scorers.json_call(json.dumps([b, a]), sample(json.dumps([a, b]))).value == 1
    assert scorers.json_call(json.dumps([a, a]), sample(json.dumps([a]))).value == 0

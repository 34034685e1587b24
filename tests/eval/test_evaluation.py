"""A results folder: skipped benchmarks and reasons, results of several commands, its default path."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi_eval import benchmark as benchmarks
from polyphi_eval import evaluation
from polyphi_eval.benchmark import Benchmark, Judging, TableRow
from polyphi_eval.eval_options import EvalOptions
from polyphi_eval.fixtures.write import MAKERS
from polyphi_eval.judge import rating
from polyphi_eval.report.tables import markdown, page
from polyphi_eval.scorers import exact
from polyphi_eval.sources import BenchmarkSource, Data


class Yes:
    def __init__(self) -> None:
        self.requests = 0

    def generate_many(self, conversations: Sequence[Any], **_: Any) -> list[Completion]:
        self.requests += len(conversations)
        return [Completion("yes") for _ in conversations]


def load(data: Data) -> Iterator[Sample]:
    for n in range(6):
        answer = Message.assistant("yes" if n % 2 else "no")
        yield Sample(f"s-{n}", (Message.user(f"{n}?"), answer), "here", "CC0-1.0", {})


FIRST = Benchmark(
    name="first",
    title="The first",
    modality="text",
    rows=(TableRow("Table 7", "MMLU"),),
    sources=(),
    load=load,
    fixtures={},
    scorer=exact,
)
SECOND = replace(
    FIRST,
    name="second",
    title="The second",
    rows=(TableRow("Table 7", "BoolQ"),),
    sources=(BenchmarkSource("mine/second", ("rows.jsonl",), "its owner"),),
)
MUTE = replace(
    FIRST,
    name="mute",
    rows=(TableRow("Table 7", "PIQA"),),
    fixtures={"files": {"a.flac": {"$speech": "hello"}}},
)
JUDGED = replace(
    FIRST,
    name="talks",
    scorer=None,
    rows=(TableRow("Table 6", "MT-Bench turn-1", metric="mean"),),
    judging=Judging(
        requests=lambda sample, answers: {"points": [Message.user("points?")]},
        read=lambda name, reply, sample: rating(reply),
        prompts={},
    ),
)


RESULTS = {"model": "yes", "date": "2026-11-30", "parameters": 7, "skipped": {}, "agreement": {}}


@pytest.fixture(autouse=True)
def only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    def known() -> tuple[Benchmark, ...]:
        return (FIRST, SECOND, MUTE, JUDGED)

    monkeypatch.setattr(benchmarks, "benchmarks", known)
    monkeypatch.setattr("polyphi_eval.score.benchmarks", known)
    monkeypatch.setitem(MAKERS, "$speech", no_engine)


@pytest.fixture
def subject() -> evaluation.EvaluatedModel:
    return evaluation.EvaluatedModel(Yes(), "yes", "yes 1", 7)  # type: ignore[arg-type]


def no_engine(text: str) -> bytes:
    raise ValueError("espeak-ng isn't installed")


def saved(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def test_skipped_benchmarks_are_listed_until_they_have_results(
    subject: evaluation.EvaluatedModel, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    with pytest.raises(ValueError, match=r"(?s)--skip-missing.*rows.jsonl is missing.*its owner"):
        evaluation.measure(subject, ("second",), out, data=Data(data))
    evaluation.measure(
        subject, ("second",), out, data=Data(data), options=EvalOptions(skip_missing=True)
    )
    evaluation.measure(subject, ("first",), out, data=Data(data))
    content = saved(out)
    assert content["skipped"]["second"]["title"] == "The second"
    assert content["skipped"]["second"]["rows"] == [["Table 7", "BoolQ"]]
    assert "its owner" in content["skipped"]["second"]["why"][0]
    assert [r["label"] for r in content["rows"]] == ["MMLU"] and content["parameters"] == 7
    (data / "mine" / "second").mkdir(parents=True)
    (data / "mine" / "second" / "rows.jsonl").write_text("{}\n")
    evaluation.measure(subject, ("second",), out, data=Data(data))
    content = saved(out)
    assert content["skipped"] == {} and {r["label"] for r in content["rows"]} == {"MMLU", "BoolQ"}
    assert "BoolQ" in (out / "report.html").read_text()
    assert "<svg" in (out / "figures.html").read_text()


def test_benchmarks_whose_fixtures_cannot_be_made_are_skipped(
    subject: evaluation.EvaluatedModel, tmp_path: Path
) -> None:
    rows = evaluation.measure(subject, ("first", "mute"), tmp_path, data=None)
    assert [r.label for r in rows] == ["MMLU"] and rows[0].status == "substitute data"
    assert "espeak-ng isn't installed" in saved(tmp_path)["skipped"]["mute"]["why"][0]


def test_a_limit_is_saved_and_kept_by_rescoring(
    subject: evaluation.EvaluatedModel, tmp_path: Path
) -> None:
    evaluation.measure(subject, ("first",), tmp_path, data=None, options=EvalOptions(limit=3))
    before = saved(tmp_path)
    assert [(r["n"], r["limit"], r["status"]) for r in before["rows"]] == [
        (3, 3, "substitute data")
    ]
    evaluation.rescored(tmp_path)
    assert saved(tmp_path)["rows"] == before["rows"]


def test_a_copy_without_all_published_rows_is_not_the_reproduced_setting(
    subject: evaluation.EvaluatedModel, tmp_path: Path
) -> None:
    source = replace(SECOND.sources[0], rows=2500)
    file = tmp_path / "data" / "mine" / "second" / "rows.jsonl"
    file.parent.mkdir(parents=True)
    data = Data(tmp_path / "data")

    def measured(rows: int, **options: Any) -> dict[str, Any]:
        file.write_text("{}\n" * rows)
        out = tmp_path / f"{rows} {options}"
        with pytest.MonkeyPatch.context() as patch:
            chosen = replace(SECOND, sources=(source,))
            patch.setattr(evaluation, "suite", lambda *_: [chosen])
            patch.setattr("polyphi_eval.score.benchmarks", lambda: (chosen,))
            evaluation.measure(subject, ("second",), out, data=data, options=EvalOptions(**options))
            (before,) = saved(out)["rows"]
            if "part" not in options:  # a part becomes the whole when all are there
                evaluation.rescored(out)
                assert saved(out)["rows"] == [before]
        return before

    whole, some = measured(2500), measured(4)
    assert (whole["status"], whole["copy"]) == ("reproduced setting", "")
    assert (some["status"], some["copy"]) == ("part of the data", "4 of 2,500 rows of mine/second")
    assert "4 of 2,500 rows" in markdown([some]) and "4 of 2,500 rows" in page(
        {**RESULTS, "rows": [some]}
    )
    assert measured(2500, limit=3)["status"] == "part of the data"
    assert measured(2500, limit=7)["status"] == "reproduced setting"  # there are six samples
    assert measured(2500, part=(1, 2))["part"] == "part 1 of 2"


def test_parts_that_are_all_there_are_the_whole(
    subject: evaluation.EvaluatedModel, tmp_path: Path
) -> None:
    data = Data(tmp_path)
    for number in (1, 2):
        evaluation.measure(
            subject, ("first",), tmp_path, data=data, options=EvalOptions(part=(number, 2))
        )
        (row,) = evaluation.rescored(tmp_path)
        whole = number == 2
        assert row.n == (6 if whole else 3)
        assert row.status == ("reproduced setting" if whole else "part of the data")
        assert row.part == ("" if whole else "part 1 of 2")


def test_judges_agreement_is_saved(subject: evaluation.EvaluatedModel, tmp_path: Path) -> None:
    evaluation.measure(subject, ("talks",), tmp_path, data=None)
    assert saved(tmp_path)["rows"] == []  # without a judge

    class Points(Yes):
        def generate_many(self, conversations: Sequence[Any], **_: Any) -> list[Completion]:
            return [Completion("[[8]]") for _ in conversations]

    both = iter(
        evaluation.Judge.of(Points(), name, tmp_path)  # type: ignore[arg-type]
        for name in ("gpt-4-0613", "other")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "judge", lambda *_: next(both))
        evaluation.measure(
            subject, ("talks",), tmp_path, data=None, options=EvalOptions(judges=("a", "b"))
        )
    content = saved(tmp_path)
    assert {r["judge"]: r["score"] for r in content["rows"]} == {"gpt-4-0613": 8.0, "other": 8.0}
    assert content["agreement"]["talks"]["gpt-4-0613 / other: points"]["equal"] == 1.0
    evaluation.rescored(tmp_path)
    assert saved(tmp_path)["agreement"] == content["agreement"]


def test_a_quick_score_is_not_cached(tmp_path: Path) -> None:
    model = Yes()
    for _ in range(2):
        score = evaluation.quick_score(model, FIRST, tmp_path / "data", 4)  # type: ignore[arg-type]
        assert score == 0.5
    assert model.requests == 8
    assert evaluation.quick_score(model, MUTE, tmp_path / "data", 4) is None  # type: ignore[arg-type]


def test_results_of_a_run_on_synthetic_fixtures_are_in_the_run(
    subject: evaluation.EvaluatedModel, tmp_path: Path
) -> None:
    (tmp_path / "stages").mkdir()
    assert evaluation.results_folder(str(tmp_path), subject, ["mini"]) == tmp_path / "benchmarks"
    assert evaluation.results_folder(str(tmp_path), subject, ["table1"]) == Path("results/yes")
    assert evaluation.results_folder("elsewhere", subject, ["mini"]) == Path("results/yes")

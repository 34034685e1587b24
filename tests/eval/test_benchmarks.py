"""Tests of every benchmark on its synthetic fixtures: from files to rows, with right and hostile answers."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import media
from polyphi_eval import score as scoring
from polyphi_eval import statistics
from polyphi_eval.benchmark import Benchmark, belongs, benchmarks, suite
from polyphi_eval.cache import Cache
from polyphi_eval.report.paper import paper
from polyphi_eval.run import answer as answer_all
from polyphi_eval.run import prompts_of
from polyphi_eval.sources import Data, Missing, check
from tests.fixtures.scripted_model import ScriptedModel as Model

ALL = benchmarks()
NAMES = [b.name for b in ALL]
HOSTILE = {
    "nothing": "",
    "a megabyte": "x " * 500_000,
    "a megabyte of brackets": "[{(" * 333_333,
    "control characters": "\x00\x1b[2J\u202e\r\n\u2028<|end|><sep>",
    "half a pair": "\ud800 A",
    "code that loops": "```python\nwhile True: pass\n```",
    "code that opens sockets": "```python\nimport socket; socket.create_connection(('127.0.0.1', 80))\n```",
}
FEW = 3
Samples = Callable[[Benchmark], list[Sample]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Benchmark], Data]:
    root = tmp_path_factory.mktemp("data")

    @cache
    def of(name: str) -> Data:
        next(b for b in ALL if b.name == name).write_fixtures(root)
        return Data(root)

    return lambda benchmark: of(benchmark.name)


@pytest.fixture(scope="module")
def samples(data: Callable[[Benchmark], Data]) -> Samples:
    """The synthetic samples of a benchmark, loaded once."""

    @cache
    def of(name: str) -> list[Sample]:
        benchmark = next(b for b in ALL if b.name == name)
        return list(benchmark.load(data(benchmark)))

    return lambda benchmark: of(benchmark.name)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at an interval."""
    monkeypatch.setattr(statistics, "RESAMPLES", 100)


LOOPING = ("humaneval",)
"""Benchmarks of code whose answers loop in `make test` too: an endless loop takes seconds of CPU."""


def hostile_cases() -> list[Any]:
    """All benchmarks with all hostile answers. Those are quick in which a benchmark gets one kind, and endless loops of
    `LOOPING`."""

    def case(number: int, benchmark: Benchmark, place: int, kind: str) -> Any:
        loops = kind == "code that loops"
        quick = benchmark.name in LOOPING if loops else place == number % (len(HOSTILE) - 1)
        marks = () if quick else pytest.mark.long
        return pytest.param(benchmark, kind, marks=marks, id=f"{benchmark.name}-{kind}")

    kinds = sorted(HOSTILE, key="code that loops".__eq__)  # loops are the last
    return [case(n, b, place, k) for n, b in enumerate(ALL) for place, k in enumerate(kinds)]


@pytest.fixture(params=ALL, ids=NAMES)
def benchmark(request: pytest.FixtureRequest) -> Benchmark:
    return request.param


def run(
    benchmark: Benchmark,
    samples: list[Sample],
    out: Path,
    answer: Callable[[Sample], str],
    points: str,
) -> list[scoring.Measured]:
    """Return the rows for the answers of `answer` and a judge with constant replies."""
    answers = {sample.id: answer(sample) for sample in samples}
    cache = Cache(Model(lambda m: ""), out, "none")  # type: ignore[arg-type]
    loaded = replace(benchmark, load=lambda data: samples)
    lines = answer_all(benchmark, prompts_of(loaded, Data(None)), cache)
    for line in lines:
        line["answers"] = [answers[line["id"]]] * max(1, len(line["answers"]))
        line["answer"] = line["answers"][-1]
    judge = scoring.Judge.of(Model(lambda m: points), "judge", out)  # type: ignore[arg-type]
    lines = scoring.score(benchmark, lines, [judge])
    json.dumps(lines, allow_nan=False)
    return scoring.rows_of(benchmark, lines)


def best(row: scoring.Measured) -> bool:
    if row.metric in ("rate", "wer", "cer"):
        return row.score == 0
    return row.score > (0.99 if row.metric == "accuracy" else 0)


def test_fixtures_have_the_format_of_the_public_data(
    benchmark: Benchmark, data: Callable[[Benchmark], Data], samples: Samples
) -> None:
    for source in benchmark.sources:
        assert not check(data(benchmark), replace(source, rows=None))
    loaded = samples(benchmark)
    ids = [s.id for s in loaded]
    assert len(set(ids)) == len(ids) >= 2
    for sample in loaded:
        assert sample.source and sample.licence and sample.messages[-1].role == "assistant"
        assert sample.meta == json.loads(json.dumps(sample.meta))
    for row in benchmark.rows:
        assert any(belongs(s.meta, row.only) for s in loaded), row


def test_rows_are_those_of_the_report(benchmark: Benchmark) -> None:
    tables = paper()
    for row in benchmark.rows:
        if row.table:
            labels = [r["label"] for r in tables[row.table]["rows"]]
            columns = tables[row.table]["columns"]
            assert row.label in labels or (row.column and row.label in columns), row
    assert any(row.table for row in benchmark.rows)


def test_references_get_the_best_scores(
    benchmark: Benchmark, samples: Samples, tmp_path: Path
) -> None:
    rows = run(
        benchmark, samples(benchmark), tmp_path, lambda s: s.answer, '[[10]] {"score": 7} 1 9'
    )
    assert len({r.label for r in rows}) == len({r.label for r in benchmark.rows})
    if benchmark.scorer or benchmark.score_many:
        worse = [r for r in rows if r.judge is None and not best(r)]
        assert not worse


@pytest.mark.parametrize(("benchmark", "kind"), hostile_cases())
def test_hostile_answers_stop_nothing_and_score_nothing(
    benchmark: Benchmark, kind: str, samples: Samples, tmp_path: Path
) -> None:
    few = samples(benchmark)[:FEW]
    rows = run(benchmark, few, tmp_path, lambda s: HOSTILE[kind], HOSTILE[kind])
    for row in rows:
        assert row.judge is None or row.n == 0, "a judge that can't be read gives no points"
    if kind in ("nothing", "control characters"):
        assert not [r for r in rows if r.judge is None and r.metric == "accuracy" and r.score > 0.7]


def test_media_reach_the_model(benchmark: Benchmark, samples: Samples) -> None:
    from polyphi.types.parts import Audio, Image

    media_type = {"vision": Image, "speech": Audio}.get(benchmark.modality)
    if media_type:
        assert all(media(s.prompt, media_type) for s in samples(benchmark))


@pytest.mark.parametrize(
    ("name", "file", "hint"),
    [
        ("covost2", "zh-CN/clips/common_voice_zh_1.mp3", ""),
        ("rtvlm", "Face/img/0.jpg", "unzip"),
        ("videomme", "data/mini1.mp4", "unpack"),
    ],
)
def test_a_missing_file_is_named(name: str, file: str, hint: str, tmp_path: Path) -> None:
    (benchmark,) = suite(name)
    benchmark.write_fixtures(tmp_path)
    (path,) = (path for path in tmp_path.rglob(Path(file).name) if str(path).endswith(file))
    path.unlink()
    with pytest.raises(Missing, match=f"{file} is missing.*{hint}"):
        list(benchmark.load(Data(tmp_path)))

"""Scores of answers, by every scorer (answers.json), and of hostile ones, which stop none and get nothing."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, benchmarks
from polyphi_eval.services import sandbox
from polyphi_eval.sources import Data

Group = dict[str, Any]
GROUPS: list[Group] = json.loads(
    Path(__file__).with_name("answers.json").read_text(encoding="utf-8")
)
"""A function, or a benchmark, that scores; its rows. A row has the answer, and of its score `value`, `lenient`,
`extracted` and other `parts`. The sample has the row's, or else the group's, `reference` and `meta`, or it is the
benchmark's synthetic one with this `id`."""
BENCHMARKS = {b.name: b for b in benchmarks()}
RUNS_CODE = ("mbpp", "livebench_code")
ANY_TEXT_MAY_BE_RIGHT = ("ifeval", "vlguard", "xstest")
HOSTILE = {
    "marks": "." * 60_000,
    "brackets": "[{(" * 10_000,
    "letters": "Z " * 30_000,
    "words": "is " * 20_000,
    "digits": "9" * 20_000,
    "half a pair": "\ud800",
    "control characters": "\x00\x1b[J\u202e\u2028",
    "open bracket": "((Z",
    "nan": "nan",
}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Sample]]:
    """A benchmark's synthetic samples by their ids."""

    @cache
    def samples(name: str) -> dict[str, Sample]:
        root = tmp_path_factory.mktemp(name)
        BENCHMARKS[name].write_fixtures(root)
        return {sample.id: sample for sample in BENCHMARKS[name].load(Data(root))}

    return samples


def scored(group: Group, answers: Sequence[str], samples: Sequence[Sample]) -> Sequence[Score]:
    benchmark: Benchmark | None = BENCHMARKS.get(group.get("benchmark", ""))
    if benchmark is None:
        module, _, function = group["scorer"].partition(".")
        scorer = getattr(import_module(f"polyphi_eval.{module}"), function)
    elif benchmark.score_many:
        return benchmark.score_many([([a], s) for a, s in zip(answers, samples, strict=True)])
    else:
        scorer = benchmark.scorer
    return [scorer(answer, sample) for answer, sample in zip(answers, samples, strict=True)]


def sample_of(row: Group, synthetic: Callable[[str], dict[str, Sample]]) -> Sample:
    if "id" in row:
        return synthetic(row["benchmark"])[row["id"]]
    messages = Message.user("?"), Message.assistant(row.get("reference", ""))
    return Sample("s", messages, "made up", "MIT", row.get("meta", {}))


def name_of(group: Group) -> str:
    return str(group.get("benchmark") or group["scorer"])


@pytest.mark.parametrize("group", GROUPS, ids=name_of)
def test_answers_get_their_scores(
    group: Group, synthetic: Callable[[str], dict[str, Sample]]
) -> None:
    if name_of(group) in RUNS_CODE and (reason := sandbox.unavailable()):
        pytest.skip(f"no namespaces: {reason}")
    rows = [{**group, **row} for row in group["rows"]]
    samples = [sample_of(row, synthetic) for row in rows]
    scores = scored(group, [row["answer"] for row in rows], samples)
    for row, score in zip(group["rows"], scores, strict=True):
        parts = dict(row.get("parts", {}))
        if "lenient" in row:
            parts[LENIENT] = row["lenient"]
        assert score.value == pytest.approx(row.get("value", score.value), abs=1e-4), row
        assert score.extracted == row.get("extracted", score.extracted), row
        assert {n: score.parts[n] for n in parts} == pytest.approx(parts, abs=1e-4), (row, score)


# test_benchmarks.py and test_programs.py have hostile programs.
@pytest.mark.parametrize("group", [g for g in GROUPS if name_of(g) not in RUNS_CODE], ids=name_of)
def test_hostile_answers_stop_nothing_and_score_nothing(
    group: Group, synthetic: Callable[[str], dict[str, Sample]]
) -> None:
    sample = sample_of({**group, **group["rows"][0]}, synthetic)
    scores = scored(group, list(HOSTILE.values()), [sample] * len(HOSTILE))
    points = {kind: s.value for kind, s in zip(HOSTILE, scores, strict=True) if s.value > 1e-3}
    assert not points or name_of(group) in ANY_TEXT_MAY_BE_RIGHT

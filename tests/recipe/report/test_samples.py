"""The samples of the report page, from a synthetic run folder."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyphi_eval import statistics
from polyphi_recipe.report import samples
from polyphi_recipe.report.samples import EXAMPLES, Draw
from tests.fixtures.made_run import TASKS, evaluate

SEEDS = range(4)


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """No test here looks at an interval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def run_and_results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("run")
    return out, evaluate(out, 12)


def ids(entries: list[dict[str, Any]]) -> list[str]:
    return [e["id"] for e in entries]


def test_examples_are_of_the_core_and_hold_every_kind_of_media(run_and_results: Any) -> None:
    core = {row["task"] for row in run_and_results[1] if row["core"]}
    for seed in SEEDS:
        examples = Draw(*run_and_results, seed).examples()
        media = [tuple(sorted({m["kind"] for m in e["media"]})) for e in examples]
        assert media == [types for types, n in EXAMPLES.items() for _ in range(n)]
        assert {e["task"] for e in examples} <= core
        # A spoken question is also given as text.
        assert all(e["question"] for e in examples)


def test_the_seed_gives_the_draw(run_and_results: Any) -> None:
    first, again, other = (Draw(*run_and_results, seed) for seed in (0, 0, 1))
    examples, gallery = first.examples(), first.gallery()
    assert (examples, gallery) == (again.examples(), again.gallery())
    assert first.media == again.media
    assert ids(other.examples()) != ids(examples) and ids(other.gallery()) != ids(gallery)


def test_answers_decide_nothing(run_and_results: Any, tmp_path: Path) -> None:
    results = evaluate(tmp_path, 12, skill={task.name: 0.0 for task in TASKS})
    good, poor = Draw(*run_and_results, 0), Draw(tmp_path, results, 0)
    assert ids(good.examples()) == ids(poor.examples())
    assert ids(good.gallery()) == ids(poor.gallery())


def test_right_and_wrong_answers_are_shown(run_and_results: Any) -> None:
    values = [e["value"] for seed in SEEDS for e in Draw(*run_and_results, seed).examples()]
    assert min(values) == 0.0 and max(values) == 1.0


def test_no_sample_is_shown_twice(run_and_results: Any) -> None:
    for seed in SEEDS:
        draw = Draw(*run_and_results, seed)
        entries = draw.examples() + draw.gallery()
        media = [m["sha256"] for e in entries for m in e["media"]]
        assert len(set(ids(entries))) == len(entries) > 20
        assert len(set(media)) == len(media) and set(media) == draw.media.keys()
        assert {"refusals", "refusal"} & {e["task"] for e in entries}  # they have samples in common


def test_only_what_may_be_shared_is_shown(run_and_results: Any) -> None:
    draw = Draw(*run_and_results, 0)
    entries = draw.examples() + draw.gallery()
    assert {e["modality"] for e in entries} == {"text", "vision", "speech", "joint", "safety"}
    assert "digit" in {e["task"] for e in entries} and "stamp" not in {e["task"] for e in entries}
    assert not [e for e in entries if re.search("GPL", e["licence"])]


def test_media_stay_within_their_bounds(
    run_and_results: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes() -> list[int]:
        draw = Draw(*run_and_results, 0)
        draw.examples()
        draw.gallery()
        return [len(part) for part in draw.media.values()]

    usual = sorted(sizes())
    middle = usual[len(usual) // 2]
    assert middle < usual[-1]
    with monkeypatch.context() as patch:
        patch.setattr(samples, "MAX_SAMPLE_MEDIA", middle)
        assert max(sizes()) <= middle
    monkeypatch.setattr(samples, "MAX_MEDIA", sum(usual) // 2)
    assert 0 < sum(sizes()) <= sum(usual) // 2

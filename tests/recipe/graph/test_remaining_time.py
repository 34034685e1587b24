"""The remaining time of a run."""

import json
import time
from pathlib import Path

import pytest

from polyphi_recipe import stages
from polyphi_recipe.graph import find, remaining_time
from polyphi_recipe.stages import BRANCHES, ORDER

NANO = find.of("nano")


@pytest.fixture(autouse=True)
def equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage takes 100 seconds: the sequence of more stages ends last."""
    monkeypatch.setattr(remaining_time, "NANO_SECONDS", dict.fromkeys(ORDER, 100))


def trained(out: Path, name: str, seconds: float) -> None:
    folder = out / "stages" / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"seconds": seconds}))


def test_a_fresh_run_takes_the_longer_sequence_and_the_evaluation(tmp_path: Path) -> None:
    longer = 100 * max(map(len, BRANCHES))
    after = remaining_time.FINAL_SHARE * sum(remaining_time.NANO_SECONDS.values())
    assert remaining_time.seconds_left(NANO, tmp_path) == pytest.approx(longer + after)
    assert (
        set(remaining_time.expected(NANO))
        == set(remaining_time.expected(find.of("micro")))
        == set(ORDER)
    )


def test_a_stage_waits_for_its_parents_in_the_other_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = remaining_time.seconds_left(NANO, tmp_path)
    # Vision 1 would begin after 500 s, and waits for vision 0, which ends after 100 + 1000.
    monkeypatch.setitem(remaining_time.NANO_SECONDS, "vision_0_encoder", 1000)
    after = remaining_time.FINAL_SHARE * 900
    assert remaining_time.seconds_left(NANO, tmp_path) == pytest.approx(fresh + 600 + after)


def test_a_slow_machine_takes_longer_and_what_is_done_takes_no_more(tmp_path: Path) -> None:
    fresh = remaining_time.seconds_left(NANO, tmp_path)
    first = remaining_time.NANO_SECONDS["text_1_pretrain"]
    trained(tmp_path, "text_1_pretrain", 2 * first)
    trained(tmp_path, "speech_0_aed", 2 * remaining_time.NANO_SECONDS["speech_0_aed"])
    assert remaining_time.seconds_left(NANO, tmp_path) == pytest.approx(2 * (fresh - first))
    assert remaining_time.status_line(NANO, tmp_path).startswith("2 of 16 stages, about ")


def test_steps_of_a_stage_under_way_count(tmp_path: Path) -> None:
    fresh = remaining_time.seconds_left(NANO, tmp_path)
    stage = stages.at_size("text_1_pretrain", NANO.size)
    half = NANO.budget(stage).steps // 2
    each = remaining_time.NANO_SECONDS[stage.name] / NANO.budget(stage).steps
    folder = tmp_path / "stages" / stage.name
    folder.mkdir(parents=True)
    records = [
        {"step": step, "tokens": 1000, "tokens_per_second": 1000 / each} for step in range(half)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert remaining_time.seconds_left(NANO, tmp_path) == pytest.approx(fresh - half * each)


def test_a_finished_run_has_a_minute_left(tmp_path: Path) -> None:
    for name in ORDER:
        trained(tmp_path, name, remaining_time.NANO_SECONDS[name])
    (tmp_path / "eval").mkdir()
    for number in range(len(remaining_time.TASKS)):
        (tmp_path / "eval" / f"{number}.jsonl").touch()
    assert remaining_time.status_line(NANO, tmp_path) == "16 of 16 stages, about a minute left"


def test_a_run_reports_it_periodically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remaining_time, "REPORT_SECONDS", 0.01)
    lines: list[str] = []
    with remaining_time.reported(NANO, tmp_path, lines.append):
        deadline = time.monotonic() + 30
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(lines) >= 2 and "0 of 16 stages" in lines[0]

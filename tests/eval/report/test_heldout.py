"""Goals in the texts of held-out results."""

from typing import Any

import pytest

from polyphi_eval.baselines import Result
from polyphi_eval.heldout import CORE, GOALS, find
from polyphi_eval.report import heldout as report


def row(task: str, score: float) -> dict[str, Any]:
    (known,) = find(task)
    result = Result(task, known.title, known.modality, known.metric, 100, score, score, score)
    return result.as_dict()


@pytest.mark.parametrize(
    ("task", "short", "unit"),
    [("digit", -0.01, "90 %"), ("asr_digits", 0.01, "8 %"), ("ast_direct", -1.0, "30")],
)
def test_a_goal_is_reached_in_the_direction_of_its_metric(
    task: str, short: float, unit: str
) -> None:
    at, before = row(task, GOALS[task]), row(task, GOALS[task] + short)
    assert report.reaches_goal(at) and not report.reaches_goal(before)
    goals = report.goal(at), report.goal(before)
    assert [goal and goal[0] for goal in goals] == [unit, unit] and goals[0] != goals[1]
    assert all(
        unit in report.line(r) and f"| {unit}, " in report.markdown([r]) for r in (at, before)
    )


def test_rows_without_a_goal_have_none() -> None:
    plain = row("compare", 0.5)
    assert plain["core"] and plain["goal"] is None and report.goal(plain) is None


def test_goals_are_of_tasks_that_are_there() -> None:
    assert set(GOALS) <= {task.name for task in find()}
    for task in find(*GOALS):
        assert 0 < GOALS[task.name] < (100 if task.metric == "bleu" else 1)
        assert row(task.name, 0.0)["core"] == (task in CORE)

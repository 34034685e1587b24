"""Goals in the texts of held-out results."""

from typing import Any

import pytest

from polyphi_eval.baselines import TaskResult
from polyphi_eval.heldout import CORE, GOALS, find
from polyphi_eval.report import heldout as report


def row(task: str, score: float) -> dict[str, Any]:
    (known,) = find(task)
    result = TaskResult(task, known.title, known.modality, known.metric, 100, score, score, score)
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


def test_error_rates_above_one_count_as_one_in_the_mean_lead() -> None:
    """An adapter isn't praised for what an empty answer would reach."""

    def line(metric: str, score: float, without: float) -> dict[str, Any]:
        lead = without - score if metric == "wer" else score - without
        return {
            "metric": metric,
            "score": score,
            "baselines": {"no_adapter": {"score": without}},
            "adapter_lead": {"value": lead, "low": lead - 0.1, "high": lead + 0.1},
        }

    assert report.mean_adapter_lead([line("wer", 0.2, 1.9)]) == ("+80.0", "[70.0, 90.0]")
    assert report.mean_adapter_lead([line("wer", 1.2, 1.9)]) == ("+0.0", "[-10.0, 10.0]")
    both = [line("wer", 0.2, 0.6), line("accuracy", 0.5, 0.3)]
    assert report.mean_adapter_lead(both) == ("+30.0", "[22.9, 37.1]")
    assert report.mean_adapter_lead([{"adapter_lead": None}]) is None

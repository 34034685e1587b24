"""The geometry of loss curves."""

import numpy as np

from polyphi.train.report import curves


def test_curves_of_few_points() -> None:
    assert curves.curve([[0, 1.0]]) == {}
    assert list(curves.curve([[0, 1.0], [1, 1.0]])) == ["area", "raw", "smooth"]


def test_the_chart_has_both_losses_on_the_same_axes() -> None:
    assert curves.chart([[0, 1.0]], []) == {}
    chart = curves.chart([[0, 4.0], [9, 2.0]], [[0, 5.0], [10, 1.0]])
    top, bottom = chart["lines"][2]["dots"]
    assert top == (curves.CHART_LEFT, curves.CHART_TOP)
    assert bottom == (curves.CHART_RIGHT, curves.CHART_BOTTOM)
    assert [text for _, text in chart["step_ticks"]][:2] == ["0", "2"]
    flat = curves.chart([[0, 2.0], [1, 2.0]], [])
    assert all(np.isfinite(at) for at, _ in flat["loss_ticks"])

"""Work in steps runs to its result, at once or with pauses."""

import time

import pytest

from polyphi.runtime.steps import Steps, result_of, run_all, timed


def work(order: list[str], name: str, count: int = 1) -> Steps[str]:
    """Append numbers."""
    for number in range(count):
        yield
        order.append(f"{name}{number}")
    return name


def test_steps_have_a_result() -> None:
    order: list[str] = []
    assert result_of(work(order, "a", 3)) == "a"
    assert order == ["a0", "a1", "a2"]


def test_a_function_of_steps_can_run_at_once() -> None:
    order: list[str] = []
    run = run_all(work)
    assert run(order, "a", count=2) == "a" and order == ["a0", "a1"]
    assert (run.__name__, run.__doc__) == ("work", "Append numbers.")


def test_pauses_between_steps_are_not_counted() -> None:
    def slow() -> Steps[int]:
        time.sleep(0.05)
        yield
        return 5

    steps = timed(slow())
    next(steps)
    time.sleep(1.5)
    with pytest.raises(StopIteration) as end:
        next(steps)
    value, seconds = end.value.value
    assert value == 5 and 0.05 <= seconds < 1.5


def test_errors_of_steps_are_raised() -> None:
    def damaged() -> Steps[None]:
        yield
        raise ValueError("damaged")

    for steps in (damaged(), timed(damaged())):
        with pytest.raises(ValueError, match="damaged"):
            result_of(steps)

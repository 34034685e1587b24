"""AIR-Bench chat: one of the judge's two numbers counts."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmarks.speech.airbench import benchmark, read
from polyphi_eval.sources import Data
from tests.fixtures.scripted_model import measured

SAMPLE = Sample("s", (Message.assistant("A dog barks."),), "", "")


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ("9 6", (6, 9)),
        (" 10 10\n", (10, 10)),
        ("8 0", (0, 8)),
        ("9  6", None),
        ("9,6", None),
        ("9 6 7", None),
        ("11 6", None),
        ("8.5 6", None),
        ("Assistant 1: 9", None),
        ("-1 6", None),
        ("9 ٣", None),
        ("", None),
    ],
)
def test_the_models_number_is_the_second_and_the_first_in_swapped_order(
    reply: str, points: tuple[float, float] | None
) -> None:
    assert read("points", reply, SAMPLE) == (points[0] if points else None)
    assert read("swapped", reply, SAMPLE) == (points[1] if points else None)


def test_one_order_counts_and_the_mean_of_both_has_separate_rows(tmp_path: Path) -> None:
    def reply(messages: Sequence[Message]) -> str:
        """The first answer gets 9, the second one 5; the reply about music can't be read."""
        return "none" if "440 Hz" in messages[-1].text else "9 5"

    benchmark.write_fixtures(tmp_path)
    results = measured(benchmark, Data(tmp_path), tmp_path, lambda messages: "some sound", reply)
    rows = {row.label: row for row in results}
    assert (rows["AirBench-chat sound"].n, rows["AirBench-chat sound"].score) == (2, 5)
    assert rows["AIR-Bench sound, both orders"].score == 7
    assert (rows["AirBench-chat music"].n, rows["AirBench-chat music"].unread) == (0, 2)

"""AIR-Bench chat: one of the judge's two numbers counts."""

from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi_eval import score as scoring
from polyphi_eval.benchmarks.speech.airbench import benchmark, read
from polyphi_eval.cache import Cache
from polyphi_eval.sources import Data

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
    class Model:
        def __init__(self, reply: Any) -> None:
            self.reply = reply

        def generate(self, messages: Any, **_: Any) -> Completion:
            return Completion(self.reply(messages[-1].text))

    def reply(text: str) -> str:
        """The first answer gets 9, the second one 5; the reply about music can't be read."""
        return "none" if "440 Hz" in text else "9 5"

    benchmark.write_fixtures(tmp_path)
    model = Cache(Model(lambda text: "some sound"), tmp_path, "a model")  # type: ignore[arg-type]
    lines = scoring.evaluate(benchmark, Data(tmp_path), model, tmp_path)
    judge = scoring.Judge.of(Model(reply), "gpt-4-0613", tmp_path)  # type: ignore[arg-type]
    rows = {
        r.label: r for r in scoring.rows_of(benchmark, scoring.score(benchmark, lines, [judge]))
    }
    assert (rows["AirBench-chat sound"].n, rows["AirBench-chat sound"].score) == (2, 5)
    assert rows["AIR-Bench sound, both orders"].score == 7
    assert (rows["AirBench-chat music"].n, rows["AirBench-chat music"].unread) == (0, 2)

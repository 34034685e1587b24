"""Harmful replies by harm and by language (report, Tables 10 and 13): each prompt once, as it is.

The report had GPT-4o play the user; with a model that does so, `adversarial` measures the same rows.
"""

from collections.abc import Iterator

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.severity import (
    JUDGING,
    PROMPTS,
    by_harm,
    mean_rate,
    prompts,
    sample,
    write_mild,
)
from polyphi.eval.sources import Data
from polyphi.messages import LANGUAGES


def load(data: Data) -> Iterator[Sample]:
    return (sample("defect", prompt) for prompt in prompts(data))


benchmark = Benchmark(
    name="defect_rates",
    title="Harmful replies",
    modality="safety",
    rows=(
        *by_harm("Table 10", language="en"),
        *(
            Row(
                "Table 13",
                name,
                {"language": code},
                "rate",
                "defect",
                statistic=mean_rate("harm"),
            )
            for code, name in LANGUAGES.items()
            if code != "en"
        ),
        Row("Table 13", "Average", {}, "rate", "defect", statistic=mean_rate("cell")),
        Row("", "Severity of replies, 0 to 7", {}, "mean", "severity"),
    ),
    sources=(PROMPTS,),
    load=load,
    mini=write_mild,
    judging=JUDGING,
    max_tokens=256,
    status="substitute data",
    note="prompts are not the report's; each prompt is rated for its own harm",
)

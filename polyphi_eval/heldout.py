"""The held-out tasks of a run, from the rows of `heldout.json`.

>>> [task.name for task in find("digit", "copy")]
['copy', 'digit']

A row has the corpus whose test split has the samples, the meta fields that they must have (`only`), the scorer
(scorers.py), the metric (default "accuracy") and the most tokens of an answer (default 32). **Core** tasks are those
for which a model of nano size is trained; most of the others need a larger size. `goal` is this project's goal for a
model of nano size (the report states none) in the unit of the metric: accuracies and word error rates are fractions,
BLEU is 0 to 100. baselines.py measures the tasks.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.data.sample import Sample
from polyphi_eval import scorers
from polyphi_eval.benchmark import MODALITIES, Benchmark, Metric, Modality, Scorer, TableRow
from polyphi_eval.sources import Data

SCORERS: Mapping[str, Scorer] = {
    scorer.__name__: scorer
    for scorer in (
        *(scorers.bleu, scorers.cer, scorers.digits_wer, scorers.exact, scorers.json_call),
        *(scorers.number, scorers.refusal, scorers.verbatim, scorers.wer, scorers.yes_no),
    )
}


def task(
    name: str,
    title: str,
    modality: Modality,
    corpus: str,
    scorer: Scorer,
    only: Mapping[str, Any],
    metric: Metric = "accuracy",
    *,
    max_tokens: int = 32,
    note: str = "",
) -> Benchmark:
    """Return a held-out task, whose data are the corpora of a run."""

    def load(data: Data) -> Sequence[Sample]:
        from polyphi.data.shards import Shards  # needs pyarrow, which the table of tasks doesn't

        return Shards((data.root or Path()) / corpus / "test")

    return Benchmark(
        name=name,
        title=title,
        modality=modality,
        rows=(TableRow("", title, only, metric),),
        sources=(),
        load=load,
        scorer=scorer,
        max_tokens=max_tokens,
        note=note,
        corpus=corpus,
    )


def _task(row: Mapping[str, Any]) -> Benchmark:
    fields = {name: value for name, value in row.items() if name not in ("core", "goal")}
    return task(**fields | {"scorer": SCORERS[row["scorer"]]})


_ROWS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
TASKS = sorted(map(_task, _ROWS), key=lambda task: MODALITIES.index(task.modality))
CORE_NAMES = frozenset(row["name"] for row in _ROWS if row.get("core"))
CORE = tuple(task for task in TASKS if task.name in CORE_NAMES)
GOALS: Mapping[str, float] = {row["name"]: row["goal"] for row in _ROWS if "goal" in row}


def find(*names: str) -> list[Benchmark]:
    """Return the tasks of these names, or all tasks, in the table's order. Raises ValueError for an unknown name."""
    if unknown := set(names) - {task.name for task in TASKS}:
        raise ValueError(
            f"no task is called {sorted(unknown)}; the tasks are {', '.join(t.name for t in TASKS)}"
        )
    return [task for task in TASKS if not names or task.name in names]

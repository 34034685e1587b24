"""`Benchmark`: numbers of the report's tables, from public data in the layout in which it is published.

>>> benchmark = Benchmark(
...     name="chartqa", title="ChartQA", modality="vision", rows=(Row("Table 1", "ChartQA (test)"),),
...     sources=(Source("lmms-lab/ChartQA", ("data/test-*.parquet",), "the Hub", rows=2500),),
...     load=load, mini=mini, scorer=relaxed, max_tokens=64)

One benchmark is one file, `eval/tasks/MODALITY/NAME.py`, whose `benchmark` this is (docs/evaluation.md shows how one is
added). `load` reads samples from a `Data`; `mini` writes a few rows of our own, made of what packages ship, in the very
same layout, so that any machine can run any benchmark from its files to its page, whatever such a number is worth.

A sample ends with the reference answer; its `meta` holds whatever scoring needs, so that recorded answers can be scored
again without the data. `meta` fields also say which `Row`s a sample belongs to.
"""

import importlib
import pkgutil
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from polyphi.data.shards import Sample
from polyphi.eval.asked import Asked
from polyphi.eval.sources import Data, Source
from polyphi.eval.task import MODALITIES, Modality, Score, Scorer
from polyphi.messages import Message, SamplingParams

Metric = Literal["accuracy", "rate", "wer", "cer", "bleu", "f1", "mean", "geometric"]
"""How samples' scores make a row: a share (shown in per cent), a share of what should not be (likewise), an error rate
(likewise), corpus BLEU, F1 of the sums of the parts `tp`, `fp` and `fn` (in per cent), a mean of points as they are (a
judge's 1 to 10, ROUGE's 0 to 100), or the geometric mean of the means of all parts."""
Status = Literal["reproduced setting", "substitute data", "private", "server-scored"]
"""What a number of ours is beside the report's. That a judge differs is found when it is asked."""


Statistic = Callable[
    [Sequence[tuple[Mapping[str, Any], Score]], int], tuple[float, float, float, str]
]
"""Samples' meta and scores, and a seed, to a number, its 95 % interval and what to say beside it ("" for nothing)."""


@dataclass(frozen=True)
class Row:
    """A number: where it stands in the report and which samples make it.

    `label` is the row's in `paper.json`; of a table of "" it is a number that we print beside the report's. `only`
    holds the meta fields of its samples. `part` names the part of their `Score` that counts (None: its value).
    `column` is the report's for our model's number, where it isn't the first that names the model. `by` is a meta
    field: the row is then the plain mean of the scores of the groups of samples that it makes. A `statistic` makes the
    number where it is none of these; `metric` then says only how it is shown.
    """

    table: str
    label: str
    only: Mapping[str, Any] = field(default_factory=dict)
    metric: Metric = "accuracy"
    part: str | None = None
    column: str | None = None
    by: str | None = None
    statistic: Statistic | None = None


@dataclass(frozen=True)
class Judging:
    """How a judge is asked about a sample's answers, and how its replies are read.

    `asks` gives named conversations; `reads` the points of a reply (None: unreadable, so that the sample is left out
    of the judged rows, and counted). The points become `Score.parts` by these names, the first one its value; where
    `sums` is given, by those that it makes of all of a sample's points (the worst of several turns, say).
    `prompts` are the templates, whose hash stands beside every reply; `standard` is the report's judge.
    """

    asks: Callable[[Sample, Sequence[str]], Mapping[str, Sequence[Message]]]
    reads: Callable[[str, str, Sample], float | None]
    prompts: Mapping[str, str]
    standard: str = "gpt-4-0613"
    sums: Callable[[Mapping[str, float | None]], Mapping[str, float | None]] | None = None


Turn = Callable[[Sample, Sequence[str]], Sequence[Message] | None]
"""The conversation to answer next, given the answers so far; None when all turns are done."""
Turns = Callable[[Sequence[tuple[Sample, Sequence[str]]]], Sequence[Sequence[Message] | None]]
"""The same for many samples at once."""


def one_turn(sample: Sample, answers: Sequence[str]) -> Sequence[Message] | None:
    return None if answers else sample.prompt


@dataclass(frozen=True)
class Benchmark:
    """`scorer` judges the last answer of a sample. Where many are judged at once (code in a sandbox, a checker in an
    environment of its own), `score_many` takes their place: (answers, sample) pairs to scores. With `judging`, a
    judge's points are the score, and the scorer, if there is one, adds its parts to them. Where a model plays the user,
    `simulated` makes the turns of what that model is asked; without such a model the benchmark isn't run.

    Samples whose meta say `hidden` have answers that only a server knows: they are asked (without a limit) though they
    count in no row, and what `submits` makes of each (sample, answer) goes into the file for that server, a JSON list.

    `to_speak` gives the text questions of a benchmark that hears them: `polyphi eval synthesise` reads them aloud into
    the folder of its first source (spoken.py says what a row is).

    `unable` says why this machine can't judge answers to these data, if so.
    """

    name: str
    title: str
    modality: Modality
    rows: Sequence[Row]
    sources: Sequence[Source]
    load: Callable[[Data], Iterable[Sample]]
    mini: Callable[[Path], None]
    scorer: Scorer | None = None
    score_many: Callable[[Sequence[tuple[Sequence[str], Sample]]], Sequence[Score]] | None = None
    judging: Judging | None = None
    turn: Turn = one_turn
    submits: Callable[[Sample, str], Any] | None = None
    to_speak: Callable[[Data], Iterable[Mapping[str, Any]]] | None = None
    turns: Turns | None = None
    simulated: Callable[[Asked], Turns] | None = None
    max_tokens: int = 64
    sampling: Mapping[str, Any] = field(default_factory=dict)
    status: Status = "reproduced setting"
    note: str = ""
    unable: Callable[[Data], str | None] = lambda data: None

    def params(self, sample: Sample) -> SamplingParams:
        """Greedy unless `sampling` says otherwise; a sample's meta may hold its own `max_tokens`, `stop` and `seed`."""
        settings: dict[str, Any] = {"max_tokens": self.max_tokens, **self.sampling}
        settings |= {
            key: sample.meta[key] for key in ("max_tokens", "stop", "seed") if key in sample.meta
        }
        if "stop" in settings:
            settings["stop"] = tuple(settings["stop"])
        return SamplingParams(**settings)


def belongs(sample_meta: Mapping[str, Any], only: Mapping[str, Any]) -> bool:
    """Whether a sample's meta has all these fields; a list of values means any of them."""
    return all(
        sample_meta.get(key) in wanted
        if isinstance(wanted, list | tuple | set | frozenset)
        else sample_meta.get(key) == wanted
        for key, wanted in only.items()
    )


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """All of them, by modality and name: each file's `benchmark`. There is no registry."""
    from polyphi.eval import tasks

    found = []
    for module in pkgutil.walk_packages(tasks.__path__, tasks.__name__ + "."):
        if not module.ispkg:
            held = getattr(importlib.import_module(module.name), "benchmark", None)
            found += [held] if isinstance(held, Benchmark) else []
    names = [b.name for b in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two benchmark files have the same name: {sorted(twice)}")
    return tuple(sorted(found, key=lambda b: (MODALITIES.index(b.modality), b.name)))


def own(path: str) -> Benchmark:
    """The `benchmark` of somebody's own Python file. Raises ValueError where there is none."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: expected a benchmark's file, found nothing there")
    try:
        found = runpy.run_path(path).get("benchmark")
    except Exception as error:  # anything may go wrong in it
        raise ValueError(f"{path} could not be run: {type(error).__name__}: {error}") from error
    if not isinstance(found, Benchmark):
        raise ValueError(f"{path}: expected `benchmark = Benchmark(...)`, found none")
    if any(found.name == b.name for b in benchmarks()):
        raise ValueError(
            f"{path}: there is a benchmark {found.name!r} already; give it another name"
        )
    return found


BEHIND = {"table3": ("table3", "table4", "table5", "table6")}
"""Tables whose rows are made of other tables' rows."""


def suite(*names: str) -> list[Benchmark]:
    """The benchmarks of suites ("table4", "section5", "all"; "mini": all that need no judge), of their own names, or of
    files (my_bench.py). Raises ValueError for others."""
    known = benchmarks()
    held = {suite_of(row.table) for b in known for row in b.rows if row.table}
    tables = sorted(held | BEHIND.keys(), key=_order)
    chosen: list[Benchmark] = []
    for name in names or ("all",):
        if name.endswith(".py"):
            made = own(name)
            chosen += [made] if all(made.name != b.name for b in chosen) else []
            continue
        found = [
            b
            for b in known
            if name in ("all", b.name)
            or (name == "mini" and b.judging is None)
            or any(suite_of(row.table) in BEHIND.get(name, (name,)) for row in b.rows)
        ]
        if not found:
            raise ValueError(
                f"there is no suite or benchmark {name!r}; expected all, mini, {', '.join(tables)}, a "
                "file my_bench.py, or one of " + ", ".join(b.name for b in known)
            )
        chosen += [b for b in found if b not in chosen]
    return chosen


def suite_of(table: str) -> str:
    """ "Table 4" -> "table4"; "Section 5 (no table)" -> "section5"."""
    return "".join(table.split()[:2]).lower()


def _order(name: str) -> tuple[bool, int]:
    return name.startswith("section"), int("".join(c for c in name if c.isdigit()) or 0)


def in_rows(benchmark: Benchmark, samples: Iterable[Sample]) -> Iterator[Sample]:
    """Those that count in some row, or whose answers a server has."""
    return (
        s
        for s in samples
        if s.meta.get("hidden") or any(belongs(s.meta, row.only) for row in benchmark.rows)
    )

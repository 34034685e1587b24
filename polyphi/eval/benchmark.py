"""`Benchmark`: samples, how a model is prompted with them, how its answers are scored, and the rows that scores make.

>>> benchmark = Benchmark(
...     name="chartqa", title="ChartQA", modality="vision", rows=(Row("Table 1", "ChartQA (test)"),),
...     sources=(Source("lmms-lab/ChartQA", ("data/test-*.parquet",), "the Hub", rows=2500),),
...     load=load, scorer=relaxed, max_tokens=64)

The benchmarks of the report's tables read public data in the layout in which it is published. One benchmark is one
file, `eval/benchmarks/MODALITY/NAME.py`, whose `benchmark` this is; those that share a loader are the `benchmarks` of
one file (docs/evaluation.md shows how one is added). A few rows of our own in the very same layout lie in
`eval/fixtures/NAME.json`, so that any machine can run any benchmark from its files to its page, whatever such a score
is worth. A run's held-out tasks are benchmarks too (heldout.py), whose data are the run's corpora.

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
from typing import Any, Literal, get_args

from polyphi.data.shards import Sample
from polyphi.eval.cache import Cache
from polyphi.eval.fixtures.write import write
from polyphi.eval.sources import Data, Source
from polyphi.messages import Message, SamplingParams

Modality = Literal["text", "vision", "speech", "joint", "safety"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
Metric = Literal["accuracy", "balanced", "rate", "wer", "cer", "bleu", "f1", "mean", "geometric"]
"""How samples' scores make a row: a share (shown in per cent), the mean of the accuracies on harmful requests and on
look-alikes (likewise), a share of what should not be (likewise), an error rate (sum of errors over sum of reference
units, likewise), corpus BLEU, F1 of the sums of the parts `tp`, `fp` and `fn` (in per cent), a mean of points as they
are (a judge's 1 to 10, ROUGE's 0 to 100), or the geometric mean of the means of all parts."""
Status = Literal["reproduced setting", "substitute data", "private", "server-scored"]
"""How comparable a number is with the report's. Whether the judge differs is known once it has been called."""
LENIENT = "lenient"
"""The part of a score that a more generous reading of the same answer gives."""


@dataclass(frozen=True)
class Score:
    """`value` in [0, 1], higher is better; `extracted` is what of the answer was judged; `parts` are sums from which
    corpus-level rates are made again (errors and words for a WER)."""

    value: float
    extracted: str
    parts: Mapping[str, float] = field(default_factory=dict)


Scorer = Callable[[str, Sample], Score]
Statistic = Callable[
    [Sequence[tuple[Mapping[str, Any], Score]], int], tuple[float, float, float, str]
]
"""Samples' meta and scores, and a seed, to a number, its 95 % interval and a note on it ("" for none)."""


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
    """How a judge is prompted with a sample's answers, and how its replies are read.

    `requests` gives named conversations; `read` the points of a reply (None: unreadable, so that the sample is left out
    of the judged rows, and counted). The points become `Score.parts` by these names, the first one its value; where
    `combine` is given, by those that it makes of all of a sample's points (the worst of several turns, say).
    `prompts` are the templates, whose hash stands beside every reply; `standard` is the report's judge.
    """

    requests: Callable[[Sample, Sequence[str]], Mapping[str, Sequence[Message]]]
    read: Callable[[str, str, Sample], float | None]
    prompts: Mapping[str, str]
    standard: str = "gpt-4-0613"
    combine: Callable[[Mapping[str, float | None]], Mapping[str, float | None]] | None = None


Turn = Callable[[Sample, Sequence[str]], Sequence[Message] | None]
"""The next conversation, given the answers so far; None when all turns are done."""
Turns = Callable[[Sequence[tuple[Sample, Sequence[str]]]], Sequence[Sequence[Message] | None]]
"""The same for many samples at once."""


def one_turn(sample: Sample, answers: Sequence[str]) -> Sequence[Message] | None:
    return None if answers else sample.prompt


@dataclass(frozen=True)
class Benchmark:
    """`scorer` scores the last answer of a sample. Where many are scored at once (code in a sandbox, a checker in an
    environment of its own), `score_many` takes its place: (answers, sample) pairs to scores. With `judging`, a judge's
    points are the score, and the scorer, if there is one, adds its parts to them. Where a model plays the user,
    `simulated` makes the turns from that model's cache; without such a model the benchmark isn't run.

    Samples whose meta say `hidden` have answers that only a server knows: the model answers them (without a limit)
    though they count in no row, and what `submission` makes of each (sample, answer) goes into the file for that
    server, a JSON list.

    `spoken_questions` gives the text questions of a benchmark that hears them: `polyphi eval synthesise` reads them
    aloud into the folder of its first source (read_aloud.py says what a row is).

    `fixtures` are rows of ours in the layout of the data, as fixtures/write.py takes them; None means
    `eval/fixtures/NAME.json`. `unavailable` says why this machine can't score answers to these data, if so. `corpus` is
    that of a held-out task.
    """

    name: str
    title: str
    modality: Modality
    rows: Sequence[Row]
    sources: Sequence[Source]
    load: Callable[[Data], Iterable[Sample]]
    scorer: Scorer | None = None
    score_many: Callable[[Sequence[tuple[Sequence[str], Sample]]], Sequence[Score]] | None = None
    judging: Judging | None = None
    turn: Turn = one_turn
    submission: Callable[[Sample, str], Any] | None = None
    spoken_questions: Callable[[Data], Iterable[Mapping[str, Any]]] | None = None
    turns: Turns | None = None
    simulated: Callable[[Cache], Turns] | None = None
    max_tokens: int = 64
    sampling: Mapping[str, Any] = field(default_factory=dict)
    status: Status = "reproduced setting"
    note: str = ""
    unavailable: Callable[[Data], str | None] = lambda data: None
    fixtures: Mapping[str, Any] | None = None
    corpus: str = ""

    @property
    def metric(self) -> Metric:
        """That of the first row."""
        return self.rows[0].metric

    def params(self, sample: Sample) -> SamplingParams:
        """Greedy unless `sampling` says otherwise; a sample's meta may hold its own `max_tokens`, `stop` and `seed`."""
        settings: dict[str, Any] = {"max_tokens": self.max_tokens, **self.sampling}
        names = ("max_tokens", "stop", "seed")
        settings |= {name: sample.meta[name] for name in names if name in sample.meta}
        if "stop" in settings:
            settings["stop"] = tuple(settings["stop"])
        return SamplingParams(**settings)

    def write_fixtures(self, root: Path) -> None:
        """Write its fixtures below `root`. Raises ValueError where this machine can't make them."""
        write(self.name if self.fixtures is None else self.fixtures, root)


def belongs(meta: Mapping[str, Any], only: Mapping[str, Any]) -> bool:
    """Whether a sample's meta has all these fields; a list of values means any of them."""
    return all(
        meta.get(key) in value
        if isinstance(value, list | tuple | set | frozenset)
        else meta.get(key) == value
        for key, value in only.items()
    )


def in_rows(benchmark: Benchmark, samples: Iterable[Sample]) -> Iterator[Sample]:
    """Those that count in some row, or whose answers a server has."""
    return (
        s
        for s in samples
        if s.meta.get("hidden") or any(belongs(s.meta, row.only) for row in benchmark.rows)
    )


# ---------------------------------------------------------------------- suites


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """All benchmarks of the report, by modality and name: each file's `benchmark` or `benchmarks`. There is no
    registry."""
    from polyphi.eval import benchmarks as package

    known: list[Benchmark] = []
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.ispkg:
            content = vars(importlib.import_module(module.name))
            known += content.get("benchmarks") or [content["benchmark"]]
    names = [b.name for b in known]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two benchmark files have the same name: {sorted(duplicates)}")
    return tuple(sorted(known, key=lambda b: (MODALITIES.index(b.modality), b.name)))


def from_file(path: str) -> Benchmark:
    """The `benchmark` of a user's Python file. Raises ValueError where there is none."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: expected a benchmark's file, found nothing there")
    try:
        benchmark = runpy.run_path(path).get("benchmark")
    except Exception as error:  # anything may fail in it
        raise ValueError(f"{path} could not be run: {type(error).__name__}: {error}") from error
    if not isinstance(benchmark, Benchmark):
        raise ValueError(f"{path}: expected `benchmark = Benchmark(...)`, found none")
    if any(benchmark.name == b.name for b in benchmarks()):
        raise ValueError(
            f"{path}: there is a benchmark {benchmark.name!r} already; give it another name"
        )
    return benchmark


PARTS = {"table3": ("table3", "table4", "table5", "table6")}
"""Tables whose rows are made of other tables' rows."""


def suite(*names: str) -> list[Benchmark]:
    """The benchmarks of suites ("table4", "section5", "all"; "mini": all that need no judge), of their own names, or of
    files (my_bench.py). Raises ValueError for others."""
    known = benchmarks()
    tables = {suite_name(row.table) for b in known for row in b.rows if row.table} | PARTS.keys()
    chosen: list[Benchmark] = []
    for name in names or ("all",):
        if name.endswith(".py"):
            matches = [from_file(name)]
        else:
            matches = [
                b
                for b in known
                if name in ("all", b.name)
                or (name == "mini" and b.judging is None)
                or any(suite_name(row.table) in PARTS.get(name, (name,)) for row in b.rows)
            ]
        if not matches:
            raise ValueError(
                f"there is no suite or benchmark {name!r}; expected all, mini, "
                f"{', '.join(sorted(tables, key=_order))}, a file my_bench.py, or one of "
                + ", ".join(b.name for b in known)
            )
        chosen += [b for b in matches if all(b.name != c.name for c in chosen)]
    return chosen


def suite_name(table: str) -> str:
    """ "Table 4" -> "table4"; "Section 5 (no table)" -> "section5"."""
    return "".join(table.split()[:2]).lower()


def _order(name: str) -> tuple[bool, int]:
    return name.startswith("section"), int("".join(c for c in name if c.isdigit()) or 0)

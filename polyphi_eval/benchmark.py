"""`Benchmark`: its samples, prompts, scorer, and the table rows that are computed from the scores.

>>> benchmark = Benchmark(
...     name="chartqa", title="ChartQA", modality="vision", rows=(TableRow("Table 1", "ChartQA (test)"),),
...     sources=(BenchmarkSource("lmms-lab/ChartQA", ("data/test-*.parquet",), "the Hub", rows=2500),),
...     load=load, scorer=relaxed, max_tokens=64)

The benchmarks of the report's tables read public data in its published layout. A benchmark is the `benchmark` of a
file `eval/benchmarks/MODALITY/NAME.py`; those that share a loader are the `benchmarks` of one file (docs/evaluation.md
shows how to add one). `eval/fixtures/NAME.json` has a few synthetic rows in the same layout, so that any machine can
run any benchmark from its files to its page; scores on them mean nothing. A run's held-out tasks are benchmarks too
(heldout.py); their data are the run's corpora.

A sample ends with the reference answer. Its `meta` has everything that scoring needs, so that recorded answers can be
scored again without the data, and the fields by which a `TableRow` selects its samples.
"""

import importlib
import pkgutil
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi_eval.cache import Cache
from polyphi_eval.fixtures.write import write
from polyphi_eval.sources import BenchmarkSource, Data

Modality = Literal["text", "vision", "speech", "joint", "safety"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
Metric = Literal["accuracy", "balanced", "rate", "wer", "cer", "bleu", "f1", "mean", "geometric"]
"""How samples' scores are aggregated to a row. In per cent: `accuracy`, a share; `balanced`, the mean of the accuracies
on harmful requests and on look-alikes; `rate`, a share of defects; `wer` and `cer`, the sum of errors over the sum of
reference units; `f1` of the sums of the parts `tp`, `fp` and `fn`. As they are: `bleu`, corpus BLEU; `mean` of points
(a judge's 1 to 10, ROUGE's 0 to 100); `geometric`, the geometric mean of the means of all parts."""
Status = Literal[
    "reproduced setting", "metric differs", "substitute data", "private", "server-scored"
]
"""How comparable a number is with the report's. "judge differs" is added after judging (score.py), "part of the data"
where fewer rows were measured than were published (evaluation.py)."""
LENIENT = "lenient"
"""The part of a score that is the value by more lenient parsing of the same answer."""


@dataclass(frozen=True)
class Score:
    """A sample's score. `value` is in [0, 1], higher is better; `extracted` is the part of the answer that is scored;
    `parts` are summed for corpus-level rates (errors and words for a WER)."""

    value: float
    extracted: str
    parts: Mapping[str, float] = field(default_factory=dict)


Scorer = Callable[[str, Sample], Score]
Statistic = Callable[
    [Sequence[tuple[Mapping[str, Any], Score]], int], tuple[float, float, float, str]
]
"""Maps samples' meta and scores, and a seed, to a number, its 95 % interval and a note on it ("" for none)."""


@dataclass(frozen=True)
class TableRow:
    """A number: its row in the report's tables, and the samples from which it is computed.

    `label` is the row's in `paper.json`; a row with `table=""` is not in the report. `only` has the meta fields that
    its samples must have. `part` names the part of their `Score` that is used (None: the value). `column` is the
    report's column to compare with, if it isn't the first of our model; `ours` says what our number is where that
    differs from the label. With `by`, a meta field, the row is the plain
    mean of the scores of the groups with equal values of it. A `statistic` computes the number instead; `metric` then
    only selects the format.
    """

    table: str
    label: str
    only: Mapping[str, Any] = field(default_factory=dict)
    metric: Metric = "accuracy"
    part: str | None = None
    column: str | None = None
    ours: str = ""
    by: str | None = None
    statistic: Statistic | None = None


@dataclass(frozen=True)
class Judging:
    """How a judge is prompted with a sample's answers, and how its replies are parsed.

    `requests` returns conversations by name; `read` returns the points of a reply (None: it can't be parsed; the sample
    is then left out of the judged rows, and counted). The points are `Score.parts` by these names, the first one is
    its value; `combine` may replace all of a sample's points by others (the worst of several turns, say). `prompts`
    are the templates, whose hash is stored with every reply; `standard` is the report's judge.
    """

    requests: Callable[[Sample, Sequence[str]], Mapping[str, Sequence[Message]]]
    read: Callable[[str, str, Sample], float | None]
    prompts: Mapping[str, str]
    standard: str = "gpt-4-0613"
    combine: Callable[[Mapping[str, float | None]], Mapping[str, float | None]] | None = None


Turn = Callable[[Sample, Sequence[str]], Sequence[Message] | None]
"""Returns the next conversation, given the answers so far; None after the last turn."""
Turns = Callable[[Sequence[tuple[Sample, Sequence[str]]]], Sequence[Sequence[Message] | None]]
"""A `Turn` for many samples at once."""


def one_turn(sample: Sample, answers: Sequence[str]) -> Sequence[Message] | None:
    return None if answers else sample.prompt


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. `scorer` scores the last answer of a sample; `score_many` instead scores many (answers, sample)
    pairs at once (code in a sandbox, a checker in a separate environment). With `judging`, a judge's points are the
    score, and a scorer adds its parts to them. If a model plays the user, `simulated` returns the turns, given that
    model's cache; without such a model the benchmark isn't run.

    The reference answers of samples with `meta["hidden"]` are known to a server only: the model answers them (without
    a limit), they count in no row, and `submission` of each (sample, answer) is an entry of the JSON list for that
    server.

    `spoken_questions` returns the text questions of a benchmark with spoken ones: `polyphi eval synthesise`
    synthesizes them into the folder of its first source (read_aloud.py has the format of a row).

    `fixtures` are synthetic rows in the layout of the data (fixtures/write.py); None means `eval/fixtures/NAME.json`.
    `unavailable` returns the reason why this machine can't score answers to these data, or None. `corpus` is that of a
    held-out task.
    """

    name: str
    title: str
    modality: Modality
    rows: Sequence[TableRow]
    sources: Sequence[BenchmarkSource]
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
        """The metric of the first row."""
        return self.rows[0].metric

    def params(self, sample: Sample) -> SamplingParams:
        """Return the benchmark's sampling (greedy by default), with `max_tokens`, `stop` and `seed` of the sample's
        meta."""
        settings: dict[str, Any] = {"max_tokens": self.max_tokens, **self.sampling}
        names = ("max_tokens", "stop", "seed")
        settings |= {name: sample.meta[name] for name in names if name in sample.meta}
        if "stop" in settings:
            settings["stop"] = tuple(settings["stop"])
        return SamplingParams(**settings)

    def write_fixtures(self, root: Path) -> None:
        """Write the benchmark's fixtures below `root`. Raises ValueError if this machine can't generate them."""
        write(self.name if self.fixtures is None else self.fixtures, root)


def belongs(meta: Mapping[str, Any], only: Mapping[str, Any]) -> bool:
    """Whether a sample's meta has all fields of `only`; a list of values means any of them."""
    return all(
        meta.get(key) in value
        if isinstance(value, list | tuple | set | frozenset)
        else meta.get(key) == value
        for key, value in only.items()
    )


def in_rows(benchmark: Benchmark, samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield the samples that belong to a row, or have hidden answers."""
    return (
        s
        for s in samples
        if s.meta.get("hidden") or any(belongs(s.meta, row.only) for row in benchmark.rows)
    )


# ---------------------------------------------------------------------- suites


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """All benchmarks of the report, by modality and name: each file's `benchmark` or `benchmarks`."""
    from polyphi_eval import benchmarks as package

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
    """Return the `benchmark` of a user's Python file. Raises ValueError if there is none."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: expected a file that defines a benchmark, found no such file")
    try:
        benchmark = runpy.run_path(path).get("benchmark")
    except Exception as error:  # the user's code may raise any
        raise ValueError(f"{path} could not be run: {type(error).__name__}: {error}") from error
    if not isinstance(benchmark, Benchmark):
        raise ValueError(f"{path}: expected `benchmark = Benchmark(...)`, found none")
    if any(benchmark.name == b.name for b in benchmarks()):
        raise ValueError(
            f"{path}: there is already a benchmark {benchmark.name!r}; give it another name"
        )
    return benchmark


PARTS = {"table3": ("table3", "table4", "table5", "table6")}
"""The tables that are run for a table of averages."""


def suite(*names: str) -> list[Benchmark]:
    """Return the benchmarks of suites ("table4", "section5", "all"; "mini": all that need no judge), names of
    benchmarks, or files (my_bench.py). Raises ValueError for an unknown name."""
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

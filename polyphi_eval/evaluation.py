"""`polyphi eval MODEL --suite ...`: evaluate a model on benchmarks, with data and judges, and write the results.

>>> measure("runs/nano", ("table1",), Path("results"), data=Path("/data"))

MODEL is a checkpoint (a run's folder, a folder, a hub id), the address of an OpenAI-compatible endpoint
(http://host:8000/v1#model), or the folder of an earlier evaluation, whose stored answers are used. The same command
resumes an interrupted evaluation.
"""

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import polyphi
from polyphi.runtime.files import write_json, write_whole
from polyphi.types.generate import Answers
from polyphi_eval.azure import Azure
from polyphi_eval.benchmark import Benchmark, belongs, suite
from polyphi_eval.cache import Cache, Recorded
from polyphi_eval.eval_options import EvalOptions
from polyphi_eval.report import card, figures, paper, tables
from polyphi_eval.run import SavedLine
from polyphi_eval.score import (
    Judge,
    Measured,
    agreement,
    evaluate,
    file_part,
    rescore,
    rows_of,
)
from polyphi_eval.services.endpoint import Endpoint
from polyphi_eval.severity import AZURE
from polyphi_eval.sources import Data, check, contents

RUNS = "benchmarks"
"""The results folder inside a run."""
SYNTHETIC_TOKENS = 64
"""Most tokens of an answer to a synthetic sample, which only tests that the benchmark runs."""
UNSIMULATED = (
    "it needs a model that plays the user: add --simulator http://host/v1#name, or --simulator self"
)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate, its display name, and a fingerprint that differs between models with different answers."""

    model: Answers
    name: str
    fingerprint: str
    parameters: int | None = None


def evaluated_model(
    model: str,
    *,
    quant: str | None = None,
    device: str = "auto",
    key_from: str | None = None,
    modalities: Sequence[str] = (),
) -> EvaluatedModel:
    """The model to evaluate, from the arguments of the command line."""
    if model.startswith(("http://", "https://")):
        endpoint = Endpoint.at(model, key_from=key_from)
        return EvaluatedModel(endpoint, endpoint.name, model)
    if list(Path(model).glob("answers*.jsonl")):
        recorded = Recorded(Path(model))
        saved = json.loads((Path(model) / "model.json").read_text())
        return EvaluatedModel(
            recorded, saved["name"], recorded.fingerprint, saved.get("parameters")
        )
    phi = polyphi.load(model, device=device, quant=quant, modalities=modalities)  # type: ignore[arg-type]
    name = Path(model).expanduser().resolve().name if Path(model).expanduser().exists() else model
    return EvaluatedModel(
        phi,
        f"{name} {quant}" if quant else name,
        " ".join([f"{phi.fingerprint} {quant or ''}", *map(str, modalities)]),
        phi.parameters,
    )


def _other(address: str, cache: str, key_from: str | None) -> tuple[Answers, str]:
    """(a judge or simulator, its name): an endpoint by address and model, or, from the folder of an earlier evaluation,
    the model of one of its caches ("judged" or "simulated", results#name)."""
    folder, _, name = address.partition("#")
    if Path(folder).is_dir():
        return Recorded(Path(folder), cache, name), name
    endpoint = Endpoint.at(address, key_from=key_from)
    return endpoint, endpoint.name


def judge(address: str, own: EvaluatedModel, out: Path, key_from: str | None) -> Judge:
    """The judge at an address: an endpoint's address and model, results#name, `self` (the evaluated model), or
    azure:PROJECT, which rates severity."""
    if address.startswith("azure:"):
        return Judge.of(Azure(address.removeprefix("azure:")), AZURE, out)
    if address != "self":
        return Judge.of(*_other(address, "judged", key_from), out)
    name = f"{own.name} itself"
    if isinstance(own.model, Recorded):
        return Judge.of(Recorded(own.model.folder, "judged", name), name, out)
    return Judge.of(own.model, name, out)


def simulator(
    address: str, own: EvaluatedModel, out: Path, shard: tuple[int, int], key_from: str | None
) -> Cache:
    """The cache of a model that plays the user: an endpoint's address and model, results#name, or `self` (the evaluated
    model)."""
    if address == "self":
        # stored like the evaluated model's answers, so that they can be replayed in the same way
        return Cache(own.model, out, own.fingerprint, name=_answers(shard, "answers.simulated"))
    model, name = _other(address, "simulated", key_from)
    return Cache(model, out, name, name=_answers(shard, f"simulated.{file_part(name)}"))


def mini_data(chosen: Sequence[Benchmark], root: Path) -> tuple[Data, dict[str, list[str]]]:
    """(synthetic fixtures in the layouts of the public data; reasons by benchmark, where this machine can't write its
    fixtures, for example without a speech synthesizer)."""
    root.mkdir(parents=True, exist_ok=True)
    failed = {}
    for benchmark in chosen:
        marker = root / f".made-{benchmark.name}"
        if not marker.exists():
            try:
                benchmark.write_fixtures(root)
            except (ValueError, OSError) as error:
                failed[benchmark.name] = [f"no synthetic fixtures: {error}"]
            else:
                write_whole(marker, "")
    return Data(root), failed


def shortened(chosen: Sequence[Benchmark]) -> list[Benchmark]:
    """The benchmarks with the short answers used on synthetic fixtures."""
    return [replace(b, max_tokens=min(b.max_tokens, SYNTHETIC_TOKENS)) for b in chosen]


def quick_score(model: Answers, benchmark: Benchmark, fixtures: Path, limit: int) -> float | None:
    """The score of a benchmark's first row on a few samples of its synthetic fixture in the folder `fixtures`; None
    where there is none. For a model in training: answers aren't stored."""
    data, failed = mini_data([benchmark], fixtures)
    if failed:
        return None
    (benchmark,) = shortened([benchmark])
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(model, Path(folder), "changing")
        lines = evaluate(benchmark, data, cache, Path(folder), limit=limit)
    rows = rows_of(benchmark, lines)
    return rows[0].score if rows else None


def results_folder(model: str, own: EvaluatedModel, suites: Sequence[str]) -> Path:
    """The default folder of results; for synthetic fixtures and a run of the recipe, the folder that its page reads."""
    if list(suites) == ["mini"] and (Path(model) / "stages").is_dir():
        return Path(model) / RUNS
    return Path("results") / "".join(c if c.isalnum() else "-" for c in own.name)


def data_problems(
    chosen: Sequence[Benchmark], data: Data, *, deep: bool = True
) -> dict[str, list[str]]:
    """Problems with the data of benchmarks, by benchmark name; only missing files unless `deep`."""
    problems: dict[str, list[str]] = {}
    for benchmark in chosen:
        messages = []
        for source in benchmark.sources:
            if deep:
                messages += check(data, source)
            else:
                try:
                    data.folder(source)
                except ValueError as error:
                    messages.append(str(error))
        if not messages and (reason := benchmark.unavailable(data)):
            messages.append(reason)
        if messages:
            problems[benchmark.name] = messages
    return problems


@dataclass(frozen=True)
class Extent:
    """How much of a benchmark's data was measured: `copy`, what the copy of the data lacks, and `part`, which parts of
    several; each "" for all. `limit`: the maximum number of samples of each row, None for all."""

    copy: str
    part: str
    limit: int | None

    def status(
        self, benchmark: Benchmark, lines: Sequence[SavedLine], synthetic: bool
    ) -> str | None:
        """The status of rows that differs from the benchmark's because of this extent; None if it doesn't."""
        if synthetic:
            return "substitute data"
        counts = (sum(belongs(line["meta"], r.only) for line in lines) for r in benchmark.rows)
        limited = self.limit is not None and max(counts) >= self.limit
        partial = self.copy or self.part or limited
        whole = benchmark.status not in ("substitute data", "private")
        return "part of the data" if partial and whole else None


def other_rows(benchmark: Benchmark, data: Data) -> str:
    """The data sets of a benchmark that have another number of rows here than was published, such as "4 of 2,500 rows
    of lmms-lab/ChartQA"; "" for none, and for sets whose number isn't known."""
    texts = []
    for source in benchmark.sources:
        if source.rows is not None:
            count = sum(rows for _, _, rows in contents(data, source))
            if count != source.rows:
                texts.append(f"{count:,} of {source.rows:,} rows of {source.name}")
    return ", ".join(texts)


def missing_parts(folder: Path, name: str) -> str:
    """The parts of a benchmark that a results folder has, such as "part 1, 3 of 4"; "" if it has all."""
    names = [path.name.split(".") for path in folder.glob(f"{name}.*-of-*.jsonl")]
    parts = sorted(tuple(map(int, middle.split("-of-"))) for _, middle, _ in names)
    if (folder / f"{name}.jsonl").exists() or not parts:
        return ""
    total = parts[0][1]
    numbers = [number for number, of in parts if of == total]
    return "" if len(numbers) == total else f"part {', '.join(map(str, numbers))} of {total}"


def check_data(chosen: Sequence[Benchmark], data: Data, options: EvalOptions) -> None:
    """Raise ValueError for missing data of benchmarks, before a model is loaded."""
    _raise_for_missing(chosen, data_problems(chosen, data, deep=False), options)


def _raise_for_missing(
    chosen: Sequence[Benchmark], problems: Mapping[str, list[str]], options: EvalOptions
) -> None:
    missing = [
        f"{name}: {text}"
        for name, messages in problems.items()
        if messages != [UNSIMULATED] and not _is_private(name, chosen)
        for text in messages
    ]
    if missing and not options.skip_missing:
        raise ValueError(
            "\n  ".join(["data are missing; --skip-missing skips these benchmarks:", *missing])
        )


def check_others(options: EvalOptions) -> None:
    """Raise ValueError for an invalid judge or simulator, before a model is loaded."""
    for address in (*options.judges, options.simulator or "self"):
        recorded = Path(address.partition("#")[0]).is_dir()
        if address != "self" and not address.startswith("azure:") and not recorded:
            Endpoint.at(address, key_from=options.judge_key_from)


def measure(
    own: EvaluatedModel,
    suites: Sequence[str],
    out: Path,
    *,
    data: Data | None,
    options: EvalOptions = EvalOptions(),  # noqa: B008 - frozen
    console: Console | None = None,
) -> list[Measured]:
    """Evaluate benchmarks one after another and write the page with all rows of the folder `out`. With `data` None,
    synthetic fixtures are used, and the model itself plays the user unless `options.simulator` names another one."""
    console = console or Console(stderr=True)
    chosen = suite(*suites)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, own)
    synthetic, failed = data is None, dict[str, list[str]]()
    if data is None:
        data, failed = mini_data(chosen, out / "mini-data")
        chosen = shortened(chosen)
    skipped = data_problems(chosen, data, deep=False) | failed
    if options.simulator or synthetic:
        user = simulator(
            options.simulator or "self", own, out, options.part, options.judge_key_from
        )
        chosen = [replace(b, turns=b.simulated(user)) if b.simulated else b for b in chosen]
    else:
        skipped |= {b.name: [UNSIMULATED] for b in chosen if b.simulated}
    _raise_for_missing(
        chosen, {name: m for name, m in skipped.items() if name not in failed}, options
    )
    for benchmark in chosen:
        if skipped.get(benchmark.name) == [UNSIMULATED]:
            console.print(f"  {benchmark.title}: skipped, {UNSIMULATED}", highlight=False)
    cache = Cache(own.model, out, own.fingerprint, name=_answers(options.part))
    judging = [judge(address, own, out, options.judge_key_from) for address in options.judges]
    rows: list[Measured] = []
    agreements: dict[str, Any] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        for benchmark in chosen:
            if benchmark.name in skipped:
                continue
            bar = progress.add_task(benchmark.title, total=options.limit and None)
            lines = evaluate(
                benchmark,
                data,
                cache,
                out,
                judges=judging,
                limit=options.limit,
                shard=options.part,
                progress=lambda done, bar=bar: progress.update(bar, completed=done),  # type: ignore[misc]
            )
            progress.update(bar, total=len(lines))
            extent = Extent(
                "" if synthetic else other_rows(benchmark, data),
                "" if options.part == (1, 1) else "part {} of {}".format(*options.part),
                options.limit,
            )
            measured = rows_of(benchmark, lines, extent.status(benchmark, lines, synthetic))
            rows += [replace(row, **asdict(extent)) for row in measured]
            agreements[benchmark.name] = agreement(benchmark, lines)
            for pair, numbers in agreements[benchmark.name].items():
                console.print(f"  {pair}: " + ", ".join(f"{k} {v:.2f}" for k, v in numbers.items()))
    skipped_rows = {
        b.name: {
            "title": b.title,
            "rows": [[r.table, r.label] for r in b.rows if r.table],
            "why": why,
        }
        for b in chosen
        if (why := skipped.get(b.name))
    }
    _save_results(out, [row.as_dict() for row in rows], skipped_rows, agreements)
    return rows


def _is_private(name: str, chosen: Sequence[Benchmark]) -> bool:
    """Whether a benchmark's data are not public."""
    return next(b for b in chosen if b.name == name).status == "private"


def _answers(shard: tuple[int, int], name: str = "answers") -> str:
    return name if shard == (1, 1) else f"{name}.{shard[0]}-of-{shard[1]}"


def _claim(out: Path, own: EvaluatedModel) -> None:
    """Record in the results folder `out` that it belongs to one model. Raises ValueError if it holds another model's
    results."""
    path = out / "model.json"
    if path.exists() and json.loads(path.read_text())["fingerprint"] != own.fingerprint:
        other = json.loads(path.read_text())["name"]
        raise ValueError(
            f"{out} holds the results of another model, {other}; give another --out for {own.name}"
        )
    write_json(
        path,
        {"name": own.name, "fingerprint": own.fingerprint, "parameters": own.parameters},
    )


def _save_results(
    out: Path,
    rows: Sequence[dict[str, Any]],
    skipped: dict[str, Any],
    agreements: dict[str, Any],
) -> None:
    """Add rows, skipped benchmarks and the agreement of judges to the folder's `results.json`, and rewrite its
    pages."""
    before, own = saved_results(out), json.loads((out / "model.json").read_text())
    names = {row["benchmark"] for row in rows}
    unchanged = [row for row in before["rows"] if row["benchmark"] not in names]
    rows = unchanged + [_finite(row) for row in rows]
    content = {
        "model": own["name"],
        "parameters": own.get("parameters"),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
        "averages": paper.averaged(rows),
        "skipped": {n: e for n, e in (before["skipped"] | skipped).items() if n not in names},
        "agreement": {n: a for n, a in (before["agreement"] | agreements).items() if a},
    }
    content["card"] = card.of_benchmarks(content)
    write_json(out / "results.json", content)
    write_whole(out / "report.html", tables.page(content))
    write_whole(out / "figures.html", figures.page(content))


def saved_results(folder: Path) -> dict[str, Any]:
    """The contents of a results folder's `results.json`; empty ones where there is none."""
    path = folder / "results.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {"rows": [], "skipped": {}, "agreement": {}} | content


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None for NaN and infinity, which JSON doesn't have: a row without judged samples has no score."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def rescored(folder: Path, suites: Sequence[str] = ()) -> list[Measured]:
    """Every row of a results folder, scored again from the stored lines; rewrites the pages. `suites` are files of a
    user's benchmarks among them."""
    before = {row["benchmark"]: row for row in saved_results(folder)["rows"]}
    rows, agreements = [], {}
    for benchmark, lines in rescore(folder, suite(*suites) if suites else ()):
        earlier = before.get(benchmark.name, {})
        synthetic = earlier.get("status") == "substitute data"
        extent = Extent(
            earlier.get("copy", ""), missing_parts(folder, benchmark.name), earlier.get("limit")
        )
        measured = rows_of(benchmark, lines, extent.status(benchmark, lines, synthetic))
        own = [replace(row, **asdict(extent)) for row in measured]
        agreements[benchmark.name] = agreement(benchmark, lines)
        _save_results(folder, [row.as_dict() for row in own], {}, agreements)
        rows += own
    if not rows:
        raise ValueError(
            f"{folder} has no answers to benchmarks of this package; score those of your own file with "
            "--suite my_bench.py"
        )
    return rows

"""`polyphi eval MODEL --suite ...`: a model, data and judges brought together, and what came of it written down.

>>> measure("runs/nano", ("table1",), Path("results"), data=Path("/data"))

MODEL is a checkpoint (a run's folder, a folder, a hub id), the address of an OpenAI-compatible endpoint
(http://host:8000/v1#model), or the folder of an earlier evaluation, whose answers are taken as they were given.
The same command goes on where it stopped.
"""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import polyphi
from polyphi.checkpoints.read import locate
from polyphi.eval.azure import Azure
from polyphi.eval.benchmark import Benchmark, suite
from polyphi.eval.cache import Cache, Recorded
from polyphi.eval.report import figures, paper, tables
from polyphi.eval.score import (
    Judge,
    Measured,
    agreement,
    evaluate,
    file_part,
    rescore,
    rows_of,
)
from polyphi.eval.severity import AZURE
from polyphi.eval.sources import Data, check
from polyphi.messages import Answers
from polyphi.model.parts import parts
from polyphi.runtime.files import write_json
from polyphi.services.endpoint import Endpoint

LOOKED_AT = 64 << 20
"""Bytes of a weights file between two pieces of it that its fingerprint sees."""
PIECE = 1 << 16
RUNS = "benchmarks"
"""The results folder inside a run."""
SYNTHETIC_TOKENS = 64
"""Most of an answer to a synthetic sample, which is there to be run."""
UNSIMULATED = "a model plays its user: name one by --simulator http://host/v1#name, or self"


@dataclass(frozen=True)
class Subject:
    """What is measured, by a name for people and a fingerprint that tells apart whatever answers differently."""

    model: Answers
    name: str
    fingerprint: str
    parameters: int | None = None


def subject(
    model: str, *, quant: str | None = None, device: str = "auto", key_from: str | None = None
) -> Subject:
    """A model to measure, from what the command line says."""
    if model.startswith(("http://", "https://")):
        endpoint = _endpoint(model, key_from)
        return Subject(endpoint, endpoint.name, model)
    if list(Path(model).glob("answers*.jsonl")):
        recorded = Recorded(Path(model))
        saved = json.loads((Path(model) / "model.json").read_text())
        return Subject(recorded, saved["name"], recorded.fingerprint, saved.get("parameters"))
    folder = locate(model)
    phi = polyphi.load(model, device=device, quant=quant)  # type: ignore[arg-type]
    name = Path(model).expanduser().resolve().name if Path(model).expanduser().exists() else model
    return Subject(
        phi,
        f"{name} {quant}" if quant else name,
        f"{fingerprint(folder)} {quant or ''}",
        parts(phi.config)[-1].parameters,
    )


def _endpoint(address: str, key_from: str | None) -> Endpoint:
    where, sign, name = address.partition("#")
    if not sign or not name:
        raise ValueError(
            f"{address}: expected an address and a model's name, such as http://127.0.0.1:8000/v1#phi"
        )
    return Endpoint(where, name, key_from=key_from)


def fingerprint(folder: Path) -> str:
    """Of a checkpoint: its configuration, and of its weights the names, shapes, and a piece of every 64 MiB."""
    seen = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.rglob("*.safetensors")):
        size = path.stat().st_size
        seen.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, LOOKED_AT):
                file.seek(start)
                seen.update(file.read(PIECE))
    return seen.hexdigest()[:32]


def _other(address: str, cache: str, key_from: str | None) -> tuple[Answers, str]:
    """A model beside the measured one, and its name: an endpoint's address and model, or the folder of an earlier
    evaluation and the model of one of its caches ("judged" or "simulated", results#name)."""
    folder, _, name = address.partition("#")
    if Path(folder).is_dir():
        return Recorded(Path(folder), cache, name), name
    endpoint = _endpoint(address, key_from)
    return endpoint, endpoint.name


def judge(address: str, own: Subject, out: Path, key_from: str | None) -> Judge:
    """A judge: an endpoint's address and model, results#name, `self`, the measured model, or azure:PROJECT, which
    rates severity."""
    if address.startswith("azure:"):
        return Judge.of(Azure(address.removeprefix("azure:")), AZURE, out)
    if address != "self":
        return Judge.of(*_other(address, "judged", key_from), out)
    name = f"{own.name} itself"
    if isinstance(own.model, Recorded):
        return Judge.of(Recorded(own.model.folder, "judged", name), name, out)
    return Judge.of(own.model, name, out)


def simulator(
    address: str, own: Subject, out: Path, shard: tuple[int, int], key_from: str | None
) -> Cache:
    """The cache of a model that plays the user: an endpoint's address and model, results#name, or `self`, the measured
    model."""
    if address == "self":
        # among the measured model's own answers, so that they can be replayed as those are
        return Cache(own.model, out, own.fingerprint, name=_answers(shard, "answers.simulated"))
    model, name = _other(address, "simulated", key_from)
    return Cache(model, out, name, name=_answers(shard, f"simulated.{file_part(name)}"))


def mini_data(chosen: Sequence[Benchmark], root: Path) -> tuple[Data, dict[str, list[str]]]:
    """Synthetic fixtures in the layouts of the public data; and by name the benchmarks whose fixtures this machine
    can't write (it has no speech synthesizer, say), and why."""
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
                marker.touch()
    return Data(root), failed


def shortened(chosen: Sequence[Benchmark]) -> list[Benchmark]:
    """Benchmarks as they are run on synthetic fixtures."""
    return [replace(b, max_tokens=min(b.max_tokens, SYNTHETIC_TOKENS)) for b in chosen]


def glimpse(model: Answers, benchmark: Benchmark, fixtures: Path, limit: int) -> float | None:
    """The first row of a benchmark on a few samples of its synthetic fixture, which lies at `fixtures`; None where
    there is none. For a model that changes: none of its answers is kept."""
    data, failed = mini_data([benchmark], fixtures)
    if failed:
        return None
    (benchmark,) = shortened([benchmark])
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(model, Path(folder), "changing")
        lines = evaluate(benchmark, data, cache, Path(folder), limit=limit)
    rows = rows_of(benchmark, lines)
    return rows[0].score if rows else None


def results(model: str, own: Subject, suites: Sequence[str]) -> Path:
    """The default folder of results: for a run on synthetic fixtures a folder of the run, where its page looks."""
    if list(suites) == ["mini"] and (Path(model) / "stages").is_dir():
        return Path(model) / RUNS
    return Path("results") / "".join(c if c.isalnum() else "-" for c in own.name)


def complaints(
    chosen: Sequence[Benchmark], data: Data, *, deep: bool = True
) -> dict[str, list[str]]:
    """What is wrong with the data of benchmarks, by their names; not `deep`: only files that are missing."""
    complaints: dict[str, list[str]] = {}
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
            complaints[benchmark.name] = messages
    return complaints


def measure(
    own: Subject,
    suites: Sequence[str],
    out: Path,
    *,
    data: Data | None,
    judges: Sequence[str] = (),
    judge_key: str | None = None,
    simulated_by: str | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
    skip_missing: bool = False,
    console: Console | None = None,
) -> list[Measured]:
    """Benchmarks, one after another, and the page with all rows of the folder. `data` None: the synthetic fixtures,
    where the model itself plays the user unless another one is named."""
    console = console or Console(stderr=True)
    chosen = suite(*suites)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, own)
    synthetic, failed = data is None, dict[str, list[str]]()
    if data is None:
        data, failed = mini_data(chosen, out / "mini-data")
        chosen = shortened(chosen)
    skipped = complaints(chosen, data, deep=False) | failed
    if simulated_by or synthetic:
        user = simulator(simulated_by or "self", own, out, shard, judge_key)
        chosen = [replace(b, turns=b.simulated(user)) if b.simulated else b for b in chosen]
    else:
        skipped |= {b.name: [UNSIMULATED] for b in chosen if b.simulated}
    wrong = {
        name: messages
        for name, messages in skipped.items()
        if name not in failed and messages != [UNSIMULATED] and not _is_private(name, chosen)
    }
    if wrong and not skip_missing:
        lacking = [f"{name}: {text}" for name, messages in wrong.items() for text in messages]
        raise ValueError(
            "\n  ".join(["data are missing; --skip-missing goes on without them:", *lacking])
        )
    for benchmark in chosen:
        if skipped.get(benchmark.name) == [UNSIMULATED]:
            console.print(f"  {benchmark.title}: left out, {UNSIMULATED}", highlight=False)
    cache = Cache(own.model, out, own.fingerprint, name=_answers(shard))
    judging = [judge(address, own, out, judge_key) for address in judges]
    status = "substitute data" if synthetic else None
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
            bar = progress.add_task(benchmark.title, total=limit and None)
            lines = evaluate(
                benchmark,
                data,
                cache,
                out,
                judges=judging,
                limit=limit,
                shard=shard,
                progress=lambda done, bar=bar: progress.update(bar, completed=done),  # type: ignore[misc]
            )
            progress.update(bar, total=len(lines))
            rows += rows_of(benchmark, lines, status)
            agreements[benchmark.name] = agreement(benchmark, lines)
            for pair, numbers in agreements[benchmark.name].items():
                console.print(f"  {pair}: " + ", ".join(f"{k} {v:.2f}" for k, v in numbers.items()))
    left_out = {
        b.name: {
            "title": b.title,
            "rows": [[r.table, r.label] for r in b.rows if r.table],
            "why": why,
        }
        for b in chosen
        if (why := skipped.get(b.name))
    }
    _save_results(out, [row.as_dict() | {"limit": limit} for row in rows], left_out, agreements)
    return rows


def _is_private(name: str, chosen: Sequence[Benchmark]) -> bool:
    """Whether nobody can have a benchmark's data but their owner."""
    return next(b for b in chosen if b.name == name).status == "private"


def _answers(shard: tuple[int, int], name: str = "answers") -> str:
    return name if shard == (1, 1) else f"{name}.{shard[0]}-of-{shard[1]}"


def _claim(out: Path, own: Subject) -> None:
    """A results folder belongs to one model."""
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
    """Adds rows, what was left out and how judges agree to the folder's `results.json`, and draws its pages anew."""
    before, own = saved_results(out), json.loads((out / "model.json").read_text())
    names = {row["benchmark"] for row in rows}
    kept = [row for row in before["rows"] if row["benchmark"] not in names]
    rows = kept + [_finite(row) for row in rows]
    content = {
        "model": own["name"],
        "parameters": own.get("parameters"),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
        "averages": paper.averaged(rows),
        "skipped": {n: e for n, e in (before["skipped"] | skipped).items() if n not in names},
        "agreement": {n: a for n, a in (before["agreement"] | agreements).items() if a},
    }
    write_json(out / "results.json", content)
    (out / "report.html").write_text(tables.page(content), encoding="utf-8")
    (out / "figures.html").write_text(figures.page(content), encoding="utf-8")


def saved_results(folder: Path) -> dict[str, Any]:
    """The contents of a results folder's `results.json`; empty ones where there is none."""
    path = folder / "results.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {"rows": [], "skipped": {}, "agreement": {}} | content


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: a row of which nothing could be judged has no score."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def rescored(folder: Path, suites: Sequence[str] = ()) -> list[Measured]:
    """Every row of a results folder again, from its lines; the pages anew. `suites` are files of somebody's own
    benchmarks among them."""
    before = {row["benchmark"]: row for row in saved_results(folder)["rows"]}
    rows, agreements = [], {}
    for benchmark, lines in rescore(folder, suite(*suites) if suites else ()):
        earlier = before.get(benchmark.name, {})
        synthetic = earlier.get("status") == "substitute data"
        own = rows_of(benchmark, lines, "substitute data" if synthetic else None)
        agreements[benchmark.name] = agreement(benchmark, lines)
        limit = {"limit": earlier.get("limit")}
        _save_results(folder, [row.as_dict() | limit for row in own], {}, agreements)
        rows += own
    if not rows:
        raise ValueError(
            f"{folder} holds no lines of our benchmarks; those of your own file are scored with --suite my_bench.py"
        )
    return rows

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
from polyphi.eval import figures, paper, tables
from polyphi.eval.asked import Asked, Recorded
from polyphi.eval.azure import Azure
from polyphi.eval.benchmark import Benchmark, suite
from polyphi.eval.severity import AZURE
from polyphi.eval.sources import Data, check
from polyphi.eval.suite import (
    Judge,
    Measured,
    again,
    agreement,
    answered,
    name_of,
    scored,
    summed,
    write,
)
from polyphi.messages import Answers
from polyphi.model.parts import parts
from polyphi.runtime.files import write_json
from polyphi.services.endpoint import Endpoint

LOOKED_AT = 64 << 20
"""Bytes of a weights file between two pieces of it that its fingerprint sees."""
PIECE = 1 << 16
RUNS = "benchmarks"
"""The results folder inside a run."""
STAND_IN_TOKENS = 64
"""Most of an answer to a stand-in, which is there to be run."""
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
        told = json.loads((Path(model) / "model.json").read_text())
        return Subject(recorded, told["name"], recorded.fingerprint, told.get("parameters"))
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


def _other(told: str, kind: str, key_from: str | None) -> tuple[Answers, str]:
    """A model beside the measured one, and its name: an endpoint's address and model, or the folder of an earlier
    evaluation and the model that said things of this kind in it (results#name)."""
    where, _, name = told.partition("#")
    if Path(where).is_dir():
        return Recorded(Path(where), kind, name), name
    endpoint = _endpoint(told, key_from)
    return endpoint, endpoint.name


def judge(told: str, own: Subject, out: Path, key_from: str | None) -> Judge:
    """A judge: an endpoint's address and model, results#name, `self`, the measured model, or azure:PROJECT, which
    rates severity."""
    if told.startswith("azure:"):
        return Judge.of(Azure(told.removeprefix("azure:")), AZURE, out)
    if told != "self":
        return Judge.of(*_other(told, "judged", key_from), out)
    name = f"{own.name} itself"
    if isinstance(own.model, Recorded):
        return Judge.of(Recorded(own.model.folder, "judged", name), name, out)
    return Judge.of(own.model, name, out)


def simulator(
    told: str, own: Subject, out: Path, shard: tuple[int, int], key_from: str | None
) -> Asked:
    """A model that plays the user, with all that it has said: an endpoint's address and model, results#name, or `self`,
    the measured model."""
    if told == "self":
        # among the measured model's own answers, so that they can be replayed as those are
        return Asked(own.model, out, own.fingerprint, name=_answers(shard, "answers.simulated"))
    model, name = _other(told, "simulated", key_from)
    plain = "".join(c if c.isalnum() else "-" for c in name)
    return Asked(model, out, name, name=_answers(shard, f"simulated.{plain}"))


def mini_data(chosen: Sequence[Benchmark], root: Path) -> tuple[Data, dict[str, list[str]]]:
    """Stand-ins for the public data, made of what packages ship, in the same layouts; and by name the benchmarks whose
    stand-ins this machine can't make (no engine that reads aloud, say), and why."""
    root.mkdir(parents=True, exist_ok=True)
    failed = {}
    for benchmark in chosen:
        made = root / f".made-{benchmark.name}"
        if not made.exists():
            try:
                benchmark.mini(root)
            except (ValueError, OSError) as error:
                failed[benchmark.name] = [f"no stand-ins: {error}"]
            else:
                made.touch()
    return Data(root), failed


def shortened(chosen: Sequence[Benchmark]) -> list[Benchmark]:
    """Benchmarks as they are run on stand-ins."""
    return [replace(b, max_tokens=min(b.max_tokens, STAND_IN_TOKENS)) for b in chosen]


def glimpse(model: Answers, benchmark: Benchmark, stand_ins: Path, limit: int) -> float | None:
    """The first row of a benchmark on a few of its stand-ins, which lie at `stand_ins`; None where there are none. For
    a model that changes: nothing of what it answers is kept."""
    data, failed = mini_data([benchmark], stand_ins)
    if failed:
        return None
    (benchmark,) = shortened([benchmark])
    with tempfile.TemporaryDirectory() as folder:
        asked = Asked(model, Path(folder), "changing")
        lines = answered(benchmark, data, asked, Path(folder), limit=limit)
    rows = summed(benchmark, scored(benchmark, lines))
    return rows[0].score if rows else None


def results(model: str, own: Subject, suites: Sequence[str]) -> Path:
    """Where results go unless told otherwise: those of a run on stand-ins into the run, where its page looks."""
    if list(suites) == ["mini"] and (Path(model) / "stages").is_dir():
        return Path(model) / RUNS
    return Path("results") / "".join(c if c.isalnum() else "-" for c in own.name)


def complaints(
    chosen: Sequence[Benchmark], data: Data, *, deep: bool = True
) -> dict[str, list[str]]:
    """What is wrong with the data of benchmarks, by their names; not `deep`: only files that are missing."""
    found: dict[str, list[str]] = {}
    for benchmark in chosen:
        told = []
        for source in benchmark.sources:
            if deep:
                told += check(data, source)
            else:
                try:
                    data.folder(source)
                except ValueError as error:
                    told.append(str(error))
        if not told and (why := benchmark.unable(data)):
            told.append(why)
        if told:
            found[benchmark.name] = told
    return found


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
    """Benchmarks, one after another, and the page with all rows of the folder. `data` None: the stand-ins, where the
    model itself plays the user unless another one is named."""
    console = console or Console(stderr=True)
    chosen = suite(*suites)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, own)
    stand_ins, failed = data is None, dict[str, list[str]]()
    if data is None:
        data, failed = mini_data(chosen, out / "mini-data")
        chosen = shortened(chosen)
    skipped = complaints(chosen, data, deep=False) | failed
    if simulated_by or stand_ins:
        user = simulator(simulated_by or "self", own, out, shard, judge_key)
        chosen = [replace(b, turns=b.simulated(user)) if b.simulated else b for b in chosen]
    else:
        skipped |= {b.name: [UNSIMULATED] for b in chosen if b.simulated}
    wrong = {
        n: t
        for n, t in skipped.items()
        if n not in failed and t != [UNSIMULATED] and not _may_lack(n, chosen)
    }
    if wrong and not skip_missing:
        lacking = [f"{name}: {said}" for name, told in wrong.items() for said in told]
        raise ValueError(
            "\n  ".join(["data are missing; --skip-missing goes on without them:", *lacking])
        )
    for benchmark in chosen:
        if skipped.get(benchmark.name) == [UNSIMULATED]:
            console.print(f"  {benchmark.title}: left out, {UNSIMULATED}", highlight=False)
    asked = Asked(own.model, out, own.fingerprint, name=_answers(shard))
    benches = [judge(told, own, out, judge_key) for told in judges]
    status = "substitute data" if stand_ins else None
    rows: list[Measured] = []
    alike: dict[str, Any] = {}
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
            lines = answered(
                benchmark,
                data,
                asked,
                out,
                limit=limit,
                shard=shard,
                told=lambda done, bar=bar: progress.update(bar, completed=done),  # type: ignore[misc]
            )
            progress.update(bar, total=len(lines))
            lines = scored(benchmark, lines, benches)
            write(out / name_of(benchmark.name, shard), lines)
            rows += summed(benchmark, lines, status)
            alike[benchmark.name] = agreement(benchmark, lines)
            for pair, found in alike[benchmark.name].items():
                console.print(f"  {pair}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    left_out = {
        b.name: {
            "title": b.title,
            "rows": [[r.table, r.label] for r in b.rows if r.table],
            "why": why,
        }
        for b in chosen
        if (why := skipped.get(b.name))
    }
    _note(out, [row.as_dict() | {"limit": limit} for row in rows], left_out, alike)
    return rows


def _may_lack(name: str, chosen: Sequence[Benchmark]) -> bool:
    """Whether nobody can have a benchmark's data but their owner."""
    return next(b for b in chosen if b.name == name).status == "private"


def _answers(shard: tuple[int, int], name: str = "answers") -> str:
    return name if shard == (1, 1) else f"{name}.{shard[0]}-of-{shard[1]}"


def _claim(out: Path, own: Subject) -> None:
    """A results folder belongs to one model."""
    path = out / "model.json"
    told = {"name": own.name, "fingerprint": own.fingerprint, "parameters": own.parameters}
    if path.exists() and json.loads(path.read_text())["fingerprint"] != own.fingerprint:
        found = json.loads(path.read_text())["name"]
        raise ValueError(
            f"{out} holds the results of another model, {found}; give another --out for {own.name}"
        )
    write_json(path, told)


def _note(
    out: Path,
    rows: Sequence[dict[str, Any]],
    skipped: dict[str, Any],
    alike: dict[str, Any],
) -> None:
    """Adds rows, what was left out and how judges agree to what the folder holds, and draws its pages anew."""
    told, own = noted(out), json.loads((out / "model.json").read_text())
    names = {row["benchmark"] for row in rows}
    held = [row for row in told["rows"] if row["benchmark"] not in names]
    found = held + [_finite(row) for row in rows]
    left = {n: e for n, e in (told["skipped"] | skipped).items() if n not in names}
    told = {
        "model": own["name"],
        "parameters": own.get("parameters"),
        "date": time.strftime("%Y-%m-%d"),
        "rows": found,
        "averages": paper.averaged(found),
        "skipped": left,
        "agreement": {n: a for n, a in (told["agreement"] | alike).items() if a},
    }
    write_json(out / "results.json", told)
    (out / "report.html").write_text(tables.page(told), encoding="utf-8")
    (out / "figures.html").write_text(figures.page(told), encoding="utf-8")


def noted(folder: Path) -> dict[str, Any]:
    """What a results folder's `results.json` says; nothing of a folder that has none."""
    path = folder / "results.json"
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {"rows": [], "skipped": {}, "agreement": {}} | told


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: a row of which nothing could be judged has no score."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def rescored(folder: Path, suites: Sequence[str] = ()) -> list[Measured]:
    """Every row of a results folder again, from its lines; the pages anew. `suites` are files of somebody's own
    benchmarks among them."""
    held = {row["benchmark"]: row for row in noted(folder)["rows"]}
    rows, alike = [], {}
    for benchmark, lines in again(folder, suite(*suites) if suites else ()):
        was = held.get(benchmark.name, {})
        stand_ins = was.get("status") == "substitute data"
        made = summed(benchmark, lines, "substitute data" if stand_ins else None)
        alike[benchmark.name] = agreement(benchmark, lines)
        _note(folder, [row.as_dict() | {"limit": was.get("limit")} for row in made], {}, alike)
        rows += made
    if not rows:
        raise ValueError(
            f"{folder} holds no lines of our benchmarks; those of your own file are scored with --suite my_bench.py"
        )
    return rows

"""Lines -> scores -> rows: score and judge answers, and aggregate them to the rows of the report's tables.

>>> lines = evaluate(benchmark, data, cache, out, judges=[Judge(cache, "gpt-4-0613")])
>>> rows = rows_of(benchmark, lines)

Scores depend on the lines alone, so that `rescore` needs no model, judge or data.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyphi.data.sample import Sample
from polyphi.runtime.files import write_whole
from polyphi.types.generate import Answers
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi_eval.benchmark import LENIENT, Benchmark, Judging, Score, TableRow, belongs, benchmarks
from polyphi_eval.cache import Cache, CachedRequest
from polyphi_eval.run import BLOCK, Progress, SavedLine, answer, file_name, prompts_of, read, write
from polyphi_eval.sources import Data
from polyphi_eval.statistics import measure, measure_mean, vector

JUDGE = SamplingParams(max_tokens=1024)


@dataclass(frozen=True)
class Judge:
    """A model that judges answers, and its name in results."""

    cache: Cache
    name: str

    @classmethod
    def of(cls, model: Answers, name: str, folder: Path) -> "Judge":
        return cls(Cache(model, folder, name, name=f"judged.{file_part(name)}"), name)


def file_part(name: str) -> str:
    """Return a name with only characters that are safe in file names."""
    return "".join(c if c.isalnum() else "-" for c in name)


@dataclass(frozen=True)
class Measured:
    """A measured row. The unit of the scores is that of `TableRow.metric`; `lenient` is the score of more lenient
    parsing. `errors` counts samples that the model didn't answer (they count as wrong), `unread` those whose judge's
    reply can't be parsed (they don't count), `cut` answers that reached `max_tokens`. `rtfx` is seconds of audio
    processed per second. `copy`, `part` and `limit` say which rows of the data were measured (`evaluation.Extent`)."""

    table: str
    label: str
    benchmark: str
    metric: str
    n: int
    score: float
    low: float
    high: float
    status: str
    column: str | None = None
    ours: str = ""
    lenient: float | None = None
    errors: int = 0
    unread: int = 0
    cut: int = 0
    judge: str | None = None
    rtfx: float | None = None
    note: str = ""
    copy: str = ""
    part: str = ""
    limit: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    benchmark: Benchmark,
    data: Data,
    cache: Cache,
    out: Path,
    *,
    judges: Sequence[Judge] = (),
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: Progress = lambda done: None,
) -> list[SavedLine]:
    """Answer and score a benchmark's samples (`limit` and `shard` as in `prompts_of`), write a line for each to
    `OUT/NAME.jsonl` (or a shard's file), and return the lines."""
    path = out / file_name(benchmark.name, shard)
    prompts = prompts_of(benchmark, data, limit=limit, shard=shard)
    lines = answer(benchmark, prompts, cache, progress=progress)
    keep_replies(lines, path)
    write(path, lines)
    write_submission(benchmark, lines, path)
    lines = score(benchmark, lines, judges)
    write(path, lines)
    return lines


# ---------------------------------------------------------------------- lines


def score(
    benchmark: Benchmark, lines: list[SavedLine], judges: Sequence[Judge] = ()
) -> list[SavedLine]:
    """Add scores to the lines: `value`, `extracted`, `parts`, and the judges' replies in `judged`.

    Replies that lines already have are parsed again; without judges no model is called.
    """
    samples = [_sample(line) for line in lines]
    if benchmark.judging:
        for judge in judges:
            _judge(benchmark.judging, judge, lines, samples)
    for line, sample, result in zip(
        lines, samples, _scores(benchmark, lines, samples), strict=True
    ):
        line |= {
            "value": result.value if result else None,
            "extracted": result.extracted if result else "",
            "parts": dict(result.parts) if result else {},
        }
        if benchmark.corpus:
            line["value"] = round(line["value"], 6)
        if benchmark.judging:
            for reply in line.get("judged", {}).values():
                points = {
                    name: benchmark.judging.read(name, text, sample)
                    for name, text in reply["replies"].items()
                }
                combine = benchmark.judging.combine
                reply["points"] = dict(combine(points)) if combine else points
    return lines


def _scores(
    benchmark: Benchmark, lines: Sequence[SavedLine], samples: Sequence[Sample]
) -> Sequence[Score | None]:
    if benchmark.score_many:
        answers = [list(line["answers"]) for line in lines]
        return benchmark.score_many(list(zip(answers, samples, strict=True)))
    if scorer := benchmark.scorer:
        return [scorer(line["answer"], s) for line, s in zip(lines, samples, strict=True)]
    return [None] * len(samples)


def _sample(line: SavedLine) -> Sample:
    """Return the part of a sample that scoring may use: its last message and its meta; for judges, each turn's prompt
    as text."""
    prompts = map(Message.user, line.get("asked", ()))
    messages = (*prompts, Message.assistant(line["reference"]))
    return Sample(line["id"], messages, line["source"], line["licence"], line["meta"])


def _judge(
    judging: Judging, judge: Judge, lines: Sequence[SavedLine], samples: Sequence[Sample]
) -> None:
    prompts = hashlib.sha256(json.dumps(judging.prompts, sort_keys=True).encode()).hexdigest()[:16]
    for start in range(0, len(lines), BLOCK):
        block = range(start, min(start + BLOCK, len(lines)))
        requests = {
            (i, name): CachedRequest(messages, JUDGE)
            for i in block
            if not lines[i]["error"]
            for name, messages in judging.requests(samples[i], lines[i]["answers"]).items()
        }
        for i in block:
            lines[i].setdefault("judged", {})[judge.name] = {"prompts": prompts, "replies": {}}
        replies = judge.cache.answers(list(requests.values()))
        for (i, name), reply in zip(requests, replies, strict=True):
            lines[i]["judged"][judge.name]["replies"][name] = reply.text


def keep_replies(lines: Sequence[SavedLine], path: Path) -> None:
    """Copy judges' replies to equal answers from the file of an earlier run."""
    earlier = {line["id"]: line for line in read(path)} if path.exists() else {}
    for line in lines:
        previous = earlier.get(line["id"], {})
        if previous.get("answers") == line["answers"] and "judged" in previous:
            line["judged"] = previous["judged"]


def write_submission(benchmark: Benchmark, lines: Sequence[SavedLine], path: Path) -> None:
    """Write the file for the server that knows the hidden answers, if there are any: NAME.submission.json next to
    NAME.jsonl (`path`)."""
    entries = [
        benchmark.submission(_sample(line), line["answer"])
        for line in lines
        if benchmark.submission and line["meta"].get("hidden")
    ]
    if entries:
        write_whole(path.with_suffix(".submission.json"), json.dumps(entries, indent=1) + "\n")


# ---------------------------------------------------------------------- rows


def rows_of(
    benchmark: Benchmark, lines: Sequence[SavedLine], status: str | None = None
) -> list[Measured]:
    """Return the benchmark's rows that have samples, judged ones once per judge."""
    rows = []
    for row in benchmark.rows:
        own = [line for line in lines if belongs(line["meta"], row.only)]
        for judge in _judges(benchmark, row, own) if own else ():
            if result := _measure(benchmark, row, own, judge, status):
                rows.append(result)
    return rows


def _judges(benchmark: Benchmark, row: TableRow, lines: Sequence[SavedLine]) -> list[str | None]:
    """Return the names of a row's judges; [None] for a row of the scorer."""
    parts = {part for line in lines for part in line["parts"]}
    if not benchmark.judging or (benchmark.scorer and row.part in parts):
        return [None]
    return list(dict.fromkeys(name for line in lines for name in line.get("judged", {})))


def _value(line: SavedLine, row: TableRow, judge: str | None) -> float | None:
    """Return a line's value for a row; None if the judge's reply can't be parsed."""
    if judge is None:
        value: float | None = line["parts"].get(row.part) if row.part else line["value"]
        return value
    if line["error"]:
        return None
    points = line["judged"].get(judge, {}).get("points", {})
    return points.get(row.part) if row.part else next(iter(points.values()), None)


def _measure(
    benchmark: Benchmark,
    row: TableRow,
    lines: Sequence[SavedLine],
    judge: str | None,
    status: str | None,
) -> Measured | None:
    vectors: dict[Any, list[list[float]]] = {}
    lenient: dict[Any, list[float]] = {}
    counted: list[tuple[dict[str, Any], Score]] = []
    for line in lines:
        if (value := _value(line, row, judge)) is None:
            continue
        parts, group = line["parts"], line["meta"].get(row.by) if row.by else None
        counted.append((line["meta"], Score(value, line["extracted"], parts)))
        if row.statistic is None:
            vectors.setdefault(group, []).append(vector(row.metric, counted[-1][1]))
        # LENIENT is a variant of the value, not of other parts or of an F1.
        if LENIENT in parts and row.part is None and row.metric != "f1":
            lenient.setdefault(group, []).append(parts[LENIENT])
    seed = int(hashlib.sha256(f"{benchmark.name} {row.label}".encode()).hexdigest()[:8], 16)
    groups = [np.array(group) for group in vectors.values()]
    number = low = high = float("nan")
    note = benchmark.note
    if counted and row.statistic:
        number, low, high, remark = row.statistic(counted, seed)
        note = "; ".join(filter(None, (remark, note)))
    elif counted and row.by:
        number, low, high = measure_mean(row.metric, groups, seed)
    elif counted:
        number, low, high = measure(row.metric, groups[0], seed)
    audio, seconds = sum(x["sound_seconds"] for x in lines), sum(x["seconds"] for x in lines)
    standard = benchmark.judging.standard if benchmark.judging else None
    if row.table and benchmark.sources and all(s.rows is None for s in benchmark.sources):
        note = "; ".join(filter(None, (note, "the number of rows isn't checked")))
    status = status or benchmark.status
    if judge not in (None, standard) and status == "reproduced setting":
        status = "judge differs"
    return Measured(
        row.table,
        row.label,
        benchmark.name,
        row.metric,
        len(counted),
        number,
        low,
        high,
        status,
        row.column,
        row.ours,
        lenient=float(np.mean([np.mean(group) for group in lenient.values()])) if lenient else None,
        errors=sum(line["error"] is not None for line in lines),
        unread=len(lines) - len(counted),
        cut=sum(line["cut"] for line in lines),
        judge=judge,
        rtfx=audio / seconds if audio and seconds else None,
        note=note,
    )


def agreement(benchmark: Benchmark, lines: Sequence[SavedLine]) -> dict[str, dict[str, float]]:
    """Return for each pair of judges and each named request: n, the share of equal points, the mean difference, and
    Spearman's rank correlation (absent if one judge's points are constant)."""
    names = _judges(benchmark, TableRow("", ""), lines)
    result = {}
    for a, b in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a and b):
        points = [
            [line["judged"].get(judge, {}).get("points", {}) for judge in (a, b)] for line in lines
        ]
        for name in sorted({name for first, _ in points for name in first}):
            pairs = [
                (x, y)
                for first, second in points
                if (x := first.get(name)) is not None and (y := second.get(name)) is not None
            ]
            if pairs:
                result[f"{a} / {b}: {name}"] = _agreement(np.array(pairs, float))
    return result


def _agreement(pairs: np.ndarray) -> dict[str, float]:
    result = {
        "n": float(len(pairs)),
        "equal": float(np.mean(pairs[:, 0] == pairs[:, 1])),
        "difference": float(np.mean(pairs[:, 1] - pairs[:, 0])),
    }
    if (pairs.std(0) > 0).all():
        from scipy.stats import spearmanr

        result["rank correlation"] = float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
    return result


# ---------------------------------------------------------------------- folders


def rescore(
    folder: Path, further: Sequence[Benchmark] = ()
) -> Iterator[tuple[Benchmark, list[SavedLine]]]:
    """Score the lines of a results folder again, write them back, and yield them by benchmark; shards are joined.
    `further` are benchmarks from users' files."""
    known = {b.name: b for b in (*benchmarks(), *further)}
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        groups.setdefault(path.name.partition(".")[0], []).append(path)
    for name, benchmark in known.items():
        if paths := groups.get(name):
            lines = score(benchmark, [line for path in paths for line in read(path)])
            if len(paths) == 1:
                write(paths[0], lines)
            write_submission(benchmark, lines, folder / file_name(name))
            yield benchmark, lines

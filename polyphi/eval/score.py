"""Lines -> scores -> rows: answers are scored, judged, and summed into the rows of the report's tables.

>>> lines = evaluate(benchmark, data, cache, out, judges=[Judge(cache, "gpt-4-0613")])
>>> rows = rows_of(benchmark, lines)

Scores are made from the lines alone, so that `rescore` makes them without the model, the judge or the data.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import LENIENT, Benchmark, Judging, Row, Score, belongs, benchmarks
from polyphi.eval.cache import Cache, Request
from polyphi.eval.run import BLOCK, Line, Progress, answer, file_name, prompts_of, read, write
from polyphi.eval.sources import Data
from polyphi.eval.statistics import measure, measure_mean, vector
from polyphi.messages import Answers, Message, SamplingParams

JUDGE = SamplingParams(max_tokens=1024)


@dataclass(frozen=True)
class Judge:
    """A model that gives points, and the name that stands beside all its numbers."""

    cache: Cache
    name: str

    @classmethod
    def of(cls, model: Answers, name: str, folder: Path) -> "Judge":
        return cls(Cache(model, folder, name, name=f"judged.{file_part(name)}"), name)


def file_part(name: str) -> str:
    """A name as a part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name)


@dataclass(frozen=True)
class Measured:
    """A measured row. Scores are as `Row.metric` says; `lenient` is the same by the generous reading. `errors` counts
    samples that the model didn't answer (they count as wrong), `unread` those whose judge's reply couldn't be read
    (they don't count), `cut` answers that reached `max_tokens`. `rtfx` is seconds of sound over seconds of work."""

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
    lenient: float | None = None
    errors: int = 0
    unread: int = 0
    cut: int = 0
    judge: str | None = None
    rtfx: float | None = None
    note: str = ""

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
) -> list[Line]:
    """Answer and score a benchmark's samples (`limit` and `shard` as in `prompts_of`). `OUT/NAME.jsonl` has a line for
    each, a shard's lines are in a file of its own; `rows_of` takes the lines of all."""
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


def score(benchmark: Benchmark, lines: list[Line], judges: Sequence[Judge] = ()) -> list[Line]:
    """The lines with their scores: `value`, `extracted`, `parts`, and the judges' replies in `judged`.

    Replies that lines hold already are read again and kept, so that without judges no model is called.
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
    benchmark: Benchmark, lines: Sequence[Line], samples: Sequence[Sample]
) -> Sequence[Score | None]:
    if benchmark.score_many:
        answers = [list(line["answers"]) for line in lines]
        return benchmark.score_many(list(zip(answers, samples, strict=True)))
    if scorer := benchmark.scorer:
        return [scorer(line["answer"], s) for line, s in zip(lines, samples, strict=True)]
    return [None] * len(samples)


def _sample(line: Line) -> Sample:
    """What of a sample scoring may look at: its last message and its meta; for judges, each turn's prompt as text."""
    prompts = map(Message.user, line.get("asked", ()))
    messages = (*prompts, Message.assistant(line["reference"]))
    return Sample(line["id"], messages, line["source"], line["licence"], line["meta"])


def _judge(
    judging: Judging, judge: Judge, lines: Sequence[Line], samples: Sequence[Sample]
) -> None:
    prompts = hashlib.sha256(json.dumps(judging.prompts, sort_keys=True).encode()).hexdigest()[:16]
    for start in range(0, len(lines), BLOCK):
        block = range(start, min(start + BLOCK, len(lines)))
        requests = {
            (i, name): Request(messages, JUDGE)
            for i in block
            if not lines[i]["error"]
            for name, messages in judging.requests(samples[i], lines[i]["answers"]).items()
        }
        for i in block:
            lines[i].setdefault("judged", {})[judge.name] = {"prompts": prompts, "replies": {}}
        replies = judge.cache.answers(list(requests.values()))
        for (i, name), reply in zip(requests, replies, strict=True):
            lines[i]["judged"][judge.name]["replies"][name] = reply.text


def keep_replies(lines: Sequence[Line], path: Path) -> None:
    """Copies judges' replies to the same answers from the file of an earlier run."""
    before = {line["id"]: line for line in read(path)} if path.exists() else {}
    for line in lines:
        earlier = before.get(line["id"], {})
        if earlier.get("answers") == line["answers"] and "judged" in earlier:
            line["judged"] = earlier["judged"]


def write_submission(benchmark: Benchmark, lines: Sequence[Line], path: Path) -> None:
    """Writes the file for the server that knows the hidden answers, where lines have such: NAME.submission.json beside
    NAME.jsonl (`path`)."""
    entries = [
        benchmark.submission(_sample(line), line["answer"])
        for line in lines
        if benchmark.submission and line["meta"].get("hidden")
    ]
    if entries:
        path.with_suffix(".submission.json").write_text(json.dumps(entries, indent=1) + "\n")


# ---------------------------------------------------------------------- rows


def rows_of(
    benchmark: Benchmark, lines: Sequence[Line], status: str | None = None
) -> list[Measured]:
    """The benchmark's rows; those of a judge once for every judge. Rows without a single sample are left out."""
    rows = []
    for row in benchmark.rows:
        own = [line for line in lines if belongs(line["meta"], row.only)]
        for judge in _judges(benchmark, row, own) if own else ():
            if measured := _measured(benchmark, row, own, judge, status):
                rows.append(measured)
    return rows


def _judges(benchmark: Benchmark, row: Row, lines: Sequence[Line]) -> list[str | None]:
    """The judges whose points a row is made of; [None] for rows that the scorer makes."""
    parts = {part for line in lines for part in line["parts"]}
    if not benchmark.judging or (benchmark.scorer and row.part in parts):
        return [None]
    return list(dict.fromkeys(name for line in lines for name in line.get("judged", {})))


def _value(line: Line, row: Row, judge: str | None) -> float | None:
    """What of a line a row is made of; None where a judge's reply couldn't be read."""
    if judge is None:
        value: float | None = line["parts"].get(row.part) if row.part else line["value"]
        return value
    if line["error"]:
        return None
    points = line["judged"].get(judge, {}).get("points", {})
    return points.get(row.part) if row.part else next(iter(points.values()), None)


def _measured(
    benchmark: Benchmark, row: Row, lines: Sequence[Line], judge: str | None, status: str | None
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
        # Readings of the value: they say nothing of another part or an F1.
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
    sound, seconds = sum(x["sound_seconds"] for x in lines), sum(x["seconds"] for x in lines)
    standard = benchmark.judging.standard if benchmark.judging else None
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
        lenient=float(np.mean([np.mean(group) for group in lenient.values()])) if lenient else None,
        errors=sum(line["error"] is not None for line in lines),
        unread=len(lines) - len(counted),
        cut=sum(line["cut"] for line in lines),
        judge=judge,
        rtfx=sound / seconds if sound and seconds else None,
        note=note,
    )


def agreement(benchmark: Benchmark, lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Of each pair of judges and each kind of points: n, share of equal points, mean difference, and Spearman's rank
    correlation (absent where one gave the same points always)."""
    names = _judges(benchmark, Row("", ""), lines)
    result = {}
    for a, b in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a and b):
        points = [
            [line["judged"].get(judge, {}).get("points", {}) for judge in (a, b)] for line in lines
        ]
        for kind in sorted({kind for first, _ in points for kind in first}):
            pairs = [
                (x, y)
                for first, second in points
                if (x := first.get(kind)) is not None and (y := second.get(kind)) is not None
            ]
            if pairs:
                result[f"{a} / {b}: {kind}"] = _agreement(np.array(pairs, float))
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
) -> Iterator[tuple[Benchmark, list[Line]]]:
    """The benchmarks of a results folder, scored again from their lines and written back; shards of one are joined.
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

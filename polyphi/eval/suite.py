"""Benchmarks, run: samples asked and answered, judged, and summed into the rows of the report's tables.

>>> answers = Asked(model, out, fingerprint)
>>> lines = answered(benchmark, data, answers, out)          # OUT/NAME.jsonl, a line for each sample
>>> scored(benchmark, lines, [Judge(endpoint, "gpt-4-0613", out)])
>>> rows = summed(benchmark, lines)

Whatever is interrupted goes on: answers and a judge's replies are on disk as soon as they come (asked.py). Scores are
made from the lines alone, so that `again` makes them without the model, the judge or the data.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from polyphi.data.shards import Sample
from polyphi.eval.asked import Answer, Asked
from polyphi.eval.benchmark import Benchmark, Judging, Row, belongs, benchmarks, in_rows
from polyphi.eval.run import dump, hashes_of, measure, measure_mean, vector, written
from polyphi.eval.sources import Data
from polyphi.eval.spoken import heard, read_out
from polyphi.eval.task import Score
from polyphi.messages import Answers, Audio, Message, SamplingParams

BLOCK = 64
"""Samples that are asked together, and whose media are in memory at once."""
JUDGE = SamplingParams(max_tokens=1024)
LENIENT = "lenient"
"""The part of a score that a more generous reading of the same answer gives."""
Line = dict[str, Any]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Judge:
    """A model that gives points, under the name that stands beside every number of its."""

    model: Answers
    name: str
    asked: Asked

    @classmethod
    def of(cls, model: Answers, name: str, folder: Path) -> "Judge":
        return cls(model, name, Asked(model, folder, name, name="judged." + _plain(name)))


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


@dataclass(frozen=True)
class Measured:
    """A row of ours. Scores are as `Row.metric` says; `lenient` the same by the generous reading. `errors` counts
    samples that the model wouldn't answer (they count as wrong), `unread` those whose judge couldn't be read (they
    don't count). `rtfx` is seconds of sound over seconds of work."""

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
    """Answers that were not at their end after all tokens that they may have."""
    judge: str | None = None
    rtfx: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# ---------------------------------------------------------------------- asking


def answered(
    benchmark: Benchmark,
    data: Data,
    asked: Asked,
    out: Path,
    *,
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
    told: Progress = lambda done: None,
) -> list[Line]:
    """The benchmark's lines, each with the answers to one sample; also in `OUT/NAME.jsonl` once all are there.

    `limit` is the most samples of each row, the first ones. `shard` (i, k) takes every k-th sample from the i-th on,
    into a file of its own; `scored` and `summed` take the lines of all.
    """
    samples = in_rows(benchmark, benchmark.load(data))
    if limit is not None:
        samples = _first(benchmark, samples, limit)
    samples = (s for i, s in enumerate(samples) if i % shard[1] == shard[0] - 1)
    lines: list[Line] = []
    while block := list(islice(samples, BLOCK)):
        lines += _block(benchmark, block, asked)
        told(len(lines))
    if not lines:
        raise ValueError(f"{benchmark.name}: its data hold no sample that counts in a row")
    path = out / name_of(benchmark.name, shard)
    _keep_judgements(lines, path)
    write(path, lines)
    submit(benchmark, lines, path)
    return lines


def _keep_judgements(lines: Sequence[Line], path: Path) -> None:
    """What judges said of the same answers in an earlier run stays."""
    before = {line["id"]: line for line in read(path)} if path.exists() else {}
    for line in lines:
        was = before.get(line["id"], {})
        if was.get("answers") == line["answers"] and "judged" in was:
            line["judged"] = was["judged"]


def _first(benchmark: Benchmark, samples: Iterable[Sample], limit: int) -> Iterator[Sample]:
    taken: Counter[int] = Counter()
    for sample in samples:
        rows = [i for i, row in enumerate(benchmark.rows) if belongs(sample.meta, row.only)]
        if any(taken[i] < limit for i in rows):
            taken.update(rows)
            yield sample
        elif all(taken[i] >= limit for i in range(len(benchmark.rows))):
            return


def _block(benchmark: Benchmark, samples: Sequence[Sample], asked: Asked) -> list[Line]:
    """Turn by turn, the answers to some samples."""
    talks: list[list[tuple[Sequence[Message], Answer]]] = [[] for _ in samples]
    going = list(range(len(samples)))
    while going:
        talked = [(samples[i], [answer.text for _, answer in talks[i]]) for i in going]
        following = (
            benchmark.turns(talked) if benchmark.turns else [benchmark.turn(*t) for t in talked]
        )
        turns = dict(zip(going, following, strict=True))
        wanted = {i: list(messages) for i, messages in turns.items() if messages is not None}
        params = {i: benchmark.params(samples[i]) for i in wanted}
        found = asked.many([(heard(wanted[i]), params[i]) for i in wanted])
        for i, answer in zip(wanted, found, strict=True):
            talks[i].append((wanted[i], answer))
        going = [i for i, answer in zip(wanted, found, strict=True) if answer.error is None]
    return [_line(benchmark, sample, talk) for sample, talk in zip(samples, talks, strict=True)]


def _line(
    benchmark: Benchmark, sample: Sample, talk: Sequence[tuple[Sequence[Message], Answer]]
) -> Line:
    answers = [answer for _, answer in talk]
    last: Sequence[Message] = heard(talk[-1][0]) if talk else ()
    return {
        "benchmark": benchmark.name,
        "id": sample.id,
        "prompt": written(last),
        "asked": [written(read_out(messages[-1:])) for messages, _ in talk],
        "media": hashes_of(last),
        "settings": asdict(benchmark.params(sample)),
        "answers": [answer.text for answer in answers],
        "answer": answers[-1].text if answers else "",
        "error": next((answer.error for answer in answers if answer.error), None),
        "cut": any(answer.finish_reason == "length" for answer in answers),
        "reference": sample.answer,
        "meta": sample.meta,
        "source": sample.source,
        "licence": sample.licence,
        "seconds": sum(answer.seconds for answer in answers),
        "sound_seconds": _sound(last),
    }


def _sound(messages: Sequence[Message]) -> float:
    """Seconds of the clips of a conversation."""
    import soundfile

    total = 0.0
    for part in (p for m in messages for p in m.parts if isinstance(p, Audio)):
        if isinstance(part.source, tuple):
            total += len(part.source[0]) / part.source[1]
            continue
        import io

        file = io.BytesIO(part.source) if isinstance(part.source, bytes) else str(part.source)
        try:
            total += soundfile.info(file).duration
        except soundfile.SoundFileError:
            continue  # the model said so already
    return total


def name_of(benchmark: str, shard: tuple[int, int] = (1, 1)) -> str:
    return (
        f"{benchmark}.jsonl" if shard == (1, 1) else f"{benchmark}.{shard[0]}-of-{shard[1]}.jsonl"
    )


def write(path: Path, lines: Sequence[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(map(dump, lines)), encoding="utf-8")
    partial.replace(path)


def submit(benchmark: Benchmark, lines: Sequence[Line], beside: Path) -> None:
    """Writes what the server takes that knows the hidden answers, where lines have such: NAME.submission.json beside
    NAME.jsonl."""
    entries = [
        benchmark.submits(_sample(line), line["answer"])
        for line in lines
        if benchmark.submits and line["meta"].get("hidden")
    ]
    if entries:
        beside.with_suffix(".submission.json").write_text(json.dumps(entries, indent=1) + "\n")


def read(path: Path) -> list[Line]:
    """The lines of a results file; they are written whole, so that one that can't be read is damaged."""
    lines = []
    # Not splitlines(): answers may hold characters that it takes for line ends.
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if text:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                raise ValueError(
                    f"{path}: line {number} is no JSON; delete the file and run again"
                ) from None
    return lines


# ---------------------------------------------------------------------- scoring


def scored(benchmark: Benchmark, lines: list[Line], judges: Sequence[Judge] = ()) -> list[Line]:
    """The lines with their scores: `value`, `extracted`, `parts`, and the judges' replies in `judged`.

    Replies that lines hold already are read again and kept, so that without judges nothing is asked.
    """
    samples = [_sample(line) for line in lines]
    answers = [list(line["answers"]) for line in lines]
    if benchmark.judging:
        for judge in judges:
            _judge(benchmark.judging, judge, lines, samples)
    scores = _scores(benchmark, samples, answers)
    for line, sample, score in zip(lines, samples, scores, strict=True):
        line |= {
            "value": score.value if score else None,
            "extracted": score.extracted if score else "",
            "parts": dict(score.parts) if score else {},
        }
        if benchmark.judging:
            for told in line.get("judged", {}).values():
                points = {
                    name: benchmark.judging.reads(name, reply, sample)
                    for name, reply in told["replies"].items()
                }
                sums = benchmark.judging.sums
                told["points"] = dict(sums(points)) if sums else points
    return lines


def _scores(
    benchmark: Benchmark, samples: Sequence[Sample], answers: Sequence[Sequence[str]]
) -> Sequence[Score | None]:
    if benchmark.score_many:
        return benchmark.score_many(list(zip(answers, samples, strict=True)))
    if benchmark.scorer:
        scorer = benchmark.scorer
        return [scorer(a[-1] if a else "", s) for a, s in zip(answers, samples, strict=True)]
    return [None] * len(samples)


def _sample(line: Line) -> Sample:
    """What of a sample scoring may look at: its last message and its meta; for judges, each turn's question as text."""
    messages = (*map(Message.user, line["asked"]), Message.assistant(line["reference"]))
    return Sample(line["id"], messages, line["source"], line["licence"], line["meta"])


def _judge(
    judging: Judging, judge: Judge, lines: Sequence[Line], samples: Sequence[Sample]
) -> None:
    prompts = hashlib.sha256(json.dumps(judging.prompts, sort_keys=True).encode()).hexdigest()[:16]
    for start in range(0, len(lines), BLOCK):
        block = range(start, min(start + BLOCK, len(lines)))
        asks = {
            (i, name): messages
            for i in block
            if not lines[i]["error"]
            for name, messages in judging.asks(samples[i], lines[i]["answers"]).items()
        }
        found = judge.asked.many([(messages, JUDGE) for messages in asks.values()])
        for i in block:
            lines[i].setdefault("judged", {})[judge.name] = {"prompts": prompts, "replies": {}}
        for (i, name), answer in zip(asks, found, strict=True):
            lines[i]["judged"][judge.name]["replies"][name] = answer.text


# ---------------------------------------------------------------------- rows


def summed(
    benchmark: Benchmark, lines: Sequence[Line], status: str | None = None
) -> list[Measured]:
    """The benchmark's rows; those of a judge once for every judge. Rows without a single sample are left out."""
    found = []
    for row in benchmark.rows:
        own = [line for line in lines if belongs(line["meta"], row.only)]
        if not own:
            continue
        for judge in _judges(benchmark, row, own):
            if measured := _summed(benchmark, row, own, judge, status):
                found.append(measured)
    return found


def _judges(benchmark: Benchmark, row: Row, lines: Sequence[Line]) -> list[str | None]:
    """The judges whose points a row is made of; [None] for rows that the scorer makes."""
    if not benchmark.judging or (benchmark.scorer and row.part in _scorer_parts(lines)):
        return [None]
    return list(dict.fromkeys(name for line in lines for name in line.get("judged", {})))


def _scorer_parts(lines: Sequence[Line]) -> set[str]:
    return {part for line in lines for part in line["parts"]}


def _summed(
    benchmark: Benchmark, row: Row, lines: Sequence[Line], judge: str | None, status: str | None
) -> Measured | None:
    vectors: dict[Any, list[list[float]]] = {}
    counted: list[tuple[dict[str, Any], Score]] = []
    lenient: dict[Any, list[float]] = {}
    unread = 0
    for line in lines:
        value, parts = line["value"], line["parts"]
        group = line["meta"].get(row.by) if row.by else None
        if judge is not None:
            points = line["judged"].get(judge, {}).get("points", {})
            value = points.get(row.part) if row.part else next(iter(points.values()), None)
            if line["error"] or value is None:
                unread += 1
                continue
        elif row.part is not None:
            value = parts.get(row.part)
        if value is None:
            unread += 1
            continue
        score = Score(value, line["extracted"], parts)
        counted.append((line["meta"], score))
        if row.statistic is None:
            vectors.setdefault(group, []).append(vector(row.metric, score))
        # Readings of the value: they say nothing of another part or an F1.
        if LENIENT in parts and row.part is None and row.metric != "f1":
            lenient.setdefault(group, []).append(parts[LENIENT])
    if not counted and not unread:
        return None
    seed = int(hashlib.sha256(f"{benchmark.name} {row.label}".encode()).hexdigest()[:8], 16)
    groups = [np.array(told) for told in vectors.values()]
    number = low = high = float("nan")
    note = benchmark.note
    if counted and row.statistic:
        number, low, high, beside = row.statistic(counted, seed)
        note = "; ".join(filter(None, (beside, note)))
    elif counted:
        number, low, high = (
            measure_mean(row.metric, groups, seed)
            if row.by
            else measure(row.metric, groups[0], seed)
        )
    sound, seconds = sum(x["sound_seconds"] for x in lines), sum(x["seconds"] for x in lines)
    standard = benchmark.judging.standard if benchmark.judging else None
    said = status or benchmark.status
    return Measured(
        row.table,
        row.label,
        benchmark.name,
        row.metric,
        len(counted),
        number,
        low,
        high,
        "judge differs" if judge not in (None, standard) and said == "reproduced setting" else said,
        row.column,
        lenient=float(np.mean([np.mean(told) for told in lenient.values()])) if lenient else None,
        errors=sum(line["error"] is not None for line in lines),
        unread=unread,
        cut=sum(line["cut"] for line in lines),
        judge=judge,
        rtfx=sound / seconds if sound and seconds else None,
        note=note,
    )


def agreement(benchmark: Benchmark, lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Of each pair of judges and each kind of points: n, share of equal points, mean difference, and Spearman's rank
    correlation (absent where one gave the same points always)."""
    names = _judges(benchmark, Row("", ""), lines)
    found = {}
    for a, b in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a and b):
        kinds = {k for line in lines for k in line["judged"].get(a, {}).get("points", {})}
        for kind in sorted(kinds):
            pairs = [
                (x, y)
                for line in lines
                if (x := line["judged"].get(a, {}).get("points", {}).get(kind)) is not None
                and (y := line["judged"].get(b, {}).get("points", {}).get(kind)) is not None
            ]
            if pairs:
                found[f"{a} / {b}: {kind}"] = _agreement(np.array(pairs, float))
    return found


def _agreement(pairs: np.ndarray) -> dict[str, float]:
    told = {
        "n": float(len(pairs)),
        "equal": float(np.mean(pairs[:, 0] == pairs[:, 1])),
        "difference": float(np.mean(pairs[:, 1] - pairs[:, 0])),
    }
    if (pairs.std(0) > 0).all():
        from scipy.stats import spearmanr

        told["rank correlation"] = float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
    return told


# ---------------------------------------------------------------------- folders


def again(folder: Path, own: Sequence[Benchmark] = ()) -> Iterator[tuple[Benchmark, list[Line]]]:
    """The benchmarks of a results folder, scored again from their lines and written back; shards of one are joined.
    `own` are those that aren't ours."""
    known = {b.name: b for b in (*benchmarks(), *own)}
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        name = path.name.removesuffix(".jsonl").partition(".")[0]
        if name in known:
            groups.setdefault(name, []).append(path)
    for name, benchmark in known.items():
        if paths := groups.get(name):
            lines = scored(benchmark, [line for path in paths for line in read(path)])
            if len(paths) == 1:
                write(paths[0], lines)
            submit(benchmark, lines, folder / name_of(name))
            yield benchmark, lines

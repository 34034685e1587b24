"""Spider (report, Table 8): 1,034 questions to 20 databases, to be written as SQL after four solved questions.

The answer's SQL and the reference's run on the same database. Equal results are right, with columns in any order and
rows in any order unless the reference orders them (test-suite-sql-eval's comparison, without its further databases).
The report doesn't say which four examples it uses: ours are the first question of each of the first four databases of
the training questions. SQL is code that a model wrote: it runs in the sandbox.
"""

import base64
import json
import re
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import programs, sql_results
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, TableRow
from polyphi_eval.services import sandbox
from polyphi_eval.sources import BenchmarkSource, Data, Missing

SOURCE = BenchmarkSource(
    "spider",
    ("dev.json", "train_spider.json", "database/*/*.sqlite"),
    "https://yale-lily.github.io/spider (spider_data.zip)",
    fields=("db_id", "question", "query"),
    rows=1034 + 7000,
    hub=False,
)
SHOTS = 4
MAX_EMBEDDED_BYTES = 96 << 10
"""Smaller databases, compressed, are stored in the results, which can then be scored again without the data."""
SECONDS = 5.0
"""Processor time of a query."""
LIMITS = sandbox.Limits(
    seconds=60.0, cpu_seconds=30, memory_bytes=2 << 30, file_bytes=1 << 30, disk_bytes=2 << 30
)


def load(data: Data) -> Iterator[Sample]:
    folder = data.folder(SOURCE)
    shots: dict[str, Mapping[str, Any]] = {}
    for row in data.rows(SOURCE, "train_spider.json"):
        if len(shots) < SHOTS:
            shots.setdefault(row["db_id"], row)
    examples = "".join(f"{_task(folder, row)} {_line(row['query'])}\n\n" for row in shots.values())
    for number, row in enumerate(data.rows(SOURCE, "dev.json")):
        path = _database(folder, row["db_id"])
        yield Sample(
            f"spider-{number}",
            (Message.user(examples + _task(folder, row)), Message.assistant(_line(row["query"]))),
            "Spider",
            "CC-BY-SA-4.0",
            {"query": row["query"], "max_tokens": 256, **_embedded_database(path)},
        )


def _database(folder: Path, name: str) -> Path:
    return folder / "database" / name / f"{name}.sqlite"


@cache
def _embedded_database(path: Path) -> dict[str, str]:
    compressed = zlib.compress(path.read_bytes(), 9)
    if len(compressed) <= MAX_EMBEDDED_BYTES:
        return {"database": base64.b64encode(compressed).decode()}
    return {"path": str(path.resolve())}


def _task(folder: Path, row: Mapping[str, Any]) -> str:
    schema = _schema(_database(folder, row["db_id"]))
    return (
        f"{schema}\n\n-- Answer the question with one SQLite query and nothing else.\n"
        f"-- Question: {row['question'].strip()}\n-- Query:"
    )


@cache
def _schema(path: Path) -> str:
    """The CREATE TABLE statements of a database, in their order."""
    if not path.exists():
        raise Missing(f"{path} is missing; {SOURCE.name} comes from {SOURCE.where}")
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        statements = database.execute(
            "select sql from sqlite_master where type = 'table' and name not like 'sqlite_%' order by rowid"
        )
        return "\n".join(_line(sql) + ";" for (sql,) in statements if sql)


def _line(sql: str) -> str:
    return re.sub(r"\s+", " ", sql).strip().rstrip(";")


def strict(answer: str) -> str:
    """The SQL of an answer: its first fenced block or else its first paragraph, up to the first semicolon."""
    fenced = re.search(r"```(?:sql|sqlite)?[ \t]*\n(.*?)(?:```|\Z)", answer, re.S | re.I)
    text = fenced[1] if fenced else answer.partition("\n\n")[0]
    return text.strip().removeprefix("-- Query:").partition(";")[0].strip()


def lenient(answer: str) -> str:
    """The SQL of an answer from the first SELECT or WITH on."""
    match = re.search(r"\b(?:select|with)\b[^;`]*", answer, re.I)
    return match[0].strip() if match else ""


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    answers = [
        (texts[-1][: programs.MAX_CHARACTERS] if texts else "", sample) for texts, sample in pairs
    ]
    verdicts = _judge([(read(a), s) for read in (strict, lenient) for a, s in answers])
    strictly, leniently = verdicts[: len(answers)], verdicts[len(answers) :]
    return [
        Score(
            float(right), strict(answer)[: programs.MAX_RECORDED], {LENIENT: float(right or loose)}
        )
        for (answer, _), right, loose in zip(answers, strictly, leniently, strict=True)
    ]


def _judge(queries: Sequence[tuple[str, Sample]]) -> list[bool]:
    """Return whether each query has the same result as its sample's query."""
    if reason := programs.unavailable():
        raise ValueError(f"SQL can't be judged: {reason}")
    unique = {
        (sql, s.meta["query"], s.meta.get("database"), s.meta.get("path")): s for sql, s in queries
    }
    verdicts = programs.parallel_map(_same_result, unique)
    right = dict(zip(unique, verdicts, strict=True))
    return [
        right[sql, s.meta["query"], s.meta.get("database"), s.meta.get("path")]
        for sql, s in queries
    ]


def _same_result(comparison: tuple[str, str, str | None, str | None]) -> bool:
    sql, reference, database, path = comparison
    if not sql:
        return False
    if database is None:
        if not Path(str(path)).is_file():
            raise ValueError(f"{path} is missing: its queries can't be scored again without it")
        database = base64.b64encode(zlib.compress(Path(str(path)).read_bytes(), 1)).decode()
    request = {"database": database, "query": sql, "reference": reference, "seconds": SECONDS}
    result = sandbox.run(
        Path(sql_results.__file__).read_text(encoding="utf-8"),
        stdin=json.dumps(request),
        limits=LIMITS,
        weak=sandbox.unavailable() is not None,
    )
    return result.ended == "ok" and result.stdout.strip() == "equal"


benchmark = Benchmark(
    name="spider",
    title="Spider",
    modality="text",
    rows=(TableRow("Table 8", "Spider"),),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=256,
    unavailable=programs.unavailable,
    note="the four examples are ours: the report doesn't say which ones it uses",
)

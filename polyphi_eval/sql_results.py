"""Runs in the sandbox as a standalone program (benchmarks/text/spider.py sends this file): compares the results of two
SQL queries.

Reads JSON with the database's compressed bytes in base64; prints "equal" or "different".
"""

import base64
import json
import sqlite3
import sys
import time
import zlib
from collections import Counter
from itertools import permutations
from typing import Any

STEPS = 10_000
"""SQLite's virtual machine instructions between two checks of the time limit."""
MAX_ROWS = 200_000
MAX_ORDERS = 5040
"""Column orders that are tried: those of seven columns."""


def rows_of(path: str, sql: str, seconds: float) -> list[tuple[Any, ...]]:
    """Return the rows of a read-only query, limited to `seconds` of CPU time. Raises sqlite3.Error."""
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    database.text_factory = lambda data: data.decode(errors="replace")
    allowed = {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
    database.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
    )
    deadline = time.process_time() + seconds
    database.set_progress_handler(lambda: int(time.process_time() > deadline), STEPS)
    rows = database.execute(sql).fetchmany(MAX_ROWS)
    return [tuple(row) for row in rows]


def rows_equal(rows: list[tuple[Any, ...]], expected: list[tuple[Any, ...]], ordered: bool) -> bool:
    """Whether rows are equal in some order of the columns, and, unless `ordered`, in any order of the rows."""
    if len(rows) != len(expected):
        return False
    if not rows:
        return True
    width = len(expected[0])
    if len(rows[0]) != width:
        return False
    for number, order in enumerate(permutations(range(width))):
        if number >= MAX_ORDERS:
            return False
        permuted = [tuple(row[column] for column in order) for row in rows]
        if permuted == expected if ordered else Counter(permuted) == Counter(expected):
            return True
    return False


def main() -> None:
    request = json.load(sys.stdin)
    with open("database.sqlite", "wb") as file:
        file.write(zlib.decompress(base64.b64decode(request["database"])))
    expected = rows_of("database.sqlite", request["reference"], request["seconds"])
    try:
        rows = rows_of("database.sqlite", request["query"], request["seconds"])
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError):
        rows = None
    ordered = "order by" in request["reference"].lower()
    print("equal" if rows is not None and rows_equal(rows, expected, ordered) else "different")


if __name__ == "__main__":
    main()

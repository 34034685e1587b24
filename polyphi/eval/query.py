"""Runs in the sandbox, as a program of its own (tasks/text/spider.py sends this file there): two queries to one
database, and whether they give the same.

Reads JSON with the database's compressed bytes in base64; prints "alike" or "different".
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
"""Of SQLite's, between two looks at the time that a query takes."""
MOST_ROWS = 200_000
MOST_ORDERS = 5040
"""Orders of columns that are tried (seven columns have as many)."""


def rows_of(path: str, sql: str, seconds: float) -> list[tuple[Any, ...]]:
    """The result of a query that may only read this database, for so much processor time. Raises sqlite3.Error."""
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    database.text_factory = lambda data: data.decode(errors="replace")
    allowed = {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
    database.set_authorizer(
        lambda what, *_: sqlite3.SQLITE_OK if what in allowed else sqlite3.SQLITE_DENY
    )
    end = time.process_time() + seconds
    database.set_progress_handler(lambda: int(time.process_time() > end), STEPS)
    rows = database.execute(sql).fetchmany(MOST_ROWS)
    return [tuple(row) for row in rows]


def alike(ours: list[tuple[Any, ...]], theirs: list[tuple[Any, ...]], ordered: bool) -> bool:
    """Equal in some order of the columns; in any order of the rows unless they are `ordered`."""
    if len(ours) != len(theirs):
        return False
    if not ours:
        return True
    width = len(theirs[0])
    if len(ours[0]) != width:
        return False
    for number, order in enumerate(permutations(range(width))):
        if number >= MOST_ORDERS:
            return False
        turned = [tuple(row[place] for place in order) for row in ours]
        if turned == theirs if ordered else Counter(turned) == Counter(theirs):
            return True
    return False


def main() -> None:
    request = json.load(sys.stdin)
    with open("database.sqlite", "wb") as file:
        file.write(zlib.decompress(base64.b64decode(request["database"])))
    theirs = rows_of("database.sqlite", request["reference"], request["seconds"])
    try:
        ours = rows_of("database.sqlite", request["query"], request["seconds"])
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError):
        ours = None
    ordered = "order by" in request["reference"].lower()
    print("alike" if ours is not None and alike(ours, theirs, ordered) else "different")


if __name__ == "__main__":
    main()

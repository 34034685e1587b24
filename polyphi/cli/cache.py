"""`polyphi cache`: the models that are stored on this machine."""

import json
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from polyphi.cli.application import application
from polyphi.cli.options import console

app = application("cache", "List and remove stored models of the Hub.")
app.synonym = ("list", "ls", "rm", "remove", "models", "ps")


@app.command(name="list")
def list_models(
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="Print JSON.")] = False,
) -> None:
    """List downloaded and quantized models, with their sizes, commits and last use.

    For example:

        polyphi cache list
        polyphi cache list --json
    """
    from polyphi.hub import cache
    from polyphi.runtime.files import size_text

    rows = cache.entries()
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
        return
    if not rows:
        console.print("no models are stored; `polyphi pull owner/name` stores one")
        return
    columns = {"name": [row.name for row in rows]}
    columns["size"] = [
        size_text(row.bytes) + (" (incomplete)" if row.fault else "") for row in rows
    ]
    columns["commit"] = [row.revision[: cache.SHORT] for row in rows]
    columns["last used"] = [
        datetime.fromtimestamp(row.last_used).strftime("%Y-%m-%d") if row.last_used else ""
        for row in rows
    ]
    table = Table(box=None, padding=(0, 2))
    for title, cells in columns.items():  # whole, also where a terminal is narrow
        table.add_column(title, no_wrap=True, min_width=max(map(len, (title, *cells))))
    for row_cells in zip(*columns.values(), strict=True):
        table.add_row(*row_cells)
    console.print(table, crop=False)
    folders = " and ".join(sorted({str(cache.folder_of(row)) for row in rows}))
    total = size_text(sum(row.bytes for row in rows))
    console.print(f"{total} in {folders}", highlight=False, soft_wrap=True)


@app.command
def remove(
    *names: Annotated[
        str,
        Parameter(
            help="As `polyphi cache list` shows them: owner/name, or owner/name:int4.",
            required=True,
        ),
    ],
) -> None:
    """Delete stored models. A download and each of its quantized versions are removed separately.

    For example:

        polyphi cache remove microsoft/Phi-4-mini-instruct
        polyphi cache remove microsoft/Phi-4-mini-instruct:int4
    """
    from polyphi.hub import removal
    from polyphi.runtime.files import size_text

    for name in names:
        for row in removal.remove(name):
            console.print(f"removed {row.name}: {size_text(row.bytes)}", highlight=False)

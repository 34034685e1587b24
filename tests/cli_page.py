"""Writes docs/cli.md from the commands' own help: `python tests/cli_page.py`."""

import html
import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from polyphi.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
START = """# Commands

Every command with its arguments and options, as `polyphi COMMAND --help` prints them. This page is written from the
code by `python tests/cli_page.py`.

"""


def text() -> str:
    """The page: typer's own documentation, with examples as code."""
    command = typer.main.get_command(app)
    docs = get_docs_for_click(obj=command, ctx=typer.Context(command), name="polyphi")
    docs = html.unescape(docs).replace("\b", "")
    body = docs[docs.index("\n## ") :]
    body = re.sub(r"(?m)^\* `--help`: .*\n", "", body)
    body = re.sub(r"(?m)^Examples:\n((?:  +polyphi .*\n)+)", _code, body)
    body = body.replace("```console\n$ ", "```text\n")
    summaries = [
        f"- [`polyphi {name}`](#polyphi-{name}): {one.get_short_help_str(300)}"
        for name, one in command.commands.items()  # type: ignore[attr-defined]
    ]
    body = "\n".join(summaries) + "\n" + body
    return START + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def _code(match: re.Match[str]) -> str:
    lines = "\n".join(line.strip() for line in match[1].splitlines())
    return f"\n**Examples**:\n\n```\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")

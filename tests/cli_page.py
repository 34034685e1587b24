"""Writes docs/cli.md from the commands' own help: `python tests/cli_page.py`."""

import re
from pathlib import Path
from unittest import mock

from polyphi.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
START = """# Commands

Every command with its arguments and options, as `polyphi COMMAND --help` prints them. This page is written from the
code by `python tests/cli_page.py`.

"""


def text() -> str:
    """The page: cyclopts' own documentation, without its table of contents and the commands of shell completion."""
    # cyclopts takes the name of the running program for a command's.
    with mock.patch("cyclopts.help.help._default_app_name", lambda: "polyphi"):
        docs = app.generate_docs()
    body = docs[docs.index("* [`bench`]") :].replace("```console", "```text")
    body = re.sub(r"(?m)^\* \[`--.*\n", "", body)
    body = re.sub(r"(?ms)^## polyphi --.*?(?=^## )", "", body)
    return START + re.sub(r"\n {8}(?=\S)", " ", body).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")

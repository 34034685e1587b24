"""Text of models, files and errors on a terminal: control characters in it are shown, not obeyed.

>>> printable("a\\x1b[2Jb")                  # it would have erased the screen
'a\\\\x1b[2Jb'

Data that are piped stay exact. Messages (standard error, logs) are always printable, since they are read later, too.
"""

import logging
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all of C0 and C1 but tabs and line ends
    r"\u202a-\u202e\u2066-\u2069"  # overrides of the order in which text is shown
    r"\ud800-\udfff]"  # bytes of a file name that are no UTF-8
)


def printable(text: str) -> str:
    """The text with control characters as Python's escapes, such as \\x1b; tabs and line ends stay."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class PrintableConsole(Console):
    """A console that shows the control characters of what is printed; exact where standard output is piped."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(
            printable(text) if self.stderr or self.is_terminal else text, **options
        )


def write_data(console: Console, text: str) -> None:
    """Write text of a model: exact, but printable on a terminal. (rich would drop some characters from pipes, too.)"""
    console.file.write(printable(text) if console.is_terminal else text)
    console.file.flush()


def print_message(text: str) -> None:
    """Print a line of the program to standard error."""
    print(f"polyphi: {printable(text)}", file=sys.stderr)


class PrintableFormatter(logging.Formatter):
    """Formats log records as printable text."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))

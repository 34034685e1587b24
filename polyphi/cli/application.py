"""The layout of a command line's help, and how its values are read."""

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from cyclopts import App, Group, Parameter, Token, convert


def unrounded(hint: Any, tokens: Sequence[Token]) -> Any:
    """The value of an option; cyclopts rounds 1.5 to an integer."""
    value = convert(hint, tokens)
    if type(value) is int and "." in tokens[0].value:
        raise ValueError(f"expected an integer, found {tokens[0].value}")
    return value


def application(name: str, text: str) -> App:
    """A command line or a group of commands. Its errors are raised, and printed by `main`. Of an option that is
    given twice the last value counts. One that is off or empty shows no default, and a flag has no `--no-FLAG` unless
    it names one. A value that begins with a bracket is no JSON."""
    return App(
        name=name,
        help=text,
        version=lambda: f"polyphi {metadata.version('polyphi')}",
        help_flags=("--help", "-h"),
        help_format="markdown",
        version_format="plaintext",
        group_parameters=Group("Options", sort_key=0),
        default_parameter=Parameter(
            negative=(),
            allow_repeating=True,
            converter=unrounded,
            json_list=False,
            show_default=lambda value: None if value is False or value in ("", (), {}) else value,
        ),
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )

"""The command line in tests: its commands, and the function and values that words on it mean."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cyclopts import App

from polyphi.cli import app
from polyphi.cli.inputs import with_repeated_options

RunCommand = Callable[..., tuple[int, str, str]]
"""The fixture `run_command`: exit code, standard output and standard error of the words of a command line."""


@contextmanager
def piped(text: bytes, *, ended: bool = True) -> Iterator[None]:
    """Standard input is a pipe with this text; not `ended`: its writer may send more."""
    saved, (reading, writing) = os.dup(0), os.pipe()
    os.write(writing, text)
    os.dup2(reading, 0)
    os.close(reading)
    if ended:
        os.close(writing)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        for descriptor in (saved, *([] if ended else [writing])):
            os.close(descriptor)


def commands(group: App = app, prefix: str = "") -> Iterator[tuple[str, App]]:
    """(name, command) of all commands, those of groups with the group's name before theirs."""
    for name, command in subcommands(group).items():
        if subcommands(command):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def subcommands(command: App) -> dict[str, App]:
    return {name: command[name] for name in command if not name.startswith("-")}


def options(command: App) -> dict[str, Any]:
    """The options of a command by name, with their argument, in the order of the help."""
    if not command.default_command:
        return {}
    arguments = command.assemble_argument_collection(default_parameter=app.default_parameter)
    return {name: one for one in arguments for name in one.names if name.startswith("--")}


def parsed(words: Sequence[str]) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    """The function that a command line calls, and its arguments. Raises `CycloptsError` or ValueError."""
    command, bound, _ = app.parse_args(with_repeated_options(words))
    return command, bound

"""What `--help` promises: examples that parse, few panels, a version, completion."""

import re
import shlex
from collections.abc import Iterator
from importlib import metadata

import click
import pytest
import typer
from typer.testing import CliRunner

from polyphi import cli
from polyphi.cli import app

MOST_PANELS = 3


def commands(group: click.Command, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in getattr(group, "commands", {"": group}).items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


ROOT = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT))


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_a_command_parse(name: str) -> None:
    examples = re.findall(r"(?m)^ +polyphi (.+)$", COMMANDS[name].help or "")
    assert examples, f"polyphi {name} --help shows no example"
    for example in examples:
        group, arguments = ROOT, shlex.split(example)
        while hasattr(group, "commands"):
            context = group.make_context("polyphi", arguments)
            _, group, arguments = group.resolve_command(  # type: ignore[attr-defined]
                context, [*context._protected_args, *context.args]
            )
            assert group is not None
        assert group is COMMANDS[name]
        group.make_context(name, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_in_few_panels_with_the_common_ones_first(name: str) -> None:
    panels = [
        getattr(option, "rich_help_panel", None)
        for option in COMMANDS[name].params
        if isinstance(option, click.Option)
    ]
    assert len(set(panels)) <= MOST_PANELS
    assert panels[: panels.count(None)] == [None] * panels.count(None)


def test_a_command_that_cannot_be_loaded_leaves_all_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [
        metadata.EntryPoint(name, "no_such_package:app", "polyphi.commands")
        for name in ("broken", "broken.part")
    ] + [metadata.EntryPoint("broken.other", "polyphi.cli.chat:chat", "polyphi.commands")]
    monkeypatch.setattr(cli.metadata, "entry_points", lambda group: points)
    cli.add_commands()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("'")[1] for line in lines] == ["broken", "part"]
    assert all("No module named 'no_such_package'" in line for line in lines)


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout == f"polyphi {metadata.version('polyphi')}\n"


def test_a_shell_completes_commands_and_options() -> None:
    environment = {
        "_POLYPHI_COMPLETE": "complete_bash",
        "COMP_WORDS": "polyphi tra",
        "COMP_CWORD": "1",
    }
    assert CliRunner().invoke(app, [], prog_name="polyphi", env=environment).stdout.split() == [
        "train",
        "transcribe",
    ]
    environment |= {"COMP_WORDS": "polyphi serve --media", "COMP_CWORD": "2"}
    assert (
        "--media-root" in CliRunner().invoke(app, [], prog_name="polyphi", env=environment).stdout
    )

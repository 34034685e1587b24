"""What `--help` promises: examples that parse, few panels, a version, completion."""

import re
import shlex
import subprocess
from importlib import metadata

import pytest

from polyphi import cli
from polyphi.cli import app
from tests.fixtures.command_line import Refused, RunCommand, commands, options, parsed

MOST_PANELS = 3
COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_a_command_parse(name: str) -> None:
    examples = re.findall(r"(?m)^ +polyphi (.+)$", COMMANDS[name].help)
    assert examples, f"polyphi {name} --help shows no example"
    for example in examples:
        command, _ = parsed(shlex.split(example.partition(" | ")[0]))
        assert command is COMMANDS[name].default_command


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_in_few_panels_with_the_common_ones_first(
    name: str, run_command: RunCommand
) -> None:
    panels = [
        group.name for one in options(COMMANDS[name]).values() for group in one.parameter.group
    ]
    assert len(set(panels)) <= MOST_PANELS
    code, out, _ = run_command(*name.split(), "--help")
    titles = re.findall(r"(?m)^╭─ (.+?) ─+╮$", out)
    assert code == 0 and set(titles) - {"Arguments"} == set(panels)
    assert "Options" not in titles or titles.index("Options") <= 1


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


def test_version(run_command: RunCommand) -> None:
    assert run_command("--version") == (0, f"polyphi {metadata.version('polyphi')}\n", "")


@pytest.mark.parametrize(
    ("words", "result"),
    [("polyphi tra", "train transcribe"), ("polyphi serve --media", "--media-root")],
)
def test_a_shell_completes_commands_and_options(words: str, result: str) -> None:
    script = (
        app.generate_completion(shell="bash")
        + f"""
        COMP_WORDS=({words}) COMP_CWORD={len(words.split()) - 1}
        $(complete -p polyphi | sed 's/.*-F //; s/ .*//')
        echo "${{COMPREPLY[@]}}"
    """
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == result.split()


def test_a_lone_hyphen_is_a_file() -> None:
    assert parsed(["transcribe", "model", "--live", "-"])[1].arguments["files"] == ("-",)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("transcribe model a.wav --frmat srt", "--frmat"),
        ("trian", '"train"'),
        ("train a --seed 1.5", "--seed"),
        ("train a --eval-every 1.5", "--eval-every"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(words: str, name: str, refused: Refused) -> None:
    """Also a number that would have to be rounded."""
    assert name in refused(*words.split())


def test_the_last_value_of_an_option_counts_and_repeatable_ones_add_up() -> None:
    words = ["train", "mine.py", "--model", "a", "--seed", "1", "--data", "x", "--seed", "2"]
    _, bound = parsed([*words, "--model", "b", "--data", "y"])
    assert (bound.arguments["model"], bound.arguments["options"].seed) == ("b", 2)
    assert bound.arguments["data"] == ("x", "y")


@pytest.mark.parametrize(
    ("words", "name", "values"),
    [
        ("train a --size micro b", "stages", ("a", "b")),
        ("transcribe model a --words b -- --c", "files", ("a", "b", "--c")),
        ("cache remove a b", "names", ("a", "b")),
        ("eval synthesise a --data folder b", "names", ("a", "b")),
        ('chat model --image [a].png --image ["b"]', "image", ("[a].png", '["b"]')),
    ],
)
def test_arguments_may_follow_options_and_are_no_json(
    words: str, name: str, values: tuple[object, ...]
) -> None:
    assert parsed(words.split())[1].arguments[name] == values


def test_no_shell_to_complete_in_is_one_line(
    monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    for name in ("BASH_VERSION", "ZSH_VERSION", "FISH_VERSION", "SHELL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")  # no `ps`
    assert "SHELL" in refused("--show-completion")


def test_eval_shows_its_options_and_commands(run_command: RunCommand) -> None:
    code, out, _ = run_command("eval", "--help")
    assert code == 0
    for name in ("--suite", "--data", "--judge", "--quant", "--device", "heldout", "score"):
        assert name in out
    assert parsed(["eval", "model", "--suite", "mini"])[1].arguments["suites"] == ("mini",)
    assert parsed(["eval", "run", "task", "--quant", "int8"])[1].arguments["tasks"] == ("task",)


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["help", "chat"]])
def test_help_needs_no_option(words: list[str], run_command: RunCommand) -> None:
    code, out, error = run_command(*words)
    assert (code, error) == (0, "") and "Usage: polyphi" in out

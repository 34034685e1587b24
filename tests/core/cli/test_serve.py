"""Arguments of `polyphi serve`."""

import pytest
from typer.testing import CliRunner

from polyphi.cli import app
from polyphi.cli.serve import api_keys, parse_adapters


def test_adapters_by_name() -> None:
    assert parse_adapters(["a=runs/a", "b=C:/x=y"]) == {"a": "runs/a", "b": "C:/x=y"}


@pytest.mark.parametrize("arguments", [["a"], ["=a"], ["a="], ["a=b", "a=c"]])
def test_wrong_adapters_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=arguments[0]):
        parse_adapters(arguments)


def test_the_variable_has_a_key_on_each_line() -> None:
    assert api_keys([], "one\ntwo\r\n\n") == ("one", "two")
    assert api_keys(["three", "four"], "one\ntwo") == ("three", "four")
    assert api_keys([], "") == ()


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [([], "correct horse"), (["correct horse"], ""), ([""], ""), ([], " "), ([], "a\nb ")],
)
def test_a_key_with_blanks_is_refused_before_the_server_listens(
    arguments: list[str], environment: str
) -> None:
    """It was several keys, of which each opened the server."""
    options = [part for key in arguments for part in ("--api-key", key)]
    result = CliRunner(env={"POLYPHI_API_KEY": environment}).invoke(
        app, ["serve", "no-model", "--host", "192.0.2.1", *options]
    )
    assert isinstance(result.exception, ValueError)
    assert "on each line" in str(result.exception) and "horse" not in str(result.exception)

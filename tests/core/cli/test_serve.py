"""Arguments of `polyphi serve`."""

from pathlib import Path

import pytest

from polyphi.cli.options import parse_adapters
from polyphi.serve.admission.settings import MIB, Settings
from tests.fixtures.command_line import Refused, parsed


def settings(*words: str) -> Settings:
    _, bound = parsed(["serve", "model", *words])
    return bound.arguments.get("settings", Settings())


def test_adapters_by_name() -> None:
    assert parse_adapters(["a=runs/a", "b=C:/x=y"]) == {"a": "runs/a", "b": "C:/x=y"}


@pytest.mark.parametrize("arguments", [["a"], ["=a"], ["a="], ["a=b", "a=c"]])
def test_wrong_adapters_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=arguments[0]):
        parse_adapters(arguments)


def test_the_variable_has_a_key_on_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHI_API_KEY", "one\ntwo\r\n\n")
    assert settings().keys == ("one", "two")
    assert settings("--api-key", "three", "--api-key", "-four").keys == ("three", "-four")
    monkeypatch.setenv("POLYPHI_API_KEY", "")
    assert settings().keys == ()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty host would have been all addresses of the machine."""
    for name in ("POLYPHI_HOST", "POLYPHI_PORT", "POLYPHI_API_KEY"):
        monkeypatch.setenv(name, "")
    assert settings() == Settings()
    monkeypatch.setenv("POLYPHI_HOST", "::1")
    monkeypatch.setenv("POLYPHI_PORT", "0")
    assert (settings().host, settings().port) == ("::1", 0)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [([], "correct horse"), (["correct horse"], ""), ([""], ""), ([], " "), ([], "a\nb ")],
)
def test_a_key_with_blanks_is_refused_before_the_server_listens(
    arguments: list[str],
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    """It was several keys, of which each opened the server."""
    monkeypatch.setenv("POLYPHI_API_KEY", environment)
    options = [part for key in arguments for part in ("--api-key", key)]
    error = refused("serve", "no-model", "--host", "192.0.2.1", *options)
    assert "on each line" in error and "horse" not in error


def test_amounts_are_bytes_and_limits_are_no_options() -> None:
    chosen = settings("--store-mb", "3", "--requests-gb", "0.5")
    assert (chosen.max_stored_bytes, chosen.max_requests_bytes) == (3 * MIB, 500_000_000)
    assert settings() == Settings()


@pytest.mark.parametrize(
    "words",
    [
        ("--port", "70000"),
        ("--port", "80.5"),
        ("--store-mb", "-1"),
        ("--requests-gb", "nan"),
        ("--max-waiting", "-1"),
        ("--max-num-seqs", "0"),
        ("--drain-seconds", "90000"),
        ("--quant", "int5"),
        ("--max-body-bytes", "5"),
        ("--no-insecure",),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(words: tuple[str, ...], refused: Refused) -> None:
    line = refused("serve", "no-model", *words)
    assert words[0] in line and line.endswith("See `polyphi serve --help`.")


@pytest.mark.parametrize("name", ["nothing", "empty", "truncated", "model.gguf", "runs/none"])
def test_a_model_that_is_not_there_is_an_error_before_the_server_listens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def bind(_: Settings) -> None:
        raise AssertionError("the server listens")

    monkeypatch.setattr("polyphi.serve.run.bind", bind)
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "truncated"):
        Path(folder).mkdir()
    Path("truncated/config.json").write_text('{"model_type": "phi3"}')
    Path("truncated/model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    assert name in refused("serve", name)

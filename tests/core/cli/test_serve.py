"""Arguments of `polyphi serve`."""

import pytest

from polyphi.cli.serve import parse_adapters


def test_adapters_by_name() -> None:
    assert parse_adapters(["a=runs/a", "b=C:/x=y"]) == {"a": "runs/a", "b": "C:/x=y"}


@pytest.mark.parametrize("arguments", [["a"], ["=a"], ["a="], ["a=b", "a=c"]])
def test_wrong_adapters_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=arguments[0]):
        parse_adapters(arguments)

"""Hints to install an extra name the source of this installation, never a package of an index."""

import json
from pathlib import Path

import pytest

from polyphi.runtime import installation
from polyphi.runtime.installation import CHECKOUT, from_checkout, pip_install


def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, object]) -> None:
    """Make this an installed copy, with what pip records about its origin."""
    info = folder / "polyphi-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polyphi\nVersion: 0.2.0\n")
    if origin:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(installation, "CHECKOUT", folder)


def test_a_checkout_is_installed_again() -> None:
    assert pip_install("serve", "train") == f'pip install --editable "{CHECKOUT}[serve,train]"'


@pytest.mark.parametrize("name", ["a checkout", "polyphi-0.2.0-py3-none-any.whl"])
def test_an_installed_copy_names_its_origin(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = tmp_path / name
    origin.touch()
    recorded(tmp_path, monkeypatch, {"url": origin.as_uri(), "dir_info": {}})
    assert pip_install("train") == f'pip install "{origin}[train]"'
    origin.unlink()
    assert pip_install("train") == from_checkout("train")


@pytest.mark.parametrize("origin", [{}, {"url": "https://example.org/polyphi.git"}])
def test_without_a_known_origin_a_checkout_is_named(
    origin: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tmp_path, monkeypatch, origin)
    assert pip_install("train") == 'pip install ".[train]" in a checkout of polyphi'

"""`nano`: a folder of that name, or else the model in the package polyphi-nano; never the Hub."""

from pathlib import Path

import pytest

from polyphi.hub import box, download, pull


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another current folder, no package, and a Hub that must not be asked."""

    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(box, "PACKAGE", "polyphi_nano_of_a_test")
    monkeypatch.setattr(download, "locate", ask)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, filled: bool = True) -> Path:
    model = folder / box.PACKAGE / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    if filled:
        (model / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(folder)
    return model


@pytest.mark.parametrize("quant", [None, "int4"])
def test_a_folder_comes_before_the_package(
    quant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = install(tmp_path / "site", monkeypatch)
    assert pull.find("nano", quant) == model
    own = tmp_path / "nano"
    own.mkdir()
    assert pull.find("nano", quant).resolve() == own


def test_without_the_package_its_installation_is_named() -> None:
    with pytest.raises(ValueError, match=r"found neither: `pip install \./models/nano`"):
        pull.find("nano")


def test_an_empty_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch, filled=False)
    with pytest.raises(ValueError, match=r"found none: .*`make box`.*`pip install ./models/nano`"):
        pull.find("nano")

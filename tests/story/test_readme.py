"""The README's commands and its Python, on a micro run instead of the nano run."""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from films import film
from PIL import Image as Picture

from polyphi.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text()
ELSEWHERE = {
    "polyphi chat runs/nano/model": "a conversation (tests/cli)",
    "polyphi chat runs/nano/model --quant int4": "a conversation",
    "polyphi curate examples/curate_pages.py --out runs/mine --workers 2": "own pages (tests/curate)",
    "polyphi serve runs/nano": "runs until it is stopped (tests/serve)",
    "polyphi claims --out runs/nano": "minutes (tests/recipe)",
    "polyphi eval runs/nano --suite mini": "a minute (tests/eval)",
}
PUBLIC = ("microsoft/", "MODEL", "http://", " /data", "runs/calls", "raw")
"""What a command needs that isn't here: public weights, a server, public data, own data."""


def blocks(language: str) -> list[str]:
    return [
        text for name, text in re.findall(r"(?ms)^```(\w*)\n(.*?)^```", README) if name == language
    ]


def commands() -> list[str]:
    lines = [line.split(" # ")[0].strip() for line in "".join(blocks("")).splitlines()]
    return [line for line in lines if line.startswith("polyphi ")]


@pytest.fixture(scope="module")
def folder(micro_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(micro_run, folder / "runs" / "nano", ignore=shutil.ignore_patterns(".locks"))
    Picture.fromarray(np.full((28, 28), 200, np.uint8)).save(folder / "digit.png")
    wave = np.sin(np.arange(8000) / 9).astype(np.float32)
    (folder / "talks").mkdir()
    for name in ("clip.wav", "talks/one.wav"):
        soundfile.write(folder / name, wave, 16000)
    (folder / "walk.mp4").write_bytes(film(8))
    return folder


@pytest.mark.parametrize(
    "command",
    [c for c in commands() if c not in ELSEWHERE and not any(word in c for word in PUBLIC)],
)
def test_a_command_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    arguments = shlex.split(command)[1:]
    if arguments[0] in ("reproduce", "train", "curate"):
        arguments = [*(a if a != "nano" else "micro" for a in arguments)]
        arguments += ["--size", "micro"] if arguments[0] != "reproduce" else []
    main(arguments)


def test_what_runs_elsewhere_is_in_the_readme() -> None:
    assert set(ELSEWHERE) <= set(commands())


def test_the_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})

"""The README's commands and its Python, on a micro run instead of the public weights, and on the nano model.

`python tests/release/readme.py` runs all of them as a newcomer does.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image as Picture

import polyphi
from polyphi.cli import main
from polyphi.serve.admission.settings import Settings
from tests.fixtures.command_line import piped

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PUBLIC = "microsoft/Phi-4-multimodal-instruct"
ELSEWHERE = {
    "polyphi doctor": "inspects the machine (tests/core/doctor)",
    f"polyphi pull {PUBLIC} --quant int4": "downloads (tests/core/cli)",
    f"polyphi serve {PUBLIC} --quant int4": "runs until it is stopped (tests/core/serve)",
}
MISSING = ("digits/",)
"""What a command needs that isn't here: images of another package (tests/test_finetune_page.py)."""


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
    (folder / "models").symlink_to(ROOT / "models")
    Picture.fromarray(np.full((28, 28), 200, np.uint8)).save(folder / "photo.jpg")
    soundfile.write(folder / "clip.wav", np.sin(np.arange(8000) / 9).astype(np.float32), 16000)
    return folder


@pytest.fixture(autouse=True)
def _nano_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "models" / "nano")


@pytest.mark.parametrize(
    "command",
    [c for c in commands() if c not in ELSEWHERE and not any(word in c for word in MISSING)],
)
def test_a_command_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with piped(b""):
        main(shlex.split(command.replace(PUBLIC, "runs/nano/model"))[1:])


def test_what_runs_elsewhere_is_in_the_readme() -> None:
    assert set(ELSEWHERE) <= set(commands())


def test_the_client_and_the_python_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One block asks a server by OpenAI's client, the other asks the model."""
    from tests.fixtures.servers import serving

    monkeypatch.chdir(folder)
    client, python = blocks("python")
    settings = Settings(PUBLIC.split("/")[1])
    with serving(polyphi.load("runs/nano/model").engine, settings) as server:
        assert "http://127.0.0.1:8000/v1" in client
        code = client.replace("http://127.0.0.1:8000", server.url)
        exec(compile(code, "README.md", "exec"), {})
    exec(compile(python, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("\n") >= 3, "two answers and a transcript, of any text"


def test_the_recording_is_an_animation_of_a_bearable_size() -> None:
    recording = Path(__file__).parents[2] / "docs" / "terminal.svg"
    text = recording.read_text()
    assert len(text) < 300_000 and "@keyframes" in text
    assert not re.search(r"<script|@import|<image|(href|src)=\"[^#]|url\((?!#)", text), "it loads"

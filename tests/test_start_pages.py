"""The Python of docs/start.md and docs/howto.md runs as it stands, with a tiny random model behind the server."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import polyphi
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from tests.fixtures.pdfs import text_pdf
from tests.fixtures.servers import Running, serving, tiny_engine

DOCS = Path(__file__).parents[1] / "docs"
START, HOWTO = ((DOCS / name).read_text(encoding="utf-8") for name in ("start.md", "howto.md"))


@pytest.fixture
def server(
    tiny_config: ModelConfig,
    tokenizer: Tokenizer,
) -> Iterator[Running]:
    with serving(
        tiny_engine(tiny_config, tokenizer), Settings("Phi-4-multimodal-instruct", max_tokens=300)
    ) as one:
        yield one


def run(page: str, running: Running) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in re.findall(r"(?s)```python\n(.*?)```", page):
        exec(block.replace("http://127.0.0.1:8000", running.url), names)
    return names


def test_the_start_page_asks_about_the_picture_that_it_draws(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"(?m)^python -c .*$", START)
    subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)
    with Image.open("photo.jpg") as photo:
        assert photo.format == "JPEG"
        photo.resize((64, 24)).save("photo.jpg")  # the tiny model has a short context
    soundfile.write("speech.wav", np.zeros(16000), 16000)
    answer = run(START, server)["answer"]
    assert answer.model_extra["adapter"] == "vision"


def test_the_how_to_page(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    phi = polyphi.Phi.__new__(polyphi.Phi)
    phi.engine = server.engine
    monkeypatch.setattr(polyphi, "load", lambda model, quant: phi)
    for name in ("cat.png", "dog.png"):
        Image.new("RGB", (60, 40), "red").save(name)
    Path("invoice.pdf").write_bytes(text_pdf("the total is 3"))
    names = run(HOWTO, server)
    assert names["summary"].image_tokens
    assert names["paid"].usage.prompt_tokens == names["summary"].prompt_tokens
    assert names["receipt"].keys() == {"shop", "paid"}
    assert names["call"].function.name == "weather"

"""`polyphi pull`, `polyphi cache`, and hub ids in other commands, against a local Hub."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import polyphi
from polyphi import cli
from polyphi.checkpoints import files
from polyphi.hub import cache, pull
from tests.fixtures import fake_hub, published
from tests.fixtures.command_line import Refused
from tests.fixtures.fake_hub import Hub

NAME = "owner/native"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write(tmp_path_factory.mktemp("published") / "native", "native")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[Hub]:
    with fake_hub.clean_hub(monkeypatch, tmp_path) as server:
        server.add(NAME, folder)
        yield server


def test_pull_list_chat_remove(
    server: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["pull", NAME, "--quant", "int4"])
    output, lines = capsys.readouterr()
    assert f"polyphi chat {NAME} --quant int4" in output
    assert f"polyphi cache remove {NAME}" in output
    assert "downloading" in lines
    assert "quantizing" in lines
    cli.main(["cache", "list", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [NAME, f"{NAME}:int4"]
    cli.main(["cache", "remove", NAME])
    assert NAME in capsys.readouterr().out
    fake_hub.connect(monkeypatch, "http://127.0.0.1:9")
    cli.main(["chat", NAME, "say red", "--quant", "int4", "--max-tokens", "2"])
    assert rows[1]["path"] in capsys.readouterr().err
    cli.main(["cache", "list"])
    output = capsys.readouterr().out
    assert f"{NAME}:int4" in output
    assert rows[1]["revision"][: cache.SHORT] in output
    cli.main(["cache", "remove", f"{NAME}:int4"])
    cli.main(["cache", "list"])
    assert "no models are stored" in capsys.readouterr().out


@pytest.mark.long
def test_transcribe_downloads_at_the_first_use(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", [0.01, -0.01] * 4000, 16000)
    cli.main(["transcribe", f"{NAME}@main", str(tmp_path / "a.wav"), "--quant", "int8"])
    assert "quantizing" in capsys.readouterr().err
    assert {row.quant for row in cache.entries()} == {None, "int8"}


def test_stages_of_a_first_load(server: Hub) -> None:
    stages: list[str] = []
    phi = polyphi.load(NAME, quant="int4", progress=lambda stage, share: stages.append(stage))
    assert phi.model.quant == "int4"
    order = ["checkpoint", "verification", "download", "quantization", "tokenizer", "weights"]
    assert list(dict.fromkeys(stages)) == [*order, "engine"]
    stages.clear()
    polyphi.load(NAME, quant="int4", progress=lambda stage, share: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["checkpoint", "tokenizer", "weights", "engine"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pull", "owner/absent"], "no such model"),
        (["pull", "absent"], "owner/name"),
        (["pull", "."], "polyphi export"),
        (["pull", NAME, "--revision", "v9"], "'v9'"),
        (["pull", f"{NAME}@v8", "--revision", "v9"], "'v8'"),
        (["cache", "remove", NAME], NAME),
        (["chat", "owner/absent", "hello"], "owner/absent"),
        (["chat", "runs/nano", "hello"], "hf:runs/nano"),
        (["transcribe", "runs/nano", "a.wav"], "hf:runs/nano"),
        (["export", "runs/nano", "--out", "b"], "hf:runs/nano"),
        (["pull", "runs/nano"], "no such model"),
    ],
)
def test_errors_are_one_line(
    server: Hub,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", [0.0] * 8000, 16000)
    assert says in refused(*arguments)


def test_a_mistyped_path_is_not_pulled(
    server: Hub,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: Refused,
) -> None:
    server.add("models/mini", folder)
    monkeypatch.chdir(tmp_path)
    cli.main(["pull", "models/mini"])  # there is no folder here: the argument of `pull` is a hub id
    cli.main(["cache", "remove", "models/mini"])
    (tmp_path / "models" / "mine").mkdir(parents=True)
    capsys.readouterr()
    assert "did you mean models/mine?" in refused("pull", "models/mini")
    cli.main(["pull", "hf:models/mini"])
    assert [row.name for row in cache.entries()] == ["models/mini"]


def test_pull_says_what_it_verified(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["pull", NAME, "--quant", "int4"])
    stored = pull.find(NAME, "int4")
    capsys.readouterr()
    cli.main(["pull", NAME, "--quant", "int4", "--verify"])
    count = len([p for p in stored.rglob("*") if p.is_file()]) - 1  # but the record itself
    assert f"verified {count} files" in capsys.readouterr().err
    weights = stored / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cli.main(["pull", NAME, "--quant", "int4", "--verify"])
    assert "quantized again" in capsys.readouterr().err
    assert weights.read_bytes() == content


def test_a_full_disk_is_one_line_with_its_cure(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    usage = type(shutil.disk_usage("/"))(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SystemExit) as stop:
        cli.main(["pull", NAME])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 1
    assert "HF_HOME" in line
    assert "free some space and run the same command again" in line


@pytest.mark.long
def test_an_interrupt_ends_a_download_at_once(server: Hub, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    (large / "config.json").write_text('{"model_type": "phi3"}')
    save_file({"t": torch.zeros(10_000_000)}, large / "model.safetensors")
    server.add("owner/large", large)
    server.rate = 1_000_000
    hub = {"HF_ENDPOINT": server.address, "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    process = subprocess.Popen(
        [sys.executable, "-m", "polyphi.cli", "pull", "owner/large"],
        env=os.environ | hub,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not server.sent["model.safetensors"]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, lines = process.communicate()
    assert process.returncode == 130
    assert "again to resume" in lines
    assert "Traceback" not in lines
    assert time.monotonic() - start < 20  # the whole download takes 40 s


@pytest.mark.long
def test_a_killed_quantization_leaves_nothing(server: Hub, tmp_path: Path) -> None:
    """A process is killed after it wrote the first file; the next one begins again and removes what is left."""
    source = pull.find(NAME)
    code = (
        "import os, sys; from polyphi.checkpoints import write; from polyphi.hub import pull\n"
        "save = write._save_aligned\n"
        "def killed(tensors, path): save(tensors, path); os.kill(os.getpid(), 9)\n"
        "write._save_aligned = killed; pull.find(sys.argv[1], 'int4')"
    )
    hub = {"HF_ENDPOINT": server.address, "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    process = subprocess.run(
        [sys.executable, "-c", code, NAME], env=os.environ | hub, check=False, timeout=300
    )
    assert process.returncode == -signal.SIGKILL
    (commit,) = cache.models_folder().glob(f"*/{source.name}")
    assert {path.name.rpartition(".")[2] for path in commit.iterdir()} == {"partial"}
    assert [row.quant for row in cache.entries()] == [None]
    target = pull.find(NAME, "int4")
    assert list(commit.iterdir()) == [target]
    assert files.fault(target) is None

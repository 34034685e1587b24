"""Verification on request: one flipped bit is noticed, without a connection, and repaired with one."""

import shutil
import subprocess
from pathlib import Path

import pytest

import polyphi
from polyphi.hub import hashes, pull
from polyphi.runtime.files import sha256
from tests.fixtures import fake_hub
from tests.fixtures.fake_hub import Hub

NAME = "owner/mini"
CLOSED = "http://127.0.0.1:9"


def flip_bit(path: Path) -> bytes:
    """Change a bit near the end of a file in place; returns the content before."""
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    return content


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_flipped_bit_of_a_download_is_noticed_offline(
    server: Hub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = pull.pull(NAME)
    stages: list[tuple[str, float | None]] = []
    polyphi.load(NAME, verify=True, progress=lambda *stage: stages.append(stage))
    assert ("verification", 1.0) in stages
    content = flip_bit(stored / name)
    fake_hub.connect(monkeypatch, CLOSED)
    for call in (lambda: polyphi.load(NAME, verify=True), lambda: pull.pull(NAME, verify=True)):
        with pytest.raises(ValueError, match=rf"{name} .* --verify"):
            call()
    fake_hub.connect(monkeypatch, server.address)
    assert pull.pull(NAME, verify=True) == stored
    assert (stored / name).read_bytes() == content
    assert polyphi.load(NAME, verify=True) is not None


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", hashes.SUMS])
def test_a_flipped_bit_of_a_quantized_model_is_noticed_and_repaired(server: Hub, name: str) -> None:
    stored = pull.pull(NAME, quant="int4")
    polyphi.load(NAME, quant="int4", verify=True)
    content = flip_bit(stored / name)
    if name == "model.safetensors":
        assert polyphi.load(NAME, quant="int4") is not None  # as documented: only headers are read
    with pytest.raises(ValueError, match=str(stored)):
        polyphi.load(NAME, quant="int4", verify=True)
    assert pull.pull(NAME, quant="int4", verify=True) == stored
    assert (stored / name).read_bytes() == content
    written = (stored / name).stat().st_mtime_ns
    assert pull.pull(NAME, quant="int4", verify=True) == stored
    assert (stored / name).stat().st_mtime_ns == written


def test_other_tools_read_the_hashes_of_a_quantized_model(server: Hub, tmp_path: Path) -> None:
    """Also of a copy of its folder, which `load` verifies, too."""
    copy = tmp_path / "copy"
    shutil.copytree(pull.pull(NAME, quant="int4"), copy)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", hashes.SUMS], cwd=copy, check=True)
    assert polyphi.load(copy, verify=True) is not None


def test_what_no_hash_is_recorded_for_is_told(server: Hub, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"recorded .*{folder}"):
        polyphi.load(folder, verify=True)
    full, int4 = pull.pull(NAME), pull.pull(NAME, quant="int4")
    (full / "own").symlink_to(folder)
    (int4 / "notes.txt").write_text("mine")
    for quant, name in ((None, "own"), ("int4", "notes.txt")):
        with pytest.raises(ValueError, match=f"recorded .*{name}"):
            polyphi.load(NAME, quant=quant, verify=True)


def test_a_missing_file_is_damage(server: Hub) -> None:
    full, int4 = pull.pull(NAME), pull.pull(NAME, quant="int4")
    (full / "tokenizer.json").resolve().unlink()
    (int4 / "tokenizer.json").unlink()
    for quant in (None, "int4"):
        with pytest.raises(ValueError, match=r"tokenizer.json"):
            polyphi.load(NAME, quant=quant, tokenizer=None, verify=True)
        stored = pull.pull(NAME, quant=quant, verify=True)
        assert sha256(stored / "tokenizer.json")


def test_a_quantized_model_without_hashes_is_quantized_again(server: Hub) -> None:
    """Versions of polyphi before SHA256SUMS wrote none."""
    stored = pull.pull(NAME, quant="int4")
    (stored / hashes.SUMS).unlink()
    assert pull.find(NAME, "int4") == stored
    with pytest.raises(ValueError, match="recorded"):
        polyphi.load(NAME, quant="int4", verify=True)
    pull.pull(NAME, quant="int4", verify=True)
    assert polyphi.load(NAME, quant="int4", verify=True) is not None

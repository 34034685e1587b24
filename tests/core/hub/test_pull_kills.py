"""`pull` is killed at random moments: the model that was stored before it, or the new one, is whole, and nothing else
in the caches changes."""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from polyphi.checkpoints import files
from polyphi.checkpoints.names import FORMAT
from polyphi.hub import cache, download, hashes, pull
from polyphi.runtime.files import sha256
from tests.fixtures import fake_hub, forked, published
from tests.fixtures.fake_hub import Hub
from tests.fixtures.variants import few

NAME, OTHER = "owner/mini", "owner/other"
PULL = """
import os, sys
from huggingface_hub import constants
name, address, constants.HF_HUB_CACHE, verify = sys.argv[1:]
constants.ENDPOINT = address
constants.HUGGINGFACE_CO_URL_TEMPLATE = address + "/{repo_id}/resolve/{revision}/{filename}"
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
from polyphi.hub import pull
pull.pull(name, quant="int4", verify=bool(verify))
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """With two models that are stored already, and a file of a user in each cache."""
    with fake_hub.clean_hub(monkeypatch, tmp_path) as server:
        folder = published.write(tmp_path / "published" / "mini", "mini")
        revise(folder, 0)
        server.add(NAME, folder)
        server.add(OTHER, shutil.copytree(folder, tmp_path / "published" / "other"))
        for name in (NAME, OTHER):
            pull.pull(name, quant="int4")
        for cache_name in ("cache", "hub"):
            (tmp_path / cache_name / "thesis.txt").write_text("1,000 lines")
        server.rate = 20_000_000
        yield server


def contents(root: Path, *, pulled: bool) -> dict[str, str]:
    """The hashes of what is in both caches of the model that is `pulled`, or of all else."""
    return {
        str(path): sha256(path)
        for cache_name in ("cache", "hub")
        for path in sorted((root / cache_name).rglob("*"))
        if path.is_file() and ("--mini" in str(path)) == pulled and path.suffix != ".lock"
    }


class Kills:
    """Processes that pull NAME; each is killed at a random moment of the time that a whole pull takes."""

    def __init__(self, server: Hub, root: Path, verify: bool) -> None:
        self.arguments = NAME, server.address, constants.HF_HUB_CACHE, "verify" if verify else ""
        self.root, self.others = root, contents(root, pulled=False)
        self.generator, self.seconds = random.Random(0), 2.0
        self.killed = self.midway = 0
        forked.start("pass").join()  # what all are forked from takes seconds to start

    def one(self) -> None:
        before = contents(self.root, pulled=True)
        start = time.monotonic()
        environment = {"POLYPHI_CACHE": str(self.root / "cache")}
        process = forked.start(PULL, *self.arguments, environment=environment)
        process.join(self.generator.uniform(0, self.seconds))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            self.seconds = time.monotonic() - start
        else:
            self.killed += 1
            self.midway += contents(self.root, pulled=True) != before
        assert contents(self.root, pulled=False) == self.others


def revise(folder: Path, number: int) -> str:
    """Another content of the weights and of a text, of the same size; returns the commit."""
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-2] + bytes([number, 0]))  # the last number of 16 bits
    (folder / "added_tokens.json").write_text(f'{{"<|version_{number:03d}|>": 1}}')
    return fake_hub.commit(fake_hub.folder_files(folder))


def quantized(commit: str) -> Path:
    return cache.quantized_folder(NAME, commit, "int4", FORMAT)


def stored(commit: str | None) -> Path:
    assert commit is not None
    folder = download.stored(NAME, commit)
    assert folder is not None
    return folder


@pytest.mark.parametrize("count", few([2, 50], 1))
def test_a_killed_pull_leaves_the_old_or_the_new_model(
    server: Hub, tmp_path: Path, count: int
) -> None:
    """Each pull has a new revision to fetch and to quantize."""
    full = int4 = cache.commit_of(NAME, "main")
    kills = Kills(server, tmp_path, verify=False)
    for number in range(1, count + 1):
        new = revise(tmp_path / "published" / "mini", number)
        kills.one()
        assert cache.commit_of(NAME, "main") in (full, new)
        full = cache.commit_of(NAME, "main")
        if full == new and files.fault(quantized(new)) is None:
            int4 = new
        hashes.check(stored(full))
        hashes.check(quantized(int4))
    print(f"{kills.killed} of {count} killed, {kills.midway} after a change in the caches")
    assert kills.midway or count < 50
    hashes.check(pull.pull(NAME, quant="int4"))
    hashes.check(pull.pull(NAME))
    assert not list(cache.models_folder().glob("owner--mini/*/.*"))


@pytest.mark.parametrize("count", few([2, 50], 1))
def test_a_killed_repair_leaves_what_it_had_not_repaired(
    server: Hub, tmp_path: Path, count: int
) -> None:
    commit = cache.commit_of(NAME, "main")
    originals = contents(tmp_path, pulled=True)
    weights = [folder / "model.safetensors" for folder in (stored(commit), quantized(commit))]
    bits = {path.resolve(): path.read_bytes() for path in weights}
    kills = Kills(server, tmp_path, verify=True)
    for _ in range(count):
        for path, content in bits.items():
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        damaged = contents(tmp_path, pulled=True)
        kills.one()
        assert originals.keys() <= (result := contents(tmp_path, pulled=True)).keys()
        assert all(result[path] in (originals[path], damaged[path]) for path in originals)
    print(f"{kills.killed} of {count} killed, {kills.midway} after a change in the caches")
    assert kills.midway or count < 50
    pull.pull(NAME, quant="int4", verify=True)
    pull.pull(NAME, verify=True)
    assert contents(tmp_path, pulled=True) == originals

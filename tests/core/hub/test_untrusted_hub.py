"""A Hub that isn't trusted: what it lists never fetches or deletes a file outside the model's folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from polyphi.checkpoints import files
from polyphi.checkpoints.read import load_checkpoint
from polyphi.hub import download, pull, removal
from polyphi.hub.location import locate
from polyphi.runtime.files import sha256
from tests.fixtures import fake_hub, published
from tests.fixtures.fake_hub import Hub

NAME = "owner/mini"
WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, Any]], None]


def contents(root: Path) -> dict[str, str]:
    """The hashes of all files below a folder, but of locks."""
    return {
        str(path.relative_to(root)): sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def adding(name: Any, **fields: Any) -> Change:
    """The listing with another file."""
    file = {"rfilename": name, "size": 1, "blobId": "0" * 40, **fields}
    return lambda answer: answer["siblings"].append(file)


def setting(**values: Any) -> Change:
    """The listing with other values of its own."""
    return lambda answer: answer.update(values)


def changing(key: str, value: Any) -> Change:
    """The listing with another value of each file."""

    def change(answer: dict[str, Any]) -> None:
        for sibling in answer["siblings"]:
            sibling[key] = value

    return change


OUTSIDE = ("../../../../thesis.json", "x-lora/../../../../../thesis.json", "..", ".", "", 5, None)
INVALID = ("a//b.json", "./a.json", "a\\b.json", "a\nb.json", "\x1b[2J.json")


@pytest.mark.parametrize("has_download", [True, False])
def test_names_outside_the_folder_are_refused_before_any_use(
    server: Hub, tmp_path: Path, has_download: bool
) -> None:
    """The file outside has another size than the Hub lists, as a damaged one of an earlier download."""
    thesis = tmp_path / "thesis.json"
    thesis.write_text("1,000 lines")
    if has_download:
        pull.pull(NAME)
    before = contents(tmp_path)
    server.sent.clear()
    for name in (*OUTSIDE, *INVALID, str(thesis)):
        server.listed = adding(name)
        with pytest.raises(ValueError, match=r"http://127.0.0.1:\d+ .*trusted") as error:
            pull.pull(NAME)
        assert str(error.value).isprintable()
        assert contents(tmp_path) == before
    assert not server.sent


def test_commits_hashes_and_sizes_of_another_form_are_refused(server: Hub, tmp_path: Path) -> None:
    for change in (
        *(changing("blobId", name) for name in ("../../../../thesis.json", 7)),
        *(changing("size", size) for size in ("1", -1)),
        changing("lfs", {"size": 1, "sha256": "/etc/passwd", "pointerSize": 1}),
        changing("lfs", 7),
        *(setting(sha=sha) for sha in ("../../../elsewhere", "main", None)),
        setting(siblings=[{}]),
    ):
        server.listed = change
        with pytest.raises(ValueError, match="trusted"):
            pull.pull(NAME)
        assert not contents(tmp_path)
    assert not server.sent


def unlisted(answer: dict[str, Any]) -> None:
    """A listing of names alone, as a mirror may have."""
    for sibling in answer["siblings"]:
        for key in ("size", "blobId", "lfs"):
            sibling.pop(key, None)


def test_a_hub_that_lists_names_alone_is_used(server: Hub, folder: Path) -> None:
    server.listed = unlisted
    assert contents(pull.pull(NAME)) == {
        name: sha256(path) for name, path in fake_hub.folder_files(folder).items()
    }
    server.damaged = {WEIGHTS}
    removal.remove(NAME)
    with pytest.raises(OSError, match="arrived damaged"):
        pull.pull(NAME)


def test_only_hexadecimal_etags_name_files(server: Hub, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.json"
    thesis.write_text("1,000 lines")
    server.listed = unlisted
    for etag in ('"../../../../thesis.json"', 'W/"abc"', '"/etc/passwd"', '""', f'"{"g" * 40}"'):
        server.etags = {WEIGHTS: etag}
        with pytest.raises(ValueError, match=rf"trusted.* hash .* of {WEIGHTS}"):
            pull.pull(NAME)
    assert thesis.read_text() == "1,000 lines"
    assert WEIGHTS not in server.sent


def test_weights_without_a_size_are_not_fetched(server: Hub) -> None:
    server.listed = unlisted
    server.unsized = True
    with pytest.raises(ValueError, match=r"no size of \w+"):
        pull.pull(NAME)
    assert WEIGHTS not in server.sent


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_hub_that_sends_more_than_it_lists_is_stopped(
    server: Hub, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 0
    write = download._Partial.write

    def watched(self: Any, piece: bytes) -> int:
        nonlocal largest
        count = write(self, piece)
        largest = max(largest, self.tell())
        return count

    monkeypatch.setattr(download._Partial, "write", watched)
    server.surplus = {name: 20_000_000}
    size = (folder / name).stat().st_size
    with pytest.raises(OSError, match=f"{size:,} bytes .*{name}"):
        pull.pull(NAME)
    blobs = Path(constants.HF_HUB_CACHE, "models--owner--mini", "blobs")
    assert largest <= max(fake_hub.size(path) for path in fake_hub.folder_files(folder).values())
    assert not list(blobs.glob(f"{fake_hub.etag(name, folder / name)}*"))
    server.surplus.clear()
    assert load_checkpoint(locate(NAME)) is not None


def test_another_hash_of_a_commit_removes_nothing(server: Hub) -> None:
    """The listing of the same commit has other hashes: what is here stays until the Hub has sent what it lists."""
    stored = pull.pull(NAME)
    before = contents(stored)
    server.listed = changing("blobId", "0" * 40)
    with pytest.raises(OSError, match="arrived damaged"):
        pull.pull(NAME)
    assert contents(stored) == before
    assert download.stored(NAME) == stored


def test_a_link_to_another_folder_is_not_written_through(
    server: Hub, folder: Path, tmp_path: Path
) -> None:
    native = published.write(tmp_path / "published", "native")
    server.add("owner/native", native)
    stored = pull.pull("owner/native")
    shutil.rmtree(stored / "vision-lora")
    (tmp_path / "elsewhere").mkdir()
    (stored / "vision-lora").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"vision-lora .*link"):
        pull.pull("owner/native")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_index_names_files_of_its_folder(server: Hub, folder: Path, tmp_path: Path) -> None:
    """In a folder of this machine, and on a Hub."""
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    shutil.copy(folder / WEIGHTS, tmp_path / "other.safetensors")
    server.add("owner/indexed", model)
    outside = ("../other.safetensors", "/tmp/other.safetensors", "pytorch_model.bin")
    for name in (*outside, "a\\b.safetensors", "a\n.safetensors", 3, None):
        (model / files.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        server.add("owner/indexed", model)
        for read in (lambda: load_checkpoint(model), lambda: locate("owner/indexed")):
            with pytest.raises(ValueError, match="same folder"):
                read()
    assert not [sent for sent in server.sent if sent.endswith(".safetensors")]


@pytest.mark.parametrize("revision", ["../../../elsewhere", "/elsewhere", "a//b"])
def test_revisions_are_names(server: Hub, tmp_path: Path, revision: str) -> None:
    for call in (pull.pull, download.locate):
        with pytest.raises(ValueError, match="branch, tag or commit"):
            call(NAME, revision)
    assert not contents(tmp_path)

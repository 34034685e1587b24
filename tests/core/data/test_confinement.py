"""Rows name files in the folder of their file only, in every format, unless the user allows others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from PIL import Image as PIL

from polyphi.data import shards, sources, user_data
from polyphi.data.confinement import inside, medium


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image and audio, and the same beside it, which are private."""
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    for place in (tmp_path, folder):
        PIL.new("RGB", (8, 8), "red").save(place / "a.png")
        soundfile.write(place / "a.wav", np.zeros(800), 16_000)
    (folder / "link.png").symlink_to(tmp_path / "a.png")
    (folder / "link.wav").symlink_to(tmp_path / "a.wav")
    return folder


def lines(name: str, row: Callable[[str], Any]) -> Callable[[Path, str], Path]:
    def write(folder: Path, path: str) -> Path:
        (folder / name).write_text(json.dumps(row(path)) + "\n")
        return folder / name

    return write


def imagefolder(folder: Path, path: str) -> Path:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": path, "text": "red"}))
    return folder


def table(name: str, head: str, prefix: str = "") -> Callable[[Path, str], Path]:
    def write(folder: Path, path: str) -> Path:
        (folder / name).write_text(f"{head}\n{prefix}{path}\tred\n")
        return folder / name

    return write


def chat(part: dict[str, Any]) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "red"}
    return {"messages": [{"role": "user", "content": [part]}, answer]}


TURNS = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "red"}]
READERS: dict[str, tuple[str, Callable[[Path, str], Path]]] = {
    "columns": ("a.png", lines("a.jsonl", lambda path: {"image": path, "answer": "red"})),
    "llava": ("a.png", lines("a.jsonl", lambda path: {"image": path, "conversations": TURNS})),
    "image_url": (
        "a.png",
        lines("a.jsonl", lambda path: chat({"type": "image_url", "image_url": {"url": path}})),
    ),
    "image": ("a.png", lines("a.jsonl", lambda path: chat({"type": "image", "image": path}))),
    "nemo": ("a.wav", lines("a.jsonl", lambda path: {"audio_filepath": path, "text": "red"})),
    "lhotse": (
        "a.wav",
        lines(
            "a.jsonl",
            lambda path: {
                "recording": {"sources": [{"source": path}]},
                "supervisions": [{"text": "red"}],
            },
        ),
    ),
    "csv": ("a.png", table("a.tsv", "image\tanswer")),
    "commonvoice": ("a.wav", table("train.tsv", "path\tsentence", "../")),
    "imagefolder": ("a.png", imagefolder),
}


@pytest.mark.parametrize("reader", READERS)
def test_rows_name_files_of_their_folder_only(reader: str, folder: Path) -> None:
    name, write = READERS[reader]
    link = name.replace("a.", "link.")
    relative = reader == "commonvoice"  # whose paths are below clips
    for good in (name,) if relative else (name, str(folder / name)):
        assert len(list(user_data.read(write(folder, good)))) == 1
    outside = [f"../{name}", link, "../../../../../../../../etc/passwd"]
    if not relative:
        outside += [str(folder.parent / name), f"file://{folder.parent / name}"]
        outside += [f"http://127.0.0.1:9/{name}", f"simplecache::file://{folder.parent / name}"]
    for bad in outside:
        with pytest.raises(ValueError, match=r", (line|row) \d: "):
            list(user_data.read(write(folder, bad)))
    for allowed in (f"../{name}", link):
        source = write(folder, allowed)
        with pytest.raises(ValueError, match="--allowed-media-path"):
            list(user_data.read(source))
        assert len(list(user_data.read(source, allowed_media_path=[str(folder.parent)]))) == 1


def test_links_of_a_folder_do_not_lead_out(tmp_path: Path) -> None:
    """An unpacked archive may have them."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (tmp_path / "private.txt").write_text("secret")
    (folder / "page.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(ValueError, match=r"page\.txt: .*--allowed-media-path"):
        sources.find(str(folder))
    assert len(sources.find(str(folder), allowed_media_path=[str(folder.parent)])) == 1
    assert len(sources.find(str(folder / "page.txt"))) == 1  # the user names it


def test_a_caption_beside_an_image_is_no_link(folder: Path) -> None:
    (folder.parent / "private.txt").write_text("secret")
    (folder / "a.txt").symlink_to(folder.parent / "private.txt")
    (folder / "link.png").unlink()
    (folder / "link.wav").unlink()
    with pytest.raises(ValueError, match=r"a\.txt; --allowed-media-path"):
        list(user_data.read(folder))
    (folder / "a.wav").unlink()
    (one,) = user_data.read(folder, allowed_media_path=[str(folder.parent)])
    assert one.answer == "secret"


def test_files_only(folder: Path) -> None:
    for name in ("/dev/zero", "clips", "none.png", "a\0b", "a" * 5000):
        with pytest.raises((ValueError, OSError)):
            inside(folder, name, ("/",))


@pytest.mark.parametrize(
    "name",
    [
        "https://x.org/b/1.png",
        "https://x.org/a/../b/1.png",
        "https://x.org/a/%2e%2e/b/1.png",
        "https://x.org/a\\..\\b.png",
        "https://x.org/ab/1.png",
        "https://x.org.evil/a/1.png",
        "http://x.org/a/1.png",
        "file:///etc/passwd",
        "simplecache::https://x.org/a/1.png",
        "local:///etc/passwd",
    ],
)
def test_addresses_of_rows(name: str) -> None:
    for root in ("data", "https://x.org/a"):
        with pytest.raises(ValueError):
            medium(root, name, ("https://x.org/a", "file:///", "https://"))
    assert medium("data", "https://x.org/a/1.png", ("https://x.org/a/",)) == "https://x.org/a/1.png"
    assert medium("https://x.org/a", "b/1.png") == "https://x.org/a/b/1.png"


def test_addresses_that_are_allowed_are_read(folder: Path) -> None:
    fsspec.filesystem("memory").pipe("/allowed/a.png", (folder / "a.png").read_bytes())
    (folder / "a.jsonl").write_text(json.dumps({"image": "memory://allowed/a.png", "answer": "x"}))
    with pytest.raises(ValueError, match="--allowed-media-path"):
        list(user_data.read(folder / "a.jsonl"))
    assert (
        len(list(user_data.read(folder / "a.jsonl", allowed_media_path=["memory://allowed"]))) == 1
    )


def test_sources_at_addresses_of_this_machine(folder: Path) -> None:
    for address in ("file:///dev/zero", f"simplecache::file://{folder}/a.jsonl"):
        with pytest.raises(ValueError, match="s3"):
            sources.find(address)


def test_a_manifest_of_shards_names_files_of_its_folder(folder: Path) -> None:
    row = shards.document("1", "a page", "mine", "CC0")
    shards.write(folder.parent / "private", [row], pipeline="x")
    shards.write(folder / "train", [row], pipeline="x")
    manifest = folder / "train/manifest.json"
    assert [one.answer for one in user_data.read(folder / "train")] == ["a page"]
    private = str(folder.parent / "private/00000.parquet")
    (folder / "train/00000.parquet").unlink()
    for name in (private, "../../private/00000.parquet"):
        manifest.write_text(json.dumps({"shards": [{"file": name, "rows": 1}]}))
        with pytest.raises(ValueError, match="train"):
            list(user_data.read(folder / "train"))
    (folder / "train/00000.parquet").symlink_to(private)
    with pytest.raises(ValueError, match="--allowed-media-path"):
        list(user_data.read(folder / "train"))
    for text in ("{", '{"shards": [1]}', '{"shards": 1}', "[" * 100_000):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json"):
            list(sources.rows(*sources.find(str(folder / "train"), "shards")))


def test_a_corpus_is_built_again_with_what_is_allowed(folder: Path) -> None:
    source = lines("a.jsonl", lambda path: {"image": path, "answer": "red"})(folder, "../a.png")
    corpus, options = folder.parent / "corpus", {"report": lambda _: None}
    with pytest.raises(ValueError, match="--allowed-media-path"):
        user_data.build(corpus, [str(source)], **options)
    allowed = [str(folder.parent / "a.png")]
    for paths in ([str(folder.parent)], allowed):  # a folder, or a file
        assert (
            user_data.build(corpus, [str(source)], allowed_media_path=paths, **options)["rows"] == 1
        )
    with pytest.raises(ValueError, match="--allowed-media-path"):
        user_data.build(corpus, [str(source)], **options)

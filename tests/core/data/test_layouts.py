"""Folders as other tools lay them out: what is data, of which split, and what only describes it."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image as PIL

from polyphi.data import sources, user_data
from polyphi.data.row_counts import estimated_rows
from polyphi.data.sample import Sample
from polyphi.types.parts import Text
from polyphi.types.transcript import TRANSCRIBE


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    """Files in a folder, each picture with another colour."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def picture(shade: int = 0) -> bytes:
    out = io.BytesIO()
    PIL.new("RGB", (8, 8), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def clip() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(800), 16_000, format="FLAC")
    return out.getvalue()


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path | str, **options: Any) -> list[Sample]:
    return list(user_data.read(str(path), **options))


def answers(path: Path | str, **options: Any) -> list[str]:
    return sorted(sample.answer for sample in read(path, **options))


def formats(path: Path | str) -> set[str]:
    return {file.format for file in sources.find(str(path))}


def modalities(sample: Sample) -> list[str]:
    return [p.modality for p in sample.messages[0].parts if not isinstance(p, Text)]


def metadata(kind: str, *rows: dict[str, str]) -> bytes:
    if kind == "jsonl":
        return lines(*rows).encode()
    if kind == "csv":
        return "\n".join(["file_name,text", *(",".join(row.values()) for row in rows)]).encode()
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


# ------------------------------------------------------------------------------ metadata


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("split", ["", "train/"])
def test_a_folder_with_metadata_is_an_imagefolder(split: str, kind: str, tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"README.md": "# Cats"}
    for part in {split, split and "test/"}:
        files[f"{part}1.png"] = picture(1)
        files[f"{part}a/2.png"] = picture(2)
        named = [
            {"file_name": "1.png", "text": f"one of {part}"},
            {"file_name": "a/2.png", "text": f"two of {part}"},
        ]
        files[f"{part}metadata.{kind}"] = metadata(kind, *named)
    write(tmp_path, files)
    assert formats(tmp_path) == {"imagefolder"}
    assert answers(tmp_path) == [f"one of {split}", f"two of {split}"]
    assert all(modalities(one) == ["image"] for one in read(tmp_path))
    [file] = sources.find(str(tmp_path))
    assert estimated_rows(file) == 2


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.parquet": b"PAR1" * 4, "1.png": picture()})
    with pytest.raises(ValueError, match=r"metadata\.parquet: "):
        sources.find(str(tmp_path))


def test_metadata_above_the_splits(tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{s}/{n}.png", "text": f"{s} {n}"} for s in ("train", "test") for n in "ab"
    ]
    write(tmp_path, {"metadata.jsonl": lines(*rows), **{r["file_name"]: picture() for r in rows}})
    assert answers(tmp_path) == ["train a", "train b"]
    assert answers(tmp_path / "metadata.jsonl") == ["train a", "train b"]


def test_a_metadata_file_by_its_name(tmp_path: Path) -> None:
    row = {"file_name": "1.png", "text": "a cat"}
    write(tmp_path, {"metadata.jsonl": lines(row), "1.png": picture()})
    (one,) = read(tmp_path / "metadata.jsonl")
    assert (modalities(one), one.answer) == (["image"], "a cat")


def test_a_file_name_without_media_is_an_unreadable_row(tmp_path: Path) -> None:
    rows = [
        {"file_name": "1.png", "text": "good"},
        {"file_name": "notes.txt", "text": "no medium"},
        {"file_name": "2.png", "text": "not there"},
        {"text": "no name"},
        [1],
    ]
    write(tmp_path, {"metadata.jsonl": lines(*rows), "1.png": picture(), "notes.txt": "x"})
    bad: list[str] = []
    assert answers(tmp_path, bad=bad.append) == ["good"]
    assert [
        name in text
        for name, text in zip(("notes.txt", "2.png", "file_name", "list"), bad, strict=True)
    ] == [*[True] * 4]


@pytest.mark.parametrize("column", ["img", "file_name", "audio_filepath"])
def test_a_document_beside_a_column_of_media_is_an_unreadable_row(
    column: str, tmp_path: Path
) -> None:
    name = "1.flac" if "audio" in column else "1.png"
    write(
        tmp_path,
        {
            "a.csv": f"{column},text\n{name},a cat\n",
            name: clip() if "audio" in column else picture(),
        },
    )
    with pytest.raises(ValueError, match=f"`{column}` isn't read"):
        read(tmp_path / "a.csv")
    medium = "audio" if "audio" in column else "image"
    (one,) = read(tmp_path / "a.csv", columns={medium: column})
    assert modalities(one) == [medium]
    (one,) = read(tmp_path / "a.csv", columns={medium: "none"})
    assert one.messages[0].role == "document"


# ------------------------------------------------------------------------------ classes


CLASSES = {
    "cat/1.png": picture(1),
    "dog/2.png": picture(2),
    "fire_truck/3.png": picture(3),
}


@pytest.mark.parametrize("beside", ["README.md", "LICENSE.txt", "labels.txt", "class_to_idx.json"])
def test_class_folders_beside_a_description(beside: str, tmp_path: Path) -> None:
    write(tmp_path, {**CLASSES, beside: "{}"})
    assert formats(tmp_path) == {"classes"}
    assert answers(tmp_path) == ["cat", "dog", "fire truck"]


@pytest.mark.parametrize("above", ["", "data/"])
def test_the_class_is_the_folder_of_the_image(above: str, tmp_path: Path) -> None:
    files = {
        f"{above}{split}/{name}": data
        for split in ("train", "val")
        for name, data in CLASSES.items()
    }
    write(tmp_path, {**files, f"{above}train/animals/horse/4.png": picture(4)})
    assert answers(tmp_path) == ["cat", "dog", "fire truck", "horse"]
    assert answers(tmp_path / f"{above}val") == ["cat", "dog", "fire truck"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path, {"car/1.png": picture(), "train/2.png": picture(1)})
    assert answers(tmp_path) == ["car", "train"]


@pytest.mark.parametrize("names", [["train/1.png", "val/2.png"], ["images/1.png"], ["1.png"]])
def test_images_without_classes_or_texts_are_refused(names: list[str], tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(names, picture()))
    with pytest.raises(ValueError, match=rf"found {len(names)} images? without"):
        read(tmp_path)


def test_class_folders_at_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "pictures", dict(CLASSES))
    monkeypatch.chdir(tmp_path)
    assert answers("pictures") == ["cat", "dog", "fire truck"]


# ------------------------------------------------------------------------------ pairs


@pytest.mark.parametrize(("ending", "medium"), [("png", picture()), ("flac", clip())])
def test_a_medium_and_a_text_of_one_name(ending: str, medium: bytes, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "README.md": "# Cats",
            **{f"Mr. {n}.{ending}": medium for n in "12"},
            **{f"Mr. {n}.txt": f"{n}" for n in "12"},
        },
    )
    assert formats(tmp_path) == {"pairs"}
    first, second = read(tmp_path)
    assert (first.answer, second.answer) == ("1", "2")
    assert modalities(first) == modalities(second) == [{"png": "image", "flac": "audio"}[ending]]
    [file] = sources.find(str(tmp_path))
    assert estimated_rows(file) == 2


def test_pairs_with_columns_in_splits(tmp_path: Path) -> None:
    """As img2dataset writes them: a folder for each shard, beside it a table of what it fetched."""
    about = json.dumps(
        {"caption": "a cat", "url": "https://example.org/1.png", "status": "success"}
    )
    files: dict[str, bytes | str] = {}
    for shard in ("train/00000", "train/00001", "val/00000"):
        files |= {f"{shard}/1.png": picture(), f"{shard}/1.txt": shard, f"{shard}/1.json": about}
        files[f"{shard}.parquet"] = metadata("parquet", {"url": "https://example.org/1.png"})
    write(tmp_path, files)
    assert answers(tmp_path) == ["train/00000", "train/00001"]


def test_what_is_no_pair_is_an_unreadable_row(tmp_path: Path) -> None:
    names = {f"{n}.png": picture() for n in range(4)} | {f"{n}.txt": f"{n}" for n in (0, 1, 2, 5)}
    write(tmp_path, dict(names))
    bad: list[str] = []
    assert answers(tmp_path, bad=bad.append) == ["0", "1", "2"]
    assert len(bad) == 2 and "3.png" in bad[0] and "5.txt" in bad[1]


def test_texts_that_belong_to_no_recording_are_refused(tmp_path: Path) -> None:
    """Transcripts in a parallel folder were documents."""
    write(
        tmp_path,
        {f"wav/{n}.flac": clip() for n in range(3)} | {f"txt/{n}.txt": "words" for n in range(3)},
    )
    with pytest.raises(ValueError, match="3 audio files"):
        read(tmp_path)
    assert len(read(tmp_path / "txt/*.txt")) == 3


def test_pages_with_pictures_stay_documents(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"index.md": "Begin here.", "guide/page.md": "Do this.", "images/1.png": picture()},
    )
    assert sorted(one.messages[0].text for one in read(tmp_path)) == ["Begin here.", "Do this."]


def test_a_description_beside_rows_is_no_document(tmp_path: Path) -> None:
    write(
        tmp_path, {"README.md": "# Sums", "sums.jsonl": lines({"question": "1+1?", "answer": "2"})}
    )
    assert [one.messages[0].role for one in read(tmp_path)] == ["user"]


# ------------------------------------------------------------------------------ speech


def test_librispeech(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"SPEAKERS.TXT": "84 | F", "README.TXT": "About"}
    for split in ("train-clean-100", "dev-clean"):
        folder = f"{split}/84/121123"
        files[f"{folder}/84-121123.trans.txt"] = f"84-121123-0000 GO ON\n84-121123-0001 {split}\n"
        files |= {f"{folder}/84-121123-000{n}.flac": clip() for n in range(2)}
    write(tmp_path, files)
    assert formats(tmp_path) == {"librispeech"}
    first, second = read(tmp_path)
    assert (first.answer, second.answer) == ("GO ON", "train-clean-100")
    assert (modalities(first), first.messages[0].text) == (["audio"], TRANSCRIBE)
    (one, _) = read(tmp_path / "dev-clean/84/121123/84-121123.trans.txt")
    assert one.answer == "GO ON"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.jsonl", lines({"audio_filepath": "1.flac", "text": "go on"})),
        ("train.json", lines({"audio_filepath": "1.flac", "text": "go on"})),
        ("train.tsv", "path\tsentence\n../1.flac\tgo on\n"),
    ],
)
def test_a_manifest_with_a_byte_order_mark(name: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, {name: "\ufeff" + text, "1.flac": clip(), "clips/0.flac": clip()})
    (one,) = read(tmp_path / name)
    assert (modalities(one), one.answer) == (["audio"], "go on")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "What?", "output": "a cat", "image": "1.png"},
        {
            "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}],
            "audio": "1.flac",
        },
    ],
)
def test_media_of_a_form_that_has_none(row: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": lines(row), "1.png": picture(), "1.flac": clip()})
    medium = "image" if "image" in row else "audio"
    with pytest.raises(ValueError, match=f"`{medium}` isn't read"):
        read(tmp_path / "a.jsonl")
    (one,) = read(tmp_path / "a.jsonl", columns={medium: "none"})
    assert modalities(one) == []

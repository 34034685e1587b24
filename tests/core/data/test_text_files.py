"""Text files as other programs write them: separators, compression, encodings, media in another folder."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image as PIL

from polyphi.data import sources, user_data
from polyphi.data.row_counts import estimated_rows
from polyphi.data.shards import Shards

ROWS = [("What is 1+1?", "2"), ("Was ist größer, 2;3 oder 1,5?", "2;3, sicher")]


def table(separator: str) -> str:
    quote = '"{}"'.format
    return "\r\n".join(separator.join(map(quote, row)) for row in [("question", "answer"), *ROWS])


def read(path: Path, **options: Any) -> list[tuple[str, str]]:
    return [(s.messages[0].text, s.answer) for s in user_data.read(path, **options)]


def rows() -> str:
    return "".join(
        json.dumps({"question": q, "answer": a}, ensure_ascii=False) + "\n" for q, a in ROWS
    )


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_csv_is_that_of_its_names(separator: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(table(separator))
    assert read(tmp_path / "a.csv") == ROWS
    (tmp_path / "a.csv").write_text(f"sep={separator}\r\n{table(separator)}")
    assert read(tmp_path / "a.csv") == ROWS


def test_separators_in_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question;answer\n1,2,3,4?;5,6\n")
    (tmp_path / "b.csv").write_text('"question (a;b;c)",answer\n1;2;3;4?,5;6\n')
    (tmp_path / "c.tsv").write_text("question\tanswer\n1,2?\t3,4\n")
    assert read(tmp_path / "a.csv") == [("1,2,3,4?", "5,6")]
    assert read(tmp_path / "b.csv", columns={"question": "question (a;b;c)"}) == [
        ("1;2;3;4?", "5;6")
    ]
    assert read(tmp_path / "c.tsv") == [("1,2?", "3,4")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files(ending: str, name: str, tmp_path: Path) -> None:
    text = {
        "a.jsonl": rows(),
        "a.json": json.dumps([{"question": q, "answer": a} for q, a in ROWS]),
        "a.csv": table(";"),
        "a.txt": "A page.",
    }[name]
    packed = (
        gzip.compress(text.encode())
        if ending == ".gz"
        else pa.Codec("zstd").compress(text.encode(), asbytes=True)
    )
    (tmp_path / f"{name}{ending}").write_bytes(packed)
    [file] = sources.find(str(tmp_path))
    plain = tmp_path / name
    plain.write_text(text)
    assert (
        list(user_data.read(tmp_path / f"{name}{ending}"))
        and file.format == sources.find(str(plain))[0].format
    )
    assert [s.messages for s in user_data.read(file.path)] == [
        s.messages for s in user_data.read(plain)
    ]
    assert estimated_rows(file) == estimated_rows(sources.find(str(plain))[0])
    Path(file.path).write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=file.path):
        list(user_data.read(file.path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_texts_in_another_encoding(name: str, tmp_path: Path) -> None:
    content = {
        "a.jsonl": rows(),
        "a.csv": table(";"),
        "a.json": json.dumps([dict(question=q, answer=a) for q, a in ROWS], ensure_ascii=False),
    }[name]
    path = tmp_path / name
    path.write_bytes(content.encode("cp1252"))
    with pytest.raises(ValueError, match=r"0xf6.*--encoding"):
        read(path)
    with pytest.raises(ValueError, match=rf"{path}.*0xf6"):
        user_data.build(tmp_path / "corpus", [str(path)])
    [file] = sources.find(str(path), encoding="cp1252")
    assert str(file).endswith(", cp1252)")
    assert read(path, encoding="cp1252") == ROWS
    path.write_bytes(content.encode("utf-16"))
    assert read(path) == ROWS
    path.write_bytes(content.encode())
    with pytest.raises(ValueError, match=rf"{path}.*--encoding"):
        read(path, encoding="utf-16")
    with pytest.raises(ValueError, match="cp-1252x"):
        read(path, encoding="cp-1252x")


def test_a_document_in_another_encoding_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes("Größe".encode("cp1252"))
    (tmp_path / "2.txt").write_bytes("Größe".encode("utf-16"))
    bad: list[str] = []
    assert [s.messages[0].text for s in user_data.read(tmp_path, bad=bad.append)] == ["Größe"]
    assert len(bad) == 1 and "1.txt" in bad[0] and "--encoding" in bad[0]
    (tmp_path / "2.txt").unlink()
    assert [s.messages[0].text for s in user_data.read(tmp_path, encoding="cp1252")] == ["Größe"]


def test_media_in_another_folder(tmp_path: Path) -> None:
    for folder in ("rows", "pictures"):
        (tmp_path / folder).mkdir()
    PIL.new("RGB", (8, 8), "red").save(tmp_path / "pictures/1.png")
    PIL.new("RGB", (8, 8), "red").save(tmp_path / "private.png")
    file = tmp_path / "rows/a.csv"
    file.write_text("image,answer\n1.png,red\n")
    options = {"media_dir": str(tmp_path / "pictures")}
    (one,) = user_data.read(file, **options)
    assert one.answer == "red"
    with pytest.raises(ValueError, match=r"1\.png"):
        list(user_data.read(file))
    user_data.build(tmp_path / "corpus", [str(file)], report=lambda _: None, **options)
    assert [s.answer for s in Shards(tmp_path / "corpus/train")] == ["red"]
    file.write_text("image,answer\n../private.png,red\n")
    with pytest.raises(ValueError, match=r"private\.png"):
        list(user_data.read(file, **options))

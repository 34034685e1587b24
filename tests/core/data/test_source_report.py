"""What `polyphi sources` shows of data: formats, kinds of rows, rows, reasons, columns; never more than `--rows`."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image as Pillow

from polyphi.data import source_report
from polyphi.data.source_report import SourceReport, proposal
from polyphi.data.sources import find
from tests.fixtures.command_line import RunCommand


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with an image and a recording."""
    Pillow.new("RGB", (64, 48)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", [0.1] * 24_000, 16_000)
    return tmp_path


def inspect(path: str, **options: Any) -> SourceReport:
    return source_report.inspect(path, find(path), **options)


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_rows_are_shown_as_a_model_reads_them(media: Path) -> None:
    path = write(
        media / "rows.jsonl",
        [
            {"image": "a.png", "question": "What is it?", "answer": "black " * 100},
            {"audio": "a.wav", "answer": "a tone", "speaker": 7},
            {"question": "1+1?", "answer": "2", "rejected": "3"},
            {"text": "A document."},
        ],
    )
    report = inspect(path)
    assert (report.formats, report.rows, report.whole) == ({"rows": 1}, 4, True)
    assert report.kinds == {
        "image conversation": 1,
        "audio conversation": 1,
        "text conversation with a rejected answer": 1,
        "document": 1,
    }
    (first, image), (_, audio), (_, pair) = report.examples
    assert first.endswith("rows.jsonl, line 1")
    assert image[0] == ("user", "<image 64 x 48> What is it?")
    assert image[1][1].startswith("black black") and image[1][1].endswith("(600 characters)")
    assert audio[0][1].startswith("<audio 1.5 s> ") and pair[-1] == ("rejected", "3")
    assert report.unread == ["speaker"] and not report.columns and not report.unreadable


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"picture": "a.png", "words": "black"}, {"image": "picture", "answer": "words"}),
        ({"file_name": "a.png", "text": "black"}, {"image": "file_name", "answer": "text"}),
        (
            {"clip": "a.wav", "ask": "How long?", "Answer": "long"},
            {"audio": "clip", "answer": "Answer"},
        ),
        (
            {"instruction": "1+1?", "response": "2"},
            {"answer": "response", "question": "instruction"},
        ),
        (
            {"dialog": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": "dialog"},
        ),
    ],
)
def test_columns_are_proposed_with_which_rows_can_be_read(
    row: dict[str, Any], columns: Mapping[str, str], media: Path
) -> None:
    path = write(media / "rows.jsonl", [row] * 30)
    report = inspect(path)
    assert report.columns == columns and (report.readable, report.tried) == (20, 20)
    after = inspect(path, columns=report.columns)
    assert sum(after.kinds.values()) == 30 and not after.columns


def test_no_columns_are_proposed_that_read_no_more(media: Path) -> None:
    report = inspect(
        write(media / "rows.jsonl", [{"a": "x", "b": "y"}, {"text": "x", "label": "y"}])
    )
    assert not report.columns and report.kinds == {"document": 1}
    assert proposal({"a": "x", "b": "y"}, {}) == {}


def test_unreadable_rows_have_a_reason_and_the_first_place(
    media: Path, run_command: RunCommand
) -> None:
    path = write(media / "rows.jsonl", [{"question": "1+1?", "answer": "2"}] * 3)
    with open(path, "a") as file:
        file.write('{"image": "gone.png", "answer": "x"}\n[]\n[]\n')
    code, out, error = run_command("sources", path, str(media / "nowhere.csv"), "--language", "en")
    assert code == 1 and len(error.splitlines()) == 1 and "nowhere.csv" in error
    (one,) = [line for line in out.splitlines() if "gone.png" in line]
    (two,) = [line for line in out.splitlines() if "expected an object" in line]
    assert "1 row" in one and "line 4" in one and "2 rows" in two and "the first" in two
    assert "all 6 rows: 3 text conversations" in out


def test_few_rows_of_files_that_lie_apart_are_read(media: Path, run_command: RunCommand) -> None:
    for n in range(20):
        write(media / f"{n:02d}.jsonl", ({"question": f"{n}?", "answer": f"{m}"} for m in range(9)))
    report = inspect(str(media), rows=16)
    assert report.rows == 16 and not report.whole and report.formats == {"rows": 20}
    code, out, _ = run_command("sources", str(media), "--rows", "1000", "--json")
    (parsed,) = json.loads(out)
    assert code == 0 and parsed["whole"] and parsed["kinds"] == {"text conversation": 180}


def test_a_damaged_file_is_one_line_after_what_was_read(
    tmp_path: Path, run_command: RunCommand
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for n in range(20):
            info = tarfile.TarInfo(f"{n}.txt")
            info.size = 600
            archive.addfile(info, io.BytesIO(b"x" * 600))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 10 * 1536 + 700])
    code, out, error = run_command("sources", str(tmp_path / "a.tar"))
    assert code == 1 and len(error.splitlines()) == 1 and "a.tar" in error
    assert "webdataset, 1 file" in out


def test_text_and_media_elsewhere(media: Path, run_command: RunCommand) -> None:
    (media / "rows").mkdir()
    path = media / "rows/a.csv"
    path.write_bytes("image,answer\na.png,größer\n".encode("cp1252"))
    code, _, error = run_command("sources", str(path))
    assert code == 1 and "--encoding" in error
    options = ("--encoding", "cp1252", "--media-dir", str(media))
    code, out, _ = run_command("sources", str(path), *options)
    assert code == 0 and "größer" in out


@pytest.mark.parametrize(
    ("options", "value"),
    [(("--format", "cvs"), "cvs"), (("--columns", "imag=x"), "imag"), (("--rows", "0"), "--rows")],
)
def test_a_wrong_option_is_one_line(
    options: tuple[str, str], value: str, media: Path, run_command: RunCommand
) -> None:
    code, _, error = run_command("sources", write(media / "rows.jsonl", []), *options)
    assert code and len(error.splitlines()) == 1 and value in error


def test_torch_is_not_imported() -> None:
    code = "import sys, polyphi.cli.sources, polyphi.data.source_report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

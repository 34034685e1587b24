"""InterGPS: each problem is a folder."""

from dataclasses import replace
from pathlib import Path

from polyphi_eval.benchmarks.vision import lettered
from polyphi_eval.fixtures.write import write
from polyphi_eval.sources import Data, check


def test_folders_are_counted_as_rows_and_their_fields_checked(tmp_path: Path) -> None:
    write("intergps", tmp_path)
    data = Data(tmp_path)
    assert not check(data, replace(lettered.INTERGPS, rows=3))
    assert check(data, lettered.INTERGPS) == ["InterGPS: expected 601 rows, found 3"]
    path = data.files(lettered.INTERGPS, lettered.INTERGPS.files[0])[0]
    path.write_text('{"id": 2401, "choices": [], "answer": "A"}')
    (message,) = check(data, replace(lettered.INTERGPS, rows=3))
    assert message.startswith(str(path)) and "expected the columns problem_text" in message

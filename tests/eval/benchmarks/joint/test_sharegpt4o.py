"""Spoken questions about images: their text, the model's prompt, and scores."""

from pathlib import Path

import pytest

from polyphi.types.parts import Audio, Image
from polyphi_eval.benchmarks.joint import sharegpt4o
from polyphi_eval.fixtures.write import write
from polyphi_eval.sources import Data, write_rows


def test_options_are_spoken_with_their_letters(tmp_path: Path) -> None:
    write("ai2d", tmp_path)
    first = next(sharegpt4o.written_questions(Data(tmp_path), "ShareGPT4o_AI2D"))
    assert first["question"] == "What colour is the triangle?"
    assert first["text"] == "What colour is the triangle? A: red. B: blue. C: green. D: black."
    assert (first["answers"], first["metric"], len(first["options"])) == (["B"], "letter", 4)
    assert first["image"][:4] == b"\x89PNG"


def test_questions_without_answers_are_left_out(tmp_path: Path) -> None:
    write("docvqa", tmp_path)
    rows = list(sharegpt4o.written_questions(Data(tmp_path), "ShareGPT4o_DocVQA"))
    assert len(rows) == 3  # of the six, three are of the test split
    assert rows[0]["text"] == "Who is the letter to?"
    assert rows[0]["answers"] == ["Mr. Hansen", "Hansen"]


def test_prompts_have_an_image_and_audio_and_no_text(tmp_path: Path) -> None:
    sharegpt4o.benchmark.write_fixtures(tmp_path)
    samples = {s.id: s for s in sharegpt4o.load(Data(tmp_path))}
    assert len(samples) == 8 and {s.meta["set"] for s in samples.values()} == set(sharegpt4o.SETS)
    first = samples["ShareGPT4o_AI2D/ai2d-0"]
    (prompt,) = first.prompt
    image, audio = prompt.parts
    assert isinstance(image, Image) and Path(image.source).read_bytes()[:4] == b"\x89PNG"
    assert isinstance(audio, Audio) and Path(audio.source).read_bytes()[:4] == b"fLaC"


def test_spoken_questions_name_the_files_that_load_reads(tmp_path: Path) -> None:
    sharegpt4o.benchmark.write_fixtures(tmp_path)
    files = {row["file"] for row in sharegpt4o.spoken_questions(Data(tmp_path))}
    assert files == {path.name for path in Data(tmp_path).files(sharegpt4o.SOURCE)}


def test_errors_list_the_known_metrics_and_sets(tmp_path: Path) -> None:
    row = {"id": 1, "image": "a", "audio": "b", "question": "?", "answers": ["x"], "metric": "f1"}
    write_rows(tmp_path / "ShareGPT4o" / "ShareGPT4o_AI2D.jsonl", [row])
    with pytest.raises(ValueError, match="row 1 has the metric 'f1'; expected letter, relaxed"):
        list(sharegpt4o.load(Data(tmp_path)))
    with pytest.raises(ValueError, match="no set 'AI2D'; expected one of ShareGPT4o_AI2D"):
        list(sharegpt4o.written_questions(Data(tmp_path), "AI2D"))

"""Spoken questions about pictures: what is spoken, what the model gets, what is right."""

from pathlib import Path

import pytest

from polyphi.chat import Audio, Image
from polyphi.eval.sources import Data, write_jsonl
from polyphi.eval.tasks.joint import sharegpt4o
from polyphi.eval.tasks.vision import ai2d, docvqa


def test_options_are_spoken_with_their_letters(tmp_path: Path) -> None:
    ai2d.benchmark.mini(tmp_path)
    first = next(sharegpt4o.spoken_questions(Data(tmp_path), "ShareGPT4o_AI2D"))
    assert first["question"] == "What colour is the triangle?"
    assert first["text"] == "What colour is the triangle? A: red. B: blue. C: green. D: black."
    assert (first["answers"], first["metric"], len(first["options"])) == (["B"], "letter", 4)
    assert first["image"][:4] == b"\x89PNG"


def test_questions_without_answers_are_left_out(tmp_path: Path) -> None:
    docvqa.benchmark.mini(tmp_path)
    rows = list(sharegpt4o.spoken_questions(Data(tmp_path), "ShareGPT4o_DocVQA"))
    assert len(rows) == 3  # of the six, three are of the test split
    assert rows[0]["text"] == "Who is the letter to?"
    assert rows[0]["answers"] == ["Mr. Hansen", "Hansen"]


def test_what_is_written_is_what_is_loaded_as_a_picture_and_a_clip_without_text(
    tmp_path: Path,
) -> None:
    ai2d.benchmark.mini(tmp_path)
    rows = list(sharegpt4o.spoken_questions(Data(tmp_path), "ShareGPT4o_AI2D"))
    said: list[str] = []
    speak = lambda text: said.append(text) or text.encode()  # noqa: E731
    sharegpt4o.write(tmp_path / "ShareGPT4o", "ShareGPT4o_AI2D", rows, speak)
    samples = list(sharegpt4o.load(Data(tmp_path)))
    assert said == [row["text"] for row in rows] and len(samples) == 3
    (prompt,) = samples[0].prompt
    image, audio = prompt.parts
    assert isinstance(image, Image) and Path(image.source).read_bytes() == rows[0]["image"]
    assert isinstance(audio, Audio) and Path(audio.source).read_text() == said[0]
    assert sharegpt4o.score("blue", samples[0]).value == 1
    assert sharegpt4o.score("B", samples[0]).value == 1
    assert sharegpt4o.score("red", samples[0]).value == 0


def test_an_unknown_metric_or_set_says_which_there_are(tmp_path: Path) -> None:
    row = {"id": 1, "image": "a", "audio": "b", "question": "?", "answers": ["x"], "metric": "f1"}
    write_jsonl(tmp_path / "ShareGPT4o" / "ShareGPT4o_AI2D.jsonl", [row])
    with pytest.raises(ValueError, match="row 1 has the metric 'f1'; expected letter, relaxed"):
        list(sharegpt4o.load(Data(tmp_path)))
    with pytest.raises(ValueError, match="no set 'AI2D'; expected one of ShareGPT4o_AI2D"):
        list(sharegpt4o.spoken_questions(Data(tmp_path), "AI2D"))

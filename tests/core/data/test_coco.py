"""Annotations of images as COCO and VQA write them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from polyphi.data import sources, user_data
from polyphi.data.row_counts import estimated_rows

INFO = {"info": {"year": 2017}, "licenses": [{"id": 1}]}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.new("RGB", (8, 8), "red").save(path)


def read(path: Path, **options: Any) -> list[tuple[str, str]]:
    """(question, answer) of the rows, each of which has an image."""
    rows = list(user_data.read(path, **options))
    assert all(len(row.messages[0].parts) in (1, 2) for row in rows)
    assert all(type(row.messages[0].parts[0]).__name__ == "Image" for row in rows)
    return [(row.messages[0].text, row.answer) for row in rows]


def captions(folder: Path, split: str) -> Path:
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "license": 1} for n in (9, 25)]
    texts = [(9, "a cat"), (25, "a dog"), (9, "one cat"), (7, "not there")]
    annotations = [
        {"id": k, "image_id": n, "caption": f"{t} {split}"} for k, (n, t) in enumerate(texts)
    ]
    for image in images:
        picture(folder / split / image["file_name"])
    boxes = [{"image_id": 9, "bbox": [0, 0, 1, 1], "category_id": 1}]
    write(
        folder / f"annotations/instances_{split}.json",
        {**INFO, "images": images, "annotations": boxes},
    )
    return write(
        folder / f"annotations/captions_{split}.json",
        {**INFO, "images": images, "annotations": annotations},
    )


def test_captions_of_coco(tmp_path: Path) -> None:
    file, _ = captions(tmp_path, "train2017"), captions(tmp_path, "val2017")
    expected = [("", f"{text} train2017") for text in ("a cat", "a dog", "one cat")]
    bad: list[str] = []
    assert read(file, bad=bad.append) == expected
    assert len(bad) == 1 and "annotation 4" in bad[0]
    [source] = sources.find(str(tmp_path))
    assert (source.format, source.path) == ("coco", str(file))
    assert read(tmp_path, bad=bad.append) == expected
    assert estimated_rows(source) == 4


def test_boxes_and_missing_images_of_coco(tmp_path: Path) -> None:
    captions(tmp_path / "coco", "train2017")
    with pytest.raises(ValueError, match=r"instances_train2017\.json: .*bbox"):
        read(tmp_path / "coco/annotations/instances_train2017.json")
    (tmp_path / "coco/train2017").rename(tmp_path / "pictures")
    file = tmp_path / "coco/annotations/captions_train2017.json"
    with pytest.raises(ValueError, match="--media-dir"):
        read(file)
    assert len(read(file, media_dir=str(tmp_path / "pictures"), bad=lambda _: None)) == 3


@pytest.mark.parametrize("order", ["annotations first", "images first"])
def test_the_lists_of_coco_in_any_order(order: str, tmp_path: Path) -> None:
    file = captions(tmp_path, "train2017")
    content = json.loads(file.read_text())
    keys = ("annotations", "images") if order == "annotations first" else ("images", "annotations")
    write(file, {key: content[key] for key in keys})
    assert len(read(file, bad=lambda _: None)) == 3


def test_images_and_captions_without_numbers_of_coco(tmp_path: Path) -> None:
    file = captions(tmp_path, "trainval2017")
    content = json.loads(file.read_text())
    content["images"] += [{"id": [9], "file_name": "a.jpg"}, {"file_name": "b.jpg"}, {"id": 7}, 5]
    content["annotations"] += [{"image_id": {}, "caption": "a"}, {"caption": "a"}]
    bad: list[str] = []
    assert len(read(write(file, content), bad=bad.append)) == 3
    assert ["annotation 4" in bad[0], *("expected an image" in b for b in bad)] == [True] * 4


def test_the_names_of_a_file_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyphi.data.coco.MAX_TEXT_BYTES", 300)
    with pytest.raises(ValueError, match=r"captions_train2017\.json: .* images"):
        read(captions(tmp_path, "train2017"))


def vqa(folder: Path, split: str, form: str = "OpenEnded_") -> tuple[Path, Path]:
    picture(folder / split / f"COCO_{split}_000000000009.jpg")
    questions = [
        {"image_id": 9, "question": f"What is it in {split}?", "question_id": n} for n in (90, 91)
    ]
    answers = [{"answer": text, "answer_id": k} for k, text in enumerate(("dog", "cat", "cat"))]
    annotations = [
        {"question_id": 90, "image_id": 9, "multiple_choice_answer": "a cat", "answers": answers},
        {"question_id": 91, "image_id": 9, "answers": answers},
        {"question_id": 92, "image_id": 9, "answers": answers},
    ]
    info = {**INFO, "data_subtype": split}
    return (
        write(folder / f"v2_{form}mscoco_{split}_questions.json", {**info, "questions": questions}),
        write(folder / f"v2_mscoco_{split}_annotations.json", {**info, "annotations": annotations}),
    )


def test_questions_and_annotations_of_vqa(tmp_path: Path) -> None:
    questions, annotations = vqa(tmp_path, "train2014")
    vqa(tmp_path, "val2014")
    expected = [("What is it in train2014?", "a cat"), ("What is it in train2014?", "cat")]
    for path in (questions, annotations, tmp_path):
        assert {file.format for file in sources.find(str(path))} == {"vqa"}
        bad: list[str] = []
        assert read(path, bad=bad.append) == expected
        assert len(bad) == 1 and "annotation 3" in bad[0]


def test_questions_of_vqa_without_answers(tmp_path: Path) -> None:
    questions, annotations = vqa(tmp_path, "train2014")
    annotations.unlink()
    with pytest.raises(ValueError, match="v2_mscoco_train2014_annotations"):
        read(questions)


@pytest.mark.parametrize("names", [{"image": "documents/a.png"}, {"image_id": "a"}])
def test_the_data_of_docvqa_and_textvqa(names: dict[str, str], tmp_path: Path) -> None:
    picture(tmp_path / ("documents/a.png" if "image" in names else "train_images/a.jpg"))
    row = {"question": "Which word?", "answers": ["no", "yes", "yes"], **names}
    file = write(
        tmp_path / "train_v1.0.json", {"dataset_name": "x", "data": [row, {"question": "?"}]}
    )
    bad: list[str] = []
    assert read(file, bad=bad.append) == [("Which word?", "yes")]
    assert len(bad) == 1


def test_rows_of_vqa_with_other_values(tmp_path: Path) -> None:
    picture(tmp_path / "000000000009.jpg")
    row = {"question": "Which word?", "image_id": 9}
    rows = [
        {**row, "answers": "yes"},
        {**row, "answers": 5},
        {**row, "answers": [], "image_id": "9"},
    ]
    bad: list[str] = []
    file = write(tmp_path / "train.json", {"data": [*rows, 5, {**row, "answers": ["no"]}]})
    assert [answer for _, answer in read(file, bad=bad.append)] == ["yes", "no"]
    assert [f"row {n}" in text for n, text in enumerate(bad, 2)] == [True] * 3

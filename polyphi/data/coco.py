"""Annotations of images as COCO and VQA write them: objects with lists, which name images by number.

    coco   captions_train2017.json                        {"images": [{"id", "file_name"}],
                                                           "annotations": [{"image_id", "caption"}]}
    vqa    v2_mscoco_train2014_annotations.json           {"annotations": [{"question_id", "image_id", "answers"}]}
           v2_OpenEnded_mscoco_train2014_questions.json   {"questions": [{"question_id", "image_id", "question"}]}
           train.json (DocVQA, TextVQA)                   {"data": [{"question", "answers", "image" or "image_id"}]}

A caption, or a question with the answer that most people gave, is a row. The lists are read in parts; of captions the
names of the images are in memory, of VQA the questions.
"""

import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.data import row_files
from polyphi.data.addresses import exists, join
from polyphi.data.confinement import check_listed
from polyphi.data.row_files import LocatedRow

LISTS = re.compile(r'"(images|annotations|questions|data)"\s*:\s*\[')
SPLIT = re.compile(r"(trainval|train|minival|val|test)[-_]?(\d{4})?")
FORMATS = ("coco", "vqa")
MAX_TEXT_BYTES, ENTRY_BYTES = 1 << 30, 128
"""[ours] Bytes of the names or questions of a file, which are in memory, and about those of each beside its texts."""


def annotation_format(head: str) -> str | None:
    """The format of a .json file by its first characters, None for another one."""
    if not head.lstrip().startswith("{") or (match := LISTS.search(head)) is None:
        return None
    if match[1] in ("questions", "data") or '"question_id"' in head:
        return "vqa"
    return "coco"


def without_questions(names: list[str]) -> list[str]:
    """Names of files without those of questions whose answers are among them."""
    return [name for name in names if _partner(name, "questions", "annotations") not in names]


def without_boxes(names: list[str]) -> list[str]:
    """Names of files without those of COCO that have no captions, if any has."""
    captions = {name for name in names if Path(name).name.startswith("captions_")}
    others = ("instances_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
    return [n for n in names if not (captions and Path(n).name.startswith(others))]


def _partner(name: str, ours: str, theirs: str) -> str:
    """The name of the file with the answers to a file of questions, or the reverse."""
    folder, slash, file = name.rpartition("/")
    if ours not in file:
        return ""
    file = re.sub("(OpenEnded|MultipleChoice)_", "", file) if ours == "questions" else file
    return f"{folder}{slash}{file.replace(ours, theirs)}"


def root_of(path: str) -> str:
    """The folder of a data set: the one of a file, or the one above, if it is called annotations."""
    folder = path.rpartition("/")[0] or "."
    return folder.removesuffix("/annotations") if folder.endswith("/annotations") else folder


# ------------------------------------------------------------------------------ rows


def captions(path: str, root: str, encoding: str = "") -> Iterator[LocatedRow]:
    """The rows of a file of captions, whose images are below `root`. Raises ValueError for other annotations, and where
    the images aren't there."""
    names = _texts(path, encoding, "images", "id", "file_name")
    folder = _image_folder(path, root, itertools.islice(names.values(), 1))
    number = 0
    for key, value in row_files.lists(path, encoding):
        if key != "annotations":
            continue
        number += 1
        location = f"{path}, annotation {number}"
        if not isinstance(value, Mapping) or "caption" not in value:
            columns = ", ".join(value) if isinstance(value, Mapping) else type(value).__name__
            if number == 1:
                raise ValueError(
                    f"{path}: expected captions, found annotations with {columns}; write JSON lines such as "
                    '{"image": "1.jpg", "question": "Which objects are there?", "answer": "a cat"}'
                )
            yield location, ValueError(f"expected a caption, found {columns}")
        elif (name := names.get(_key(value.get("image_id")))) is None:
            yield location, ValueError(f"expected an image {value.get('image_id')}, found none")
        else:
            yield location, {"image": folder + name, "answer": value["caption"]}


def questions(
    path: str, root: str, encoding: str = "", allowed: Sequence[str] = ()
) -> Iterator[LocatedRow]:
    """The rows of a file of answers or questions of VQA, joined with the questions or answers in the file beside it,
    which may be a link into `allowed`; the images are below `root`. Raises ValueError where the file beside it, or the
    images, aren't there."""
    lists = (key for key, _ in row_files.lists(path, encoding))
    ours = next((key for key in lists if key in ("questions", "annotations", "data")), "data")
    if ours == "data":
        yield from _of_data(path, root, encoding)
        return
    theirs = "annotations" if ours == "questions" else "questions"
    candidates = [_partner(path, ours, theirs)]
    if ours == "annotations":
        folder, slash, file = candidates[0].rpartition("/")
        for form in ("MultipleChoice", "OpenEnded"):
            candidates.append(f"{folder}{slash}{file.replace('mscoco', f'{form}_mscoco', 1)}")
    other = next((name for name in candidates if name and exists(name)), None)
    if other is None:
        raise ValueError(
            f"{path}: expected a file with the {theirs} beside it, such as "
            f"{Path(candidates[-1]).name or f'train_{theirs}.json'}, found none"
        )
    check_listed(path.rpartition("/")[0] or ".", other, allowed)
    question_file, answer_file = (path, other) if ours == "questions" else (other, path)
    texts = _texts(question_file, encoding, "questions", "question_id", "question")
    split = SPLIT.search(Path(path).name)
    rows = (value for key, value in row_files.lists(answer_file, encoding) if key == "annotations")
    first = next(rows, None)
    if first is None:
        return
    image = _images_of(path, root, split[0] if split else "", first)
    for number, value in enumerate(itertools.chain([first], rows), 1):
        yield (
            f"{answer_file}, annotation {number}",
            _question(value, image, lambda row: texts[_key(row["question_id"])]),
        )


def _of_data(path: str, root: str, encoding: str) -> Iterator[LocatedRow]:
    rows = (value for key, value in row_files.lists(path, encoding) if key == "data")
    first = next(rows, None)
    if first is None:
        return
    image = _images_of(path, root, "", first)
    for number, value in enumerate(itertools.chain([first], rows), 1):
        yield f"{path}, row {number}", _question(value, image, lambda row: row["question"])


def _question(
    value: Any, image: Callable[[Any], str], question: Callable[[Any], Any]
) -> dict[str, Any] | ValueError:
    """A row, or the ValueError that says what it lacks."""
    try:
        return {"image": image(value), "question": question(value), "answer": _answer(value)}
    except KeyError as error:
        return ValueError(f"expected an image, a question and answers, found no {error}")
    except (TypeError, AttributeError, ValueError) as error:
        return ValueError(f"expected an image, a question and answers ({error})")


def _texts(path: str, encoding: str, key: str, id: str, text: str) -> dict[Any, str]:
    """The texts of the objects in the list `key`, by their keys. Raises ValueError if they take too much memory."""
    texts: dict[Any, str] = {}
    size = 0
    for name, value in row_files.lists(path, encoding):
        if name != key or not isinstance(value, Mapping):
            continue
        identifier, content = _key(value.get(id)), value.get(text)
        if identifier is None or not isinstance(content, str):
            continue
        texts[identifier] = content
        size += ENTRY_BYTES + sys.getsizeof(identifier) + sys.getsizeof(content)
        if size > MAX_TEXT_BYTES:
            raise ValueError(
                f"{path}: expected at most {MAX_TEXT_BYTES:,} bytes of {key}, found more; cut the file in parts"
            )
    return texts


def _key(value: Any) -> Any:
    """The key of an object, a number or a name; None for another value."""
    return value if isinstance(value, int | float | str) else None


def _answer(value: Mapping[str, Any]) -> str:
    """The answer that most people gave."""
    if "multiple_choice_answer" in value:
        return str(value["multiple_choice_answer"])
    if isinstance(value["answers"], str):
        return str(value["answers"])
    answers = [str(a["answer"] if isinstance(a, Mapping) else a) for a in value["answers"]]
    return Counter(answers).most_common(1)[0][0] if answers else ""


def _images_of(path: str, root: str, split: str, first: Any) -> Callable[[Mapping[str, Any]], str]:
    """A function from a row to the path of its image: the one that it names, or, by its number, one of COCO."""
    if not isinstance(first, Mapping):
        raise ValueError(f"{path}: expected objects, found {type(first).__name__}")
    if "image" in first or "image_path" in first:
        key = "image" if "image" in first else "image_path"
        folder = _image_folder(path, root, [str(first[key])])
        return lambda row: folder + str(row[key])
    if "image_id" not in first:
        raise ValueError(f"{path}: expected image or image_id, found {', '.join(first)}")
    forms: list[Callable[[Any], str]] = [
        *(lambda id, e=ending: f"{id}{e}" for ending in (".jpg", ".png")),
        lambda id: f"COCO_{split}_{id:012d}.jpg",
        lambda id: f"{id:012d}.jpg",
    ]
    id = first["image_id"]
    forms = forms if isinstance(id, int) else forms[:2]
    folder = _image_folder(path, root, [form(id) for form in forms], split)
    form = next(form for form in forms if exists(join(root, folder + form(id))))
    return lambda row: folder + form(row["image_id"])


def _image_folder(path: str, root: str, names: Any, split: str = "") -> str:
    """The folder of the images below the root, with / at its end, by the first image, which has one of `names`."""
    names = list(names)
    match = SPLIT.search(Path(path).name)
    split = split or (match[0] if match else "")
    kind = match[1] if match else ""
    folders = dict.fromkeys(
        ["", *(f"{s}/" for s in (split, kind, f"{kind}_images") if s), "images/",
         *(f"images/{s}/" for s in (split, kind) if s)]
    )  # fmt: skip
    for folder in folders:
        if any(exists(join(root, folder + name)) for name in names):
            return folder
    raise ValueError(
        f"{path}: expected its images in {root} or a folder of it ({', '.join(filter(None, folders))}), found none such"
        f" as {', '.join(names) or 'any'}; --media-dir (media_dir in a recipe file) names their folder"
    )

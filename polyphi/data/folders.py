"""Folders of images and audio as other tools lay them out, recognized by the names of their files.

    imagefolder   train/metadata.jsonl train/1.jpg   a table (.jsonl, .csv, .parquet) that names files by `file_name`
    pairs         1.jpg 1.txt                        an image or audio, and its text or columns (.json), of one name
    classes       train/cat/1.jpg                    the folder of an image is its class

Names are relative to the folder, with / between their parts.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from polyphi.data import row_files
from polyphi.data.addresses import is_remote, join, read_bytes
from polyphi.data.confinement import medium
from polyphi.data.limits import MAX_TEXT, encoding_error, parse_json
from polyphi.data.row_files import LocatedRow
from polyphi.data.webdataset import MEMBERS, SOUNDS
from polyphi.media.file_types import IMAGE_SUFFIXES
from polyphi.runtime import inputs
from polyphi.text.quantity import quantity

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
MEDIA = (*IMAGE_SUFFIXES, *SOUNDS)
CAPTIONS = (*(f".{ending}" for ending in MEMBERS), ".json")
"""Endings of the files that describe the image or audio of the same name."""
DOCUMENTS = (".txt", ".md")
DESCRIPTION = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|authors|credits|changelog|contributing|data_?card|dataset_?card"
    r"|dataset_infos?)([._-].*)?",
    re.IGNORECASE,
)
"""Names of files that describe a folder's data."""
HELD_OUT = ("val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")
SPLITS = ("train", "training", *HELD_OUT)
NO_CLASSES = ("image", "images", "img", "imgs", "jpegimages", "picture", "pictures", "photo", "photos",
              "data", "files", "media", "assets", "static")  # fmt: skip
"""Names of folders that say nothing about the images in them."""
CLASS_QUESTION = "What does the picture show?"
"""[ours] The question of class folders."""


def is_medium(name: str) -> bool:
    """Whether a name is that of an image or audio."""
    return name.lower().endswith(MEDIA)


def column(name: str) -> str:
    """The column of an image or audio of this name."""
    return "audio" if name.lower().endswith(SOUNDS) else "image"


def is_description(name: str) -> bool:
    """Whether a file describes the others: a README, a licence, a data card."""
    return DESCRIPTION.fullmatch(_name(name)) is not None


def tables(names: Sequence[str]) -> list[str]:
    """The tables of an imagefolder."""
    return [name for name in names if _name(name).lower() in TABLES]


def is_held_out(name: str, names: Sequence[str]) -> bool:
    """Whether a file of a table lies in a split that isn't for training, of a folder that has one for training."""
    first = name.split("/", maxsplit=1)[0].lower()
    return first in HELD_OUT and any(row_files.TRAIN.search(n.split("/")[0]) for n in names)


# ------------------------------------------------------------------------------ pairs


def pairs(names: Sequence[str]) -> list[str]:
    """The folders of pairs; none where fewer than half of the images and audio have a text file of the same name."""
    media = {_stem(name) for name in names if is_medium(name)}
    texts = {_stem(name) for name in names if _suffix(name) in CAPTIONS}
    if not media or 2 * len(media & texts) < len(media):
        return []
    return sorted({stem.rpartition("/")[0] for stem in media & texts})


def captions(names: Sequence[str]) -> set[str]:
    """The files among `names` that describe an image or audio of the same name (`CAPTIONS`)."""
    media = {_stem(name) for name in names if is_medium(name)}
    return {name for name in names if _suffix(name) in CAPTIONS and _stem(name) in media}


def paired_rows(
    folder: str, names: Sequence[str], allowed: Sequence[str] = (), encoding: str = ""
) -> Iterator[LocatedRow]:
    """The pairs in a folder, with texts in `encoding` ("": UTF-8); a row that lacks one of both, or links to a file
    elsewhere than in `allowed`, is a ValueError."""
    groups = defaultdict[str, list[str]](list)
    for name in names:
        is_text = _suffix(name) in CAPTIONS and not is_description(name)
        if "/" not in name and (is_medium(name) or is_text):
            groups[_stem(name)].append(name)
    for stem, group in groups.items():
        location = join(folder, group[0])
        try:
            yield location, {"id": stem, **_pair(folder, group, allowed, encoding)}
        except UnicodeDecodeError as error:
            yield location, ValueError(encoding_error(error))
        except (ValueError, OSError) as error:
            yield location, error if isinstance(error, ValueError) else ValueError(str(error))


def _pair(
    folder: str, group: Sequence[str], allowed: Sequence[str], encoding: str
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in group:
        if is_medium(name):
            row.setdefault(f"{column(name)}s", []).append(name)
            continue
        data = read_bytes(str(medium(folder, name, allowed)), MAX_TEXT)
        if not is_remote(folder):
            inputs.note(Path(folder) / name)
        if _suffix(name) == ".json":
            columns = parse_json(data.decode(encoding) if encoding else data)
            if not isinstance(columns, Mapping):
                raise ValueError(f"{name}: expected an object, found {type(columns).__name__}")
            row |= columns
        else:
            row[MEMBERS[_suffix(name)[1:]]] = data.decode(encoding or "utf-8-sig").strip()
    if not any(is_medium(name) for name in group):
        raise ValueError(f"expected an image or audio of the name of {group[0]}, found none")
    if all(is_medium(name) for name in group):
        raise ValueError(f"expected a text of the name of {group[0]}, found none")
    return row


# ------------------------------------------------------------------------------ classes


def classes(names: Sequence[str]) -> list[str]:
    """The folders of images whose names are classes; none where an image has no class, or other files than a few texts
    above them may be the data."""
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    others = [name for name in names if not is_medium(name)]
    describe = all("/" not in n and _suffix(n) in (*DOCUMENTS, ".json") for n in others)
    if not images or not describe or len(others) > len(images):
        return []
    folders = sorted({name.rpartition("/")[0] for name in images})
    splits = _are_splits(folders)
    unnamed = (*NO_CLASSES, *(SPLITS if splits else ()))
    return [] if any(_name(folder).lower() in ("", *unnamed) for folder in folders) else folders


def training_classes(folders: list[str]) -> list[str]:
    """The class folders of the training split, where the folders above them are splits."""
    if not _are_splits(folders):
        return folders
    return [f for f in folders if row_files.TRAIN.search(f.rpartition("/")[0])] or folders


def _are_splits(folders: Sequence[str]) -> bool:
    """Whether the folders at the level where the paths first differ are splits."""
    parts = [folder.split("/") for folder in folders]
    level = next((n for n, names in enumerate(zip(*parts, strict=False)) if len({*names}) > 1), 0)
    return all(len(p) > level and p[level].lower() in SPLITS for p in parts)


def class_rows(folder: str, names: Sequence[str]) -> Iterator[LocatedRow]:
    """The images in a class folder."""
    answer = _name(folder).replace("_", " ").replace("-", " ")
    for name in class_images(names):
        yield join(folder, name), {"image": name, "question": CLASS_QUESTION, "answer": answer}


def class_images(names: Sequence[str]) -> list[str]:
    """The images of a class folder itself."""
    return [n for n in names if "/" not in n and n.lower().endswith(IMAGE_SUFFIXES)]


# ------------------------------------------------------------------------------ what is no layout


def media(names: Sequence[str]) -> str:
    """How many images and audio files there are, such as "2 images, 1 audio file"; "" for none."""
    sounds = sum(name.lower().endswith(SOUNDS) for name in names)
    images = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
    counts = [quantity(n, text) for n, text in ((images, "image"), (sounds, "audio file")) if n]
    return ", ".join(counts)


def check_documents(folder: str, names: Sequence[str], sources: Sequence[str]) -> None:
    """Raise ValueError for texts beside more audio, or more images of plain texts, than there are texts: they are
    transcripts or captions in a layout that isn't known, and no documents."""
    if not sources or any(_suffix(name) not in DOCUMENTS for name in sources):
        return
    sounds = sum(name.lower().endswith(SOUNDS) for name in names)
    images = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
    plain = all(name.lower().endswith(".txt") for name in sources)
    if sounds or (plain and images):
        raise ValueError(
            f"{folder}: expected a text of the name of each image or audio file (1.jpg, 1.txt), found {media(names)} "
            f"and texts of other names, such as {sources[0]}; write rows that name both (docs/own_data.md, Formats), "
            f"or name the texts alone by a pattern, such as {join(folder, sources[0]).rpartition('/')[0]}/*.txt"
        )


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))

"""Tars whose members of one name are a row, as WebDataset and Energon write them.

    0001.jpg 0001.txt                an image and its answer; 0001.1.jpg and 0001.2.jpg are the images of one row
    0001.wav 0001.json               audio, and an object with the columns of `formats.py`
    .nv-meta/dataset.yaml            Energon's field map: a sample's fields by members, {caption: txt, context: json[q]}
    .nv-meta/split.yaml              Energon's splits: the tars of training, and what is excluded of them

A row is the ValueError that says why where a member can't be read, or where an answer has no image or audio and rows
before it have: its conversation would be about nothing.
"""

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Self

from polyphi.data.addresses import exists, join, read_bytes, without_braces
from polyphi.data.limits import MAX_ROW, parse_json
from polyphi.data.row_files import LocatedRow
from polyphi.media.file_types import IMAGE_SUFFIXES

SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus")
MEMBERS = {"txt": "answer", "caption": "answer", "cls": "answer", "text": "answer"}
"""Ending of a member -> its column. A member .json has columns itself."""
FIELDS = {
    "image": "images",
    "audio": "audios",
    "caption": "answer",
    "text": "answer",
    "label_name": "answer",
    "answers": "answer",
    "context": "question",
}
"""Field of Energon's sample types -> its column; of several answers the first one is taken."""
MAX_HEADER, MAX_YAML = 1 << 20, 1 << 20
"""[ours] Bytes of a header of a tar with a long name, and of a file of Energon's."""
MAX_YAML_LEVELS = 50
"""[ours] Levels of lists and mappings of such a file: the time of PyYAML grows with their square."""
MEDIA = frozenset({"image", "images", "audio", "audios"})
WHOLE = frozenset({"messages", "conversations", "instruction"})
"""Columns of a row that may be about text alone."""
META = ".nv-meta"


def field_map(folder: str) -> dict[str, str] | None:
    """Energon's field map of a data set, field -> member; None for a folder without one. Raises ValueError for a data
    set that needs Energon's own code, and for fields that no row has."""
    path = join(folder, f"{META}/dataset.yaml")
    if not exists(path):
        return None
    fields = _yaml(path).get("field_map")
    if not isinstance(fields, dict):
        raise ValueError(
            f"{path}: expected a field_map, found none; a sample_loader or crude data set is Energon's own code: "
            'force the members\' endings with format = "webdataset" on the tars themselves'
        )
    if not any(FIELDS.get(name) == "answer" for name in fields):
        answers = ", ".join(name for name, column in FIELDS.items() if column == "answer")
        raise ValueError(
            f"{path}: expected one of {answers} in field_map, found {', '.join(map(str, fields))}"
        )
    return {str(name): str(member) for name, member in fields.items()}


def training_tars(folder: str, names: Sequence[str]) -> list[str]:
    """The tars among `names` that Energon's split has for training, without excluded ones; all `names` without a split.
    Raises ValueError for a split without training, and for one that names tars which aren't there."""
    path = join(folder, f"{META}/split.yaml")
    if not exists(path):
        return [*names]
    parts = _yaml(path).get("split_parts")
    train = parts.get("train") if isinstance(parts, dict) else None
    if not isinstance(train, list):
        raise ValueError(f"{path}: expected a list of tars as split_parts.train, found none")
    of_split, present = set[str](), set(names)
    for pattern in train:
        of_pattern = _without_braces(path, pattern)
        if absent := [name for name in of_pattern if name not in present]:
            raise ValueError(
                f"{path}: expected the tars that split_parts.train names, found no {absent[0]}"
            )
        of_split.update(of_pattern)
    left_out = excluded(folder)
    return [name for name in names if name in of_split and name not in left_out]


def _without_braces(path: str, pattern: Any) -> list[str]:
    if not isinstance(pattern, str):
        raise ValueError(f"{path}: expected names of tars, found {pattern!r:.80}")
    try:
        return without_braces(pattern)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def excluded(folder: str) -> frozenset[str]:
    """What Energon's split excludes: names of tars, and TAR/NUMBER of single rows, counted from 0."""
    path = join(folder, f"{META}/split.yaml")
    names = (_yaml(path).get("exclude") or []) if exists(path) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a list of names as exclude, found {names!r:.80}")
    return frozenset(names)


def _yaml(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        data = read_bytes(path, MAX_YAML)
        levels = 0
        for event in yaml.parse(data, yaml.SafeLoader):
            levels += isinstance(event, yaml.CollectionStartEvent)
            levels -= isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):  # of which a few lines stand for gigabytes
                raise ValueError(f"line {line}: expected no alias, found one")
            if levels > MAX_YAML_LEVELS:
                raise ValueError(
                    f"line {line}: expected at most {MAX_YAML_LEVELS} levels, found more"
                )
        content = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected YAML, {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys, found {type(content).__name__}")
    return content


def rows(
    path: str, stream: IO[bytes], fields: Mapping[str, str] | None = None
) -> Iterator[LocatedRow]:
    """Yield (location, row or ValueError) of each row of a tar; `fields` as `field_map` has them. Raises
    tarfile.TarError for a damaged file, and at the end for one without an archive's end, of which a part is missing."""
    ending = _Ending(stream)
    with tarfile.open(fileobj=ending, mode="r|", tarinfo=_Member) as archive:  # type: ignore[call-overload]
        key, members, size = "", dict[str, bytes](), 0
        media = set[str]()
        for member in _members(archive):
            if not member.isfile() or (at := row_key(member.name)) is None:
                continue
            suffix = member.name.rpartition("/")[2].partition(".")[2]
            if at != key:
                if size:
                    yield f"{path}, {key}", _row(key, members, fields, size, media)
                key, members, size = at, {}, 0
            size += member.size + len(member.name) + tarfile.BLOCKSIZE
            if size > MAX_ROW:
                members.clear()
                continue
            content = archive.extractfile(member)
            assert content is not None
            members[suffix.lower()] = content.read()
        if size:
            yield f"{path}, {key}", _row(key, members, fields, size, media)
    if any(ending.last):
        raise tarfile.ReadError("the archive ends before its end: it was cut off")


def row_key(name: str) -> str | None:
    """The name that the members of a row share, of one of them; None for a hidden member, which is in no row."""
    folder, _, file = name.rpartition("/")
    stem = file.partition(".")[0]
    return (f"{folder}/{stem}" if folder else stem) if stem else None


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined] # which the archive would keep
            yield member
    except ValueError as error:
        raise tarfile.ReadError(str(error)) from None


class _Member(tarfile.TarInfo):
    """The header of a member, of which only what this module reads is accepted."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the member's header in a block of a tar."""
        member = super().frombuf(buf, encoding, errors)
        headers = (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if member.type in headers and member.size > MAX_HEADER:
            raise tarfile.ReadError(
                f"{member.name}: expected a header of at most {MAX_HEADER:,} bytes, found {member.size:,}"
            )
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{member.name}: expected whole members, found a sparse one")
        return member

    def _proc_gnusparse_10(self, *_: Any) -> None:
        raise tarfile.ReadError(f"{self.name}: expected whole members, found a sparse one")


class _Ending:
    """A file that keeps the last bytes that were read: zeros at the end of a tar."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes of the tar."""
        data = self._file.read(size)
        self.last = (self.last + data)[-tarfile.BLOCKSIZE :]
        return data


def _row(
    key: str,
    members: Mapping[str, bytes],
    fields: Mapping[str, str] | None,
    size: int,
    media: set[str],
) -> dict[str, Any] | ValueError:
    """The columns of a row's members, which have `size` bytes with their headers; `media` are those of images and audio
    in the rows so far, with this one."""
    try:
        if size > MAX_ROW:
            raise ValueError(f"expected at most {MAX_ROW:,} bytes in a row, found {size:,}")
        row = _columns(members) if fields is None else _of_fields(members, fields)
        if media and not MEDIA & row.keys() and not WHOLE & row.keys():
            raise ValueError(
                f"expected {' or '.join(sorted(media))} as in the rows before, found .{', .'.join(members)}"
            )
    except ValueError as error:
        return error
    media |= MEDIA & row.keys()
    return {"id": key, **row}


def _columns(members: Mapping[str, bytes]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for ending in members:
        value = _value(ending, members)
        if (column := _medium(ending)) is not None:
            row[column] = [*row.get(column, ()), value]
        elif isinstance(value, dict):
            row.update(value)
        elif _last(ending) == "json":
            row["messages"] = value
        else:
            row[MEMBERS.get(_last(ending), _last(ending))] = value
    return row


def _of_fields(members: Mapping[str, bytes], fields: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field, member in fields.items():
        if (column := FIELDS.get(field)) is None:
            continue
        ending, *keys = member.replace("]", "").split("[")
        alternatives = [e for e in ending.split(",") if e in members]  # "jpg,png": what is there
        if not alternatives:
            raise ValueError(
                f"expected a member .{ending} for {field}, found .{', .'.join(members)}"
            )
        value = _value(alternatives[0], members)
        for name in keys:
            try:
                value = value[int(name) if isinstance(value, list) else name]
            except (LookupError, TypeError, ValueError):
                raise ValueError(f"expected {member} for {field}, found no {name}") from None
        if field == "answers" and isinstance(value, list) and value:
            value = value[0]
        row[column] = [value] if column in ("images", "audios") else value
    return row


def _value(ending: str, members: Mapping[str, bytes]) -> Any:
    """A member's content: bytes of media, JSON, or text. Raises ValueError."""
    content = members[ending]
    if _medium(ending) is not None:
        return content
    if _last(ending) == "json":
        try:
            return parse_json(content)
        except ValueError as error:
            raise ValueError(f".{ending}: expected JSON, {error}") from None
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f".{ending}: expected UTF-8, {error}") from None


def _last(ending: str) -> str:
    """The last part of an ending: json of detail.json."""
    return ending.rpartition(".")[2]


def _medium(ending: str) -> str | None:
    """The column of an image or audio, None of other members."""
    last = f".{_last(ending)}"
    return "images" if last in IMAGE_SUFFIXES else "audios" if last in SOUNDS else None

"""Sources of rows in the formats that people have, detected from their content: the one parser of `polyphi train
--data`, of a recipe file's corpora and of curation.

>>> [file, *_] = find("clips/manifest.jsonl")          # SourceFile("clips/manifest.jsonl", "nemo", "clips")
>>> for location, row in rows(file): ...               # a row as `formats.sample` reads it

    rows          .jsonl, .json lists and parquet of the forms of `formats.py`, also hf:OWNER/NAME
    csv           .csv and .tsv (, ; | or tabs) with the columns of `formats.py`, or others that `columns` names
    webdataset    .tar: members of one name are a row (.jpg .wav .txt .json .cls ...); Energon's folders, too
    nemo          JSON lines with audio_filepath, and offset and duration of a segment
    lhotse        JSON lines of cuts
    commonvoice   .tsv with path and sentence beside the folder clips
    covost        the same with translation
    fleurs        .tsv without a header beside audio/SPLIT
    librispeech   .trans.txt: names and transcripts of the audio files beside it
    imagefolder   metadata.jsonl, .csv or .parquet (file_name, text), in a folder or in those of its splits
    pairs         a folder of images or audio with texts of the same names (1.jpg, 1.txt)
    coco          captions in COCO's JSON, beside the folders of its images
    vqa           questions and annotations in VQA's JSON, or DocVQA's and TextVQA's
    classes       a folder of images for each class, or one for each class of a split
    datasets      a folder of `datasets.save_to_disk`
    shards        a folder of polyphi's shards
    text          .txt and .md: a document each; JSON lines and parquet with `text` are documents, too
    html, warc, pdf   web pages and papers (documents.py)

Of a folder with a train split only that split is read, and files that describe the others (README, LICENSE) aren't.
A file is the unit of work. Files may be anywhere that fsspec reads (s3://, https://, gs://, ...); only what is read is
fetched. They may be compressed (.gz, .zst). Paths in rows are relative to the file that names them, or to `media_dir`.
Text is UTF-8, or UTF-16 with its mark; files in another encoding need its name.
"""

import codecs
import csv
import io
import itertools
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from polyphi.data import coco, documents, folders, manifests, row_files, webdataset
from polyphi.data.addresses import (
    BRACES,
    ending,
    file_system,
    is_remote,
    join,
    open_file,
    read_bytes,
    without_braces,
)
from polyphi.data.arrow_files import stream_rows
from polyphi.data.confinement import check_listed
from polyphi.data.limits import BoundedReader, RowLines, encoding_error, parse_json
from polyphi.data.row_files import LocatedRow
from polyphi.runtime import inputs
from polyphi.text.quantity import quantity

ENDINGS = {
    ".jsonl": "rows",
    ".json": "rows",
    ".parquet": "rows",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "webdataset",
    ".arrow": "datasets",
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".warc": "warc",
    ".pdf": "pdf",
}
"""Ending of a file, without that of its compression -> its format, unless its first row shows another one."""
OWN_PATHS = ("pairs", "classes", "webdataset", "shards")
"""Formats whose rows name no files."""
HEAD = 64 << 10
"""Bytes of a file by which its format is detected."""
ERRORS = (
    *(OSError, EOFError, tarfile.TarError, pa.ArrowException, zlib.error),
    *(csv.Error, RecursionError),
)
"""Exceptions that reading a damaged file may raise."""


@dataclass(frozen=True)
class SourceFile:
    """A file of rows: its path or address, its format, the folder of the paths in its rows, other folders and addresses
    that these may lead to, and the encoding of its text ("": UTF-8)."""

    path: str
    format: str
    root: str
    allowed_media_path: tuple[str, ...] = ()
    encoding: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({', '.join(filter(None, (self.format, self.encoding)))})"

    def open(self) -> AbstractContextManager[BoundedReader]:
        """The bytes of the file, of text in UTF-8."""
        return open_file(self.path, encoding=self.encoding)


# ------------------------------------------------------------------------------ finding files


def find(
    source: str,
    format: str | None = None,
    allowed_media_path: Sequence[str] = (),
    encoding: str = "",
    media_dir: str | None = None,
) -> list[SourceFile]:
    """The files of a source, each with its format: `format`, or the detected one. A source is a file, a folder, a
    pattern with * or {000..122}, an address, or hf:OWNER/NAME. Links in a folder and paths in rows may lead into
    `allowed_media_path`; paths in rows are relative to `media_dir`, by default to their file's folder. `encoding` is
    that of texts other than UTF-8. Raises ValueError where there are no files, naming what was expected, and for an
    unknown format or encoding."""
    if format is not None and format not in FORMATS:
        raise ValueError(f"expected a format of {', '.join(FORMATS)}, found {format!r}")
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise ValueError(
            f"expected the name of an encoding, such as cp1252 or gb18030, found {encoding}"
        ) from None
    if source.startswith("hf:"):
        return [SourceFile(file, "rows", "") for file in row_files.find(source)]
    matches: list[SourceFile] = []
    for path in _expand(source):
        if _is_folder(path):
            of_folder = _of_folder(path, format, encoding)
            for file in of_folder:
                check_listed(path, file.path, allowed_media_path)
            matches += of_folder
        else:
            matches += _of_file(path, format, encoding)
    if not matches:
        raise ValueError(f"{source}: expected {_expected(format)}, found {_present(source)}")
    if media_dir is not None:
        matches = [f if f.format in OWN_PATHS else replace(f, root=media_dir) for f in matches]
    allowed = tuple(allowed_media_path)
    return [
        replace(file, allowed_media_path=allowed, encoding=encoding or file.encoding)
        for file in matches
    ]


def _expand(source: str) -> list[str]:
    """The paths that a pattern names, in order of names; a path without a pattern is itself."""
    if BRACES.search(source):
        return list(itertools.chain.from_iterable(map(_expand, without_braces(source))))
    if is_remote(source):
        if not has_magic(source):
            return [source]
        system, path = file_system(source)
        return [str(system.unstrip_protocol(p)) for p in sorted(system.glob(path))]
    path = str(Path(source).expanduser())
    if not has_magic(path):
        return [path]
    inputs.note_listing(path)
    return sorted(glob(path))


def _of_folder(folder: str, format: str | None, encoding: str) -> list[SourceFile]:
    names = _names(folder)
    present = {name for name in names if "/" not in name}
    if format == "shards" or (format is None and "manifest.json" in present and _is_split(folder)):
        return [SourceFile(folder, "shards", folder)]
    names = _data(names)
    tables = folders.tables(names)
    if format is None:
        tables = [name for name in tables if _names_files(join(folder, name))]
    if format == "imagefolder" or (format is None and tables):
        return [
            f for n in _train(tables) for f in _of_file(join(folder, n), "imagefolder", encoding)
        ]
    captions = folders.captions(names)
    if format == "pairs" or (format is None and not any(map(_has_rows, names))):
        paired = [join(folder, n).rstrip("/") for n in _train(folders.pairs(names))]
        if paired or format == "pairs":
            return [SourceFile(path, "pairs", path) for path in paired]
    if format == "classes" or format is None:
        classes = folders.training_classes(folders.classes(names))
        if classes or format == "classes":
            return [
                SourceFile(path, "classes", path) for path in (join(folder, n) for n in classes)
            ]
    if format == "datasets" or (format is None and any(name.endswith(".arrow") for name in names)):
        arrows = _train([n for n in names if n.endswith(".arrow") and "cache-" not in n])
        return [SourceFile(join(folder, n), "datasets", folder) for n in arrows]
    transcripts = [n for n in names if n.endswith(manifests.TRANSCRIPT)]
    sources = [n for n in names if ending(n) in ENDINGS and n not in captions]
    if format is not None:
        sources = [n for n in sources if _fits(n, format)]
    elif transcripts:
        sources = transcripts
    sources = [
        n for n in sources if not n.endswith(".json")
    ] or sources  # they often describe the others
    tars = [n for n in sources if ending(n) == ".tar"]
    if tars and (format in (None, "webdataset")):
        tars = _train(webdataset.training_tars(folder, tars))
        return [SourceFile(join(folder, n), "webdataset", folder) for n in tars]
    sources = coco.without_boxes(coco.without_questions(sources))
    if format is None and not transcripts:
        folders.check_documents(folder, names, sources)
    return [file for n in _train(sources) for file in _of_file(join(folder, n), format, encoding)]


def _data(names: list[str]) -> list[str]:
    """Names without those of files that describe the others, unless these are texts, too."""
    described = [name for name in names if not folders.is_description(name)]
    formats = {"media" if folders.is_medium(n) else ENDINGS.get(ending(n)) for n in described}
    return described if formats - {None, "text"} else names


def _has_rows(name: str) -> bool:
    """Whether a file in a folder of images or audio has rows that may name them. The .json and .parquet files of
    img2dataset describe them."""
    return ending(name) in (".jsonl", ".csv", ".tsv", ".tar", ".arrow")


def _names_files(table: str) -> bool:
    """Whether a table has the column `file_name`."""
    if table.endswith(".parquet"):
        try:
            with open_file(table) as stream:
                return "file_name" in pq.ParquetFile(stream).schema_arrow.names
        except ERRORS as error:
            raise ValueError(f"{table}: {error}") from None
    return b"file_name" in _head(table, "")[0]


def _head(path: str, encoding: str) -> tuple[bytes, str]:
    """The first bytes of a text file in UTF-8, and its encoding: `encoding`, or that of a mark."""
    try:
        with open_file(path, encoding=encoding) as stream:
            head = stream.read(HEAD)
    except UnicodeError as error:
        raise ValueError(f"{path}: {encoding_error(error)}") from None
    except ERRORS as error:
        raise ValueError(f"{path}: {error}") from None
    if not encoding and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _head(path, "utf-16")
    return head, encoding


def _of_file(path: str, format: str | None, encoding: str) -> list[SourceFile]:
    if not is_remote(path) and not Path(path).is_file():
        return []
    root = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    known = format or ENDINGS.get(ending(path))
    if known is None:
        return []
    is_text = ending(path) in (".jsonl", ".json", ".csv", ".tsv")
    head, encoding = _head(path, encoding) if is_text else (b"", encoding)
    if format is None and folders.tables([path]) and _names_files(path):
        known = "imagefolder"
    elif format is None and path.endswith(manifests.TRANSCRIPT):
        known = "librispeech"
    elif format is None and is_text:
        text = head.decode("utf-8-sig", "replace")
        known = manifests.manifest_format(path, text) or known
        if ending(path) == ".json":
            known = coco.annotation_format(text) or known
    if known in coco.FORMATS:
        root = coco.root_of(path)
    return [SourceFile(path, known, root, encoding=encoding)]


def _fits(name: str, format: str) -> bool:
    """Whether a file's ending allows the format."""
    if format in coco.FORMATS:
        return ending(name) == ".json"
    if format == "librispeech":
        return name.endswith(manifests.TRANSCRIPT)
    known = ENDINGS[ending(name)]
    return known == format or (format in manifests.FORMATS and known in ("rows", "csv"))


def _is_split(folder: str) -> bool:
    with open_file(join(folder, "manifest.json")) as stream:
        try:
            return "shards" in parse_json(stream.read())
        except (ValueError, TypeError):
            return False


def _train(names: list[str]) -> list[str]:
    """The paths with a folder or file named "train", or all paths where there are none."""
    return [n for n in names if row_files.TRAIN.search(n)] or names


def _names(folder: str) -> list[str]:
    """The names of all files in a folder, relative to it, without hidden ones."""
    if is_remote(folder):
        system, path = file_system(folder)
        names = [name.removeprefix(path).lstrip("/") for name in system.find(path)]
    else:
        inputs.note_listing(folder)
        names = [p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()]
    return sorted(n for n in names if not any(part.startswith(".") for part in n.split("/")))


def _expected(format: str | None) -> str:
    if format is not None:
        return f"files of the format {format}"
    endings = ", ".join(ENDINGS)
    return f"a file that ends in {endings} (or .gz), a folder of them, of images or of shards, or hf:OWNER/NAME"


def _present(source: str) -> str:
    if has_magic(source) or BRACES.search(source):
        return "no file of this pattern"
    if is_remote(source):
        return "nothing at this address"
    path = Path(source).expanduser()
    media = folders.media(_names(str(path))) if path.is_dir() else ""
    return (
        f"{media} without texts of their names or folders of classes"
        if media
        else "none in that folder"
        if path.is_dir()
        else "another file"
        if path.exists()
        else "nothing there"
    )


# ------------------------------------------------------------------------------ reading rows


def rows(file: SourceFile) -> Iterator[LocatedRow]:
    """Yield (location, row) of each row of a file; a row is a mapping, or JSON. Raises ValueError for a file that isn't
    of its format, or is damaged, where the damage is met."""
    if file.format != "shards" and not is_remote(file.path) and Path(file.path).is_file():
        inputs.note(file.path)
    try:
        yield from READERS[file.format](file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: {encoding_error(error)}") from None
    except ERRORS as error:
        raise ValueError(f"{file}: {error or type(error).__name__}") from None


def _rows(file: SourceFile) -> Iterator[LocatedRow]:
    return row_files.rows(file.path, file.encoding)


def _csv(file: SourceFile) -> Iterator[LocatedRow]:
    with file.open() as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        head = text.readline(HEAD)
        is_sep = head.startswith("sep=")  # Excel's line before the names
        header = text.readline(HEAD) if is_sep else head
        tabs = ending(file.path) == ".tsv"
        lines = RowLines(text, file.path, 2 if is_sep else 1)
        rows = csv.reader(
            itertools.chain([header], lines),
            delimiter=delimiter_of(header, "\t" if tabs else ","),
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        )
        names = next(rows, [])
        for number, values in enumerate(rows, 3 if is_sep else 2):
            lines.row_ends()
            location = f"{file.path}, line {number}"
            if len(values) == len(names):
                row = dict(zip(names, values, strict=True))
                yield location, {k: v for k, v in row.items() if v != ""}
            elif values:
                reason = f"expected {quantity(len(names), 'column')}, found {len(values)}"
                yield location, ValueError(reason)


def delimiter_of(header: str, preferred: str) -> str:
    """The delimiter of a header's column names: of comma, semicolon, tab and | the one that is there most often outside
    of quotation marks."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max((preferred, ",", ";", "\t", "|"), key=bare.count)


def _webdataset(file: SourceFile) -> Iterator[LocatedRow]:
    with open_file(file.path) as stream:
        excluded, name = webdataset.excluded(file.root), file.path.removeprefix(f"{file.root}/")
        of_tar = webdataset.rows(file.path, stream, webdataset.field_map(file.root))
        yield from (row for n, row in enumerate(of_tar) if f"{name}/{n}" not in excluded)


def _imagefolder(file: SourceFile) -> Iterator[LocatedRow]:
    reader = _csv if ending(file.path) == ".csv" else _rows
    names: list[str] | None = None
    for location, value in reader(file):
        try:
            row = parse_json(value) if isinstance(value, bytes | str) else value
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, Mapping):
                raise ValueError(f"expected an object, found {type(row).__name__}")
            name = row.get("file_name")
            if not isinstance(name, str) or not folders.is_medium(name):
                value_text = ", ".join(row) if name is None else repr(name)
                raise ValueError(f"expected an image or audio as `file_name`, found {value_text}")
        except ValueError as error:
            yield location, error
            continue
        if "/" in name:
            names = _names(file.root) if names is None else names
            if folders.is_held_out(name, names):
                continue
        columns = {k: v for k, v in row.items() if k != "file_name"}
        yield location, {folders.column(name): name, **columns}


def _coco(file: SourceFile) -> Iterator[LocatedRow]:
    return coco.captions(file.path, file.root, file.encoding)


def _vqa(file: SourceFile) -> Iterator[LocatedRow]:
    return coco.questions(file.path, file.root, file.encoding, file.allowed_media_path)


def _pairs(file: SourceFile) -> Iterator[LocatedRow]:
    names = _names(file.path)
    return folders.paired_rows(file.path, names, file.allowed_media_path, file.encoding)


def _classes(file: SourceFile) -> Iterator[LocatedRow]:
    return folders.class_rows(file.path, _names(file.path))


def _datasets(file: SourceFile) -> Iterator[LocatedRow]:
    """Rows of an Arrow stream, as `datasets.save_to_disk` writes it."""
    with open_file(file.path) as stream:
        for number, row in enumerate(stream_rows(stream, file.path), 1):
            yield f"{file.path}, row {number}", row


def _shards(file: SourceFile) -> Iterator[LocatedRow]:
    if not is_remote(file.path):
        inputs.note(Path(file.path) / "manifest.json")
    number = 0
    for name, _ in shard_files(file.path):
        path = join(file.path, name)
        check_listed(file.path, path, file.allowed_media_path)
        for row in row_files.parquet(path):
            number += 1
            yield f"{file.path}, row {number}", row


def shard_files(folder: str) -> list[tuple[str, int]]:
    """The files of shards, by their manifest, and the rows of each. Raises ValueError for another manifest."""
    path = join(folder, "manifest.json")
    try:
        shards = parse_json(read_bytes(path))["shards"]
        return [(PurePath(shard["file"]).name, int(shard["rows"])) for shard in shards]
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a manifest of shards, found none ({error})") from None


def _documents(file: SourceFile) -> Iterator[LocatedRow]:
    with file.open() if file.format == "text" else open_file(file.path) as stream:
        try:
            for number, row in enumerate(documents.READERS[file.format](stream), 1):
                id = f"{Path(file.path).name}-{number}"
                yield f"{file.path}, document {number}", {"id": id, **row}
        except UnicodeDecodeError as error:
            yield file.path, ValueError(encoding_error(error))
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from None


def _manifest(file: SourceFile) -> Iterator[LocatedRow]:
    return manifests.rows(file.format, file.path, file.root, file.open)


READERS: dict[str, Callable[[SourceFile], Iterator[LocatedRow]]] = {
    "rows": _rows,
    "csv": _csv,
    "webdataset": _webdataset,
    "imagefolder": _imagefolder,
    "coco": _coco,
    "vqa": _vqa,
    "pairs": _pairs,
    "classes": _classes,
    "datasets": _datasets,
    "shards": _shards,
    **dict.fromkeys(documents.READERS, _documents),
    **dict.fromkeys(manifests.FORMATS, _manifest),
}
FORMATS = tuple(READERS)


def _is_folder(path: str) -> bool:
    if not is_remote(path):
        return Path(path).is_dir()
    if ending(path) in ENDINGS:
        return False
    system, name = file_system(path)
    return bool(system.isdir(name))

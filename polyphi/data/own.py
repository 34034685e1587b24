"""People's own data -> samples: JSON lines or parquet, here or on the Hugging Face hub.

A row has one of two forms, `messages` or columns::

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "cat.png"},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A cat."}]}
    {"image": "cat.png", "question": "What is this?", "answer": "A cat."}

A picture or clip (`image`, `audio`; in columns also a list of them) is a path relative to the file, bytes, or the
hub's {"bytes", "path"}; OpenAI's parts `image_url` and `input_audio` are read as well. A part without a value,
{"type": "image"}, takes the next of the row's `images` or `audios`. A row of columns with clips alone and no question
asks for a transcript. `id`, `licence` and `rejected` (the dispreferred answer, for DPO) may stand beside either form,
OpenAI's `tools` beside messages, whose `tool_calls` are read too. Rows of our own shards are read as they are.

All media are decoded once here, within the caps of `processing/media.py`, so that a bad row is told, by its line,
before anything is trained.

>>> manifest = build(Path("runs/mine/data/cats"), ["cats.jsonl"])
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from polyphi.data import shards
from polyphi.data.schema import OPTIONAL, SCHEMA
from polyphi.data.shards import Sample, Shards
from polyphi.messages import TRANSCRIBE, Audio, Image, Message, Part, Text, with_tools
from polyphi.processing import media
from polyphi.processing.template import DOCUMENT, ROLES
from polyphi.runtime import progress

COLUMNS = (
    *("messages", "question", "answer", "image", "images", "audio", "audios"),
    *("rejected", "id", "licence", "tools"),
)
"""Those of a row that are read."""
HUB = "hf://"
CONVERTED = "@refs%2Fconvert%2Fparquet"
"""The branch of a data set on the hub that holds its automatic conversion to parquet."""
ROWS_AT_ONCE = 16
"""Rows of a parquet file in memory; each may hold megabytes of media."""


def build(
    folder: Path,
    sources: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write sources, one after the other, as the train split of the corpus `folder`, unless it was made from the very
    same files; returns its manifest. `columns` maps our names to those of the rows. Raises ValueError for a row that
    can't be used; with `skip_bad` such rows are counted and left out."""
    columns = columns or {}
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ValueError(f"there is no column {unknown[0]!r}; expected one of {', '.join(COLUMNS)}")
    split, pipeline = folder / "train", _fingerprint(sources, columns)
    if (split / "manifest.json").exists():
        manifest: dict[str, Any] = json.loads((split / "manifest.json").read_text())
        if manifest["pipeline"] == pipeline:
            return manifest
    files = [file for source in sources for file in find(source)]
    if inside := [file for file in files if Path(file).resolve().is_relative_to(folder.resolve())]:
        raise ValueError(
            f"{inside[0]} lies in {folder}, which this run writes; choose another folder for it with --out"
        )
    bad: list[str] = []
    found: Counter[type] = Counter()
    unread: set[str] = set()

    def samples() -> Iterator[Sample]:
        done = 0
        with progress.progress(f"reading {folder.name}", sum(map(_count, files))) as advance:
            for file in files:
                root = None if file.startswith(HUB) else Path(file).parent
                for place, row in _rows(file):
                    done += 1
                    advance(done, "")
                    try:
                        made, unknown = sample(row, place, root, columns)
                    except ValueError as error:
                        if not skip_bad:
                            raise ValueError(f"{error} (--skip-bad leaves such rows out)") from None
                        bad.append(str(error))
                        continue
                    unread.update(unknown)
                    found.update(type(part) for m in made.messages for part in m.parts)
                    yield made

    manifest = shards.write(split, samples(), pipeline=pipeline)
    rest = f"; {len(bad)} left out, the first: {bad[0]}" if bad else ""
    if not manifest["rows"]:
        raise ValueError(f"{', '.join(sources)}: expected rows, found none{rest}")
    tell(
        f"{folder.name}: {manifest['rows']} rows, {found[Image]} pictures, {found[Audio]} clips{rest}"
    )
    if unread:  # a misspelt `image` would be missed by nobody else
        tell(f"  columns that are not read: {', '.join(sorted(unread))}")
    return manifest


def read(
    sources: Sequence[str],
    columns: Mapping[str, str] | None = None,
    bad: Callable[[str], None] | None = None,
) -> Iterator[Sample]:
    """The samples of sources, as `build` writes them. A row that can't be used is a ValueError, or told to `bad` and
    left out."""
    for source in sources:
        for file in find(source):
            root = None if file.startswith(HUB) else Path(file).parent
            for place, row in _rows(file):
                try:
                    yield sample(row, place, root, columns or {})[0]
                except ValueError as error:
                    if bad is None:
                        raise
                    bad(str(error))


def _fingerprint(sources: Sequence[str], columns: Mapping[str, str]) -> str:
    """Changes with the files that are named; media beside them, and the hub, are not looked at again."""
    said: list[Any] = [sorted(columns.items()), *sources]
    for source in sources:
        if not source.startswith("hf:"):
            stats = [(file, Path(file).stat()) for file in find(source)]
            said += [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


# ------------------------------------------------------------------------------ files


def find(source: str) -> list[str]:
    """The files of a source: a .jsonl or .parquet file, a folder of them, or on the hub `hf://datasets/owner/name`
    (short: `hf:owner/name`), or parquet files inside it (`*` matches). Where some say train, only those are taken. A
    data set without parquet files is read from the hub's own conversion. Raises ValueError where there is nothing."""
    if source.startswith("hf:"):
        return _find_on_hub(source)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix in {".jsonl", ".parquet"}:
        return [str(path)]
    found = [
        str(p)
        for kind in ("*.jsonl", "*.parquet")
        for p in sorted(path.rglob(kind))
        # What a folder hides isn't data: where curation keeps what it dropped.
        if not any(part.startswith(".") for part in p.relative_to(path).parts)
    ]
    if not found:
        raise ValueError(
            f"{source}: expected a .jsonl or .parquet file, a folder of them, or hf://datasets/owner/name, found "
            f"{'none in that folder' if path.is_dir() else 'another file' if path.is_file() else 'nothing there'}"
        )
    return _train_split(found, str(path))


def _find_on_hub(source: str) -> list[str]:
    place = "datasets/" + source.removeprefix(HUB).removeprefix("hf:").removeprefix("datasets/")
    try:
        if place.endswith(".parquet"):
            found = _hub().glob(place)
        else:
            found = _hub().glob(f"{place}/**/*.parquet") or _hub().glob(
                f"{place}{CONVERTED}/**/*.parquet"
            )
    except Exception as error:  # the hub client raises a family of network and HTTP errors
        raise ValueError(f"{source} could not be read from the hub: {error}") from error
    if not found:
        raise ValueError(f"{source}: expected parquet files in that data set, found none")
    return [HUB + path for path in _train_split(sorted(found), place)]


def _hub() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def _train_split(files: list[str], under: str) -> list[str]:
    said = re.compile(r"(^|[/._-])train([/._-]|$)")
    return [file for file in files if said.search(file.removeprefix(under))] or files


def _open(file: str) -> Any:
    return _hub().open(file.removeprefix(HUB)) if file.startswith(HUB) else Path(file).open("rb")


def _count(file: str) -> int:
    with _open(file) as opened:
        if file.endswith(".parquet"):
            return int(pq.ParquetFile(opened).metadata.num_rows)
        return sum(bool(line.strip()) for line in opened)


def _rows(file: str) -> Iterator[tuple[str, Any]]:
    """(place for messages, a mapping or its JSON) of every row."""
    with _open(file) as opened:
        if file.endswith(".parquet"):
            batches = pq.ParquetFile(opened).iter_batches(ROWS_AT_ONCE)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, 1))
        else:
            for number, line in enumerate(opened, 1):
                if line.strip():
                    yield f"{file}, line {number}", line


# ------------------------------------------------------------------------------ a row


def sample(
    row: Any, place: str, root: Path | None, columns: Mapping[str, str]
) -> tuple[Sample, set[str]]:
    """A row as a sample, and the columns that it has beside those that are read. Paths start at `root`; None forbids
    them. Raises ValueError that names the place."""
    try:
        row = json.loads(row) if isinstance(row, bytes) else row
        if not isinstance(row, Mapping):
            raise ValueError(f"expected an object, found {type(row).__name__}")
        row = {name: value for name, value in row.items() if value is not None}
        if missing := [theirs for theirs in columns.values() if theirs not in row]:
            raise ValueError(f"expected a column {missing[0]!r}, found {', '.join(row)}")
        row |= {ours: row[theirs] for ours, theirs in columns.items()}
        if set(SCHEMA.names) - OPTIONAL <= set(row):
            made = Shards.parse(row)
            for part in (part for message in made.messages for part in message.parts):
                _whole(part, None)
            _check(made.messages)
            return made, set()
        said = _conversation(row) if "messages" in row else _from_columns(row)
        messages = tuple(
            Message(m.role, tuple(_whole(part, root) for part in m.parts), m.tools) for m in said
        )
        _check(messages)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{place}: expected JSON, {error}") from None
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{place}: {reason}") from None
    meta = {"rejected": row["rejected"]} if "rejected" in row else {}
    file, _, line = place.rpartition(", ")
    id = str(row.get("id") or f"{Path(file).name}, {line}")
    unread = set(row) - set(COLUMNS) - set(columns.values())
    return Sample(id, messages, file, str(row.get("licence", "")), meta), unread


def _conversation(row: Mapping[str, Any]) -> list[Message]:
    said = row["messages"]
    said = json.loads(said) if isinstance(said, str) else said
    waiting = {kind: iter(_media(row, kind)) for kind in ("image", "audio")}

    def part(value: Any) -> Part:
        kind = value.get("type") if isinstance(value, Mapping) else None
        if kind not in waiting:
            return Message.parse({"role": "user", "content": [value]}).parts[0]
        if value.get(kind) is not None:
            return _medium(kind, value[kind])
        if (found := next(waiting[kind], None)) is None:
            raise ValueError(f"a part of type {kind} has no {kind}, and the row no {kind}s left")
        return found

    def message(value: Any) -> Message:
        if not isinstance(value, Mapping):
            raise ValueError(f"a message is an object with role and content, found {value!r:.80}")
        if not isinstance(value.get("content"), list):
            return Message.parse(value)
        parts = tuple(map(part, value["content"]))
        around = Message.parse({**value, "content": ()})  # the role, and calls behind the parts
        return Message(around.role, (*parts, *around.parts), around.tools)

    messages = with_tools([message(value) for value in _answers_in_order(said)], row.get("tools"))
    for kind, rest in waiting.items():
        if next(rest, None) is not None:
            raise ValueError(f'more {kind}s than parts {{"type": "{kind}"}} that say where they go')
    return list(messages)


def _answers_in_order(said: Sequence[Any]) -> list[Any]:
    """The messages, with answers of tools in the order of their calls, for our template has no call ids."""
    places: list[tuple[int, int]] = []  # (turn, place in it)
    turn, calls = 0, dict[Any, int]()
    for value in said:
        read = value if isinstance(value, Mapping) else {}
        if (place := calls.get(read.get("tool_call_id"))) is None:
            turn += 1
            calls = {call.get("id"): i for i, call in enumerate(read.get("tool_calls") or (), 1)}
        places.append((turn, place or 0))
    return [said[i] for i in sorted(range(len(said)), key=places.__getitem__)]


def _from_columns(row: Mapping[str, Any]) -> list[Message]:
    if "answer" not in row:
        raise ValueError(
            "expected `messages`, or `answer` with `question`, `image` or `audio`; found "
            f"{', '.join(row) or 'nothing'} (--columns answer=NAME says which column it is)"
        )
    pictures, clips = _media(row, "image"), _media(row, "audio")
    question = row.get("question", TRANSCRIBE if clips and not pictures else "")
    asked = (*pictures, *clips, *((Text(question),) if question else ()))
    return [Message("user", asked), Message.assistant(row["answer"])]


def _media(row: Mapping[str, Any], kind: str) -> list[Part]:
    """What stands in the columns `image` and `images`, or `audio` and `audios`."""
    found: list[Part] = []
    for value in (row[name] for name in (kind, f"{kind}s") if name in row):
        found += [_medium(kind, v) for v in (value if isinstance(value, list) else [value])]
    return found


def _medium(kind: str, value: Any) -> Part:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise ValueError(f"expected a path or bytes as {kind}, found {type(value).__name__}")
    return Image(value) if kind == "image" else Audio(value)


def _whole(part: Part, root: Path | None) -> Part:
    """The part with a picture or clip as bytes, which were decoded once to see whether they can be."""
    if isinstance(part, Text):
        return part
    source = part.source
    assert not isinstance(source, tuple)
    if not isinstance(source, bytes):
        if root is None:
            raise ValueError(f"expected bytes in a data set of the hub, found the path {source}")
        source = root / source
    if isinstance(part, Image):
        media.decode_image(source)
    else:
        media.decode_audio(source)
    return type(part)(source if isinstance(source, bytes) else source.read_bytes())


def _check(messages: Sequence[Message]) -> None:
    """What training would stumble over later."""
    for message in messages:
        if message.role not in (*ROLES, DOCUMENT):
            raise ValueError(f"unknown role {message.role!r}; expected one of {', '.join(ROLES)}")
        texts = [part.text for part in message.parts if isinstance(part, Text)]
        for text in (*texts, message.tools or ""):
            if not isinstance(text, str):
                raise ValueError(f"expected text, found {type(text).__name__} {text!r:.80}")
    last = messages[-1].role if messages else "nothing"
    if last not in ("assistant", DOCUMENT):
        raise ValueError(f"a conversation ends with the assistant's answer, found {last} last")
    if not messages[-1].text.strip():
        raise ValueError("the answer is empty; expected some text to learn")

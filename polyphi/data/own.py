"""Custom data -> samples: JSON lines or parquet, local or on the Hugging Face hub.

A row has one of two forms, `messages` or columns::

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "cat.png"},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A cat."}]}
    {"image": "cat.png", "question": "What is this?", "answer": "A cat."}

Images and audio (`image`, `audio`; in columns also lists of them) are paths relative to the file, bytes, or the hub's
{"bytes", "path"}; OpenAI's parts `image_url` and `input_audio` are read as well. A part without a value,
{"type": "image"}, takes the next of the row's `images` or `audios`. The default question of a row of columns with audio
only is a request for a transcript. Both forms may have `id`, `licence` and `rejected` (the dispreferred answer, for
DPO: a text or an assistant message); TRL's `prompt`, `chosen` and `rejected` are read as well. `messages` may have
OpenAI's `tools` and `tool_calls`, and an answer `reasoning_content` (or `reasoning`), which is trained as
`<think>...</think>` before the answer; where it is left out of earlier answers, only the last one is supervised. Rows
of polyphi's shards are read unchanged.

All media are decoded once here, within the limits of `processing/media.py`, so that a bad row is reported with its line
before the training starts.

>>> manifest = build(Path("runs/mine/data/cats"), ["cats.jsonl"])
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polyphi.data import shards
from polyphi.data.sample import Sample
from polyphi.data.schema import OPTIONAL, SCHEMA
from polyphi.data.shards import Shards
from polyphi.messages import TRANSCRIBE, Audio, Image, Message, Part, Text, with_tools
from polyphi.processing import media
from polyphi.processing.reasoning import with_reasoning
from polyphi.processing.template import DOCUMENT, ROLES
from polyphi.runtime import progress
from polyphi.runtime.files import write_json

COLUMNS = (
    *("messages", "question", "answer", "image", "images", "audio", "audios"),
    *("rejected", "id", "licence", "tools", "prompt", "chosen"),
)
"""Columns of a row that are read."""
HUB = "hf://"
CONVERTED_BRANCH = "@refs%2Fconvert%2Fparquet"
"""The branch of a data set on the hub with its automatic conversion to parquet."""
ROWS_PER_BATCH = 16
"""Rows of a parquet file in memory at a time; each may hold megabytes of media."""


def build(
    folder: Path,
    sources: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    split: str = "train",
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write sources, in order, as a split of the corpus `folder`, unless it was made from the same files, and return
    its manifest, in which `left_out` is the number of unusable rows. `columns` maps names of `COLUMNS` to those of the
    rows. Raises ValueError for an unusable row; with `skip_bad` such rows are counted and left out."""
    columns = columns or {}
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ValueError(f"there is no column {unknown[0]!r}; expected one of {', '.join(COLUMNS)}")
    path, pipeline = folder / split / "manifest.json", _fingerprint(sources, columns)
    if path.exists():
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest["pipeline"] == pipeline:
            return manifest
    files = [file for source in sources for file in find(source)]
    if inside := [file for file in files if Path(file).resolve().is_relative_to(folder.resolve())]:
        raise ValueError(
            f"{inside[0]} lies in {folder}, which this run writes; choose another folder for it with --out"
        )
    errors: list[str] = []
    part_counts: Counter[type] = Counter()
    unused_columns: set[str] = set()

    def samples() -> Iterator[Sample]:
        count = 0
        with progress.progress(f"reading {folder.name}", sum(map(_count, files))) as advance:
            for file in files:
                root = None if file.startswith(HUB) else Path(file).parent
                for location, row in _rows(file):
                    count += 1
                    advance(count, "")
                    try:
                        parsed, unknown = sample(row, location, root, columns)
                    except ValueError as error:
                        if not skip_bad:
                            raise ValueError(f"{error} (--skip-bad leaves such rows out)") from None
                        errors.append(str(error))
                        continue
                    unused_columns.update(unknown)
                    part_counts.update(type(part) for m in parsed.messages for part in m.parts)
                    yield parsed

    manifest = shards.write(folder / split, samples(), pipeline=pipeline)
    manifest["left_out"] = len(errors)
    write_json(path, manifest)
    left_out = f"; {len(errors)} left out, the first: {errors[0]}" if errors else ""
    if not manifest["rows"]:
        raise ValueError(f"{', '.join(sources)}: expected rows, found none{left_out}")
    name = folder.name if split == "train" else f"{folder.name} ({split})"
    report(
        f"{name}: {manifest['rows']} rows, {part_counts[Image]} pictures, {part_counts[Audio]} clips{left_out}"
    )
    if unused_columns:  # otherwise a misspelt `image` would go unnoticed
        report(f"  columns that are not read: {', '.join(sorted(unused_columns))}")
    return manifest


def read(
    sources: Sequence[str],
    columns: Mapping[str, str] | None = None,
    bad: Callable[[str], None] | None = None,
) -> Iterator[Sample]:
    """Yield the samples of sources, as `build` writes them. An unusable row raises ValueError, or, with `bad`, is left
    out and `bad` is called with the message."""
    for source in sources:
        for file in find(source):
            root = None if file.startswith(HUB) else Path(file).parent
            for location, row in _rows(file):
                try:
                    yield sample(row, location, root, columns or {})[0]
                except ValueError as error:
                    if bad is None:
                        raise
                    bad(str(error))


def _fingerprint(sources: Sequence[str], columns: Mapping[str, str]) -> str:
    """Return a hash of the names, sizes and times of the files; their media and the hub are not included."""
    parts: list[Any] = [sorted(columns.items()), *sources]
    for source in sources:
        if not source.startswith("hf:"):
            stats = [(file, Path(file).stat()) for file in find(source)]
            parts += [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ------------------------------------------------------------------------------ files


def find(source: str) -> list[str]:
    """Return the files of a source: a .jsonl or .parquet file, a folder of them, or on the hub
    `hf://datasets/owner/name` (short: `hf:owner/name`) or parquet files inside it (with `*`). If some paths contain
    "train", only those are returned. A data set without parquet files is read from the hub's conversion. Raises
    ValueError without files."""
    if source.startswith("hf:"):
        return _find_on_hub(source)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix in {".jsonl", ".parquet"}:
        return [str(path)]
    files = [
        str(p)
        for pattern in ("*.jsonl", "*.parquet")
        for p in sorted(path.rglob(pattern))
        # Hidden folders aren't data: curation stores dropped rows there.
        if not any(part.startswith(".") for part in p.relative_to(path).parts)
    ]
    if not files:
        raise ValueError(
            f"{source}: expected a .jsonl or .parquet file, a folder of them, or hf://datasets/owner/name, found "
            f"{'none in that folder' if path.is_dir() else 'another file' if path.is_file() else 'nothing there'}"
        )
    return _train_split(files, str(path))


def _find_on_hub(source: str) -> list[str]:
    path = "datasets/" + source.removeprefix(HUB).removeprefix("hf:").removeprefix("datasets/")
    try:
        if path.endswith(".parquet"):
            files = _hub().glob(path)
        else:
            files = _hub().glob(f"{path}/**/*.parquet") or _hub().glob(
                f"{path}{CONVERTED_BRANCH}/**/*.parquet"
            )
    except Exception as error:  # the hub client raises a family of network and HTTP errors
        raise ValueError(f"{source} could not be read from the hub: {error}") from error
    if not files:
        raise ValueError(f"{source}: expected parquet files in that data set, found none")
    return [HUB + file for file in _train_split(sorted(files), path)]


def _hub() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def _train_split(files: list[str], under: str) -> list[str]:
    train = re.compile(r"(^|[/._-])train([/._-]|$)")
    return [file for file in files if train.search(file.removeprefix(under))] or files


def _open(file: str) -> Any:
    if file.startswith(HUB):
        return _hub().open(file.removeprefix(HUB))
    # Arrow's own file for the reason in `Shards._open`.
    return pa.OSFile(file) if file.endswith(".parquet") else Path(file).open("rb")


def _count(file: str) -> int:
    with _open(file) as stream:
        if file.endswith(".parquet"):
            return int(pq.ParquetFile(stream).metadata.num_rows)
        return sum(bool(line.strip()) for line in stream)


def _rows(file: str) -> Iterator[tuple[str, Any]]:
    """Yield (location for error messages, a mapping or its JSON) of every row."""
    with _open(file) as stream:
        if file.endswith(".parquet"):
            batches = pq.ParquetFile(stream).iter_batches(ROWS_PER_BATCH)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, 1))
        else:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{file}, line {number}", line


# ------------------------------------------------------------------------------ a row


def sample(
    row: Any, location: str, root: Path | None, columns: Mapping[str, str]
) -> tuple[Sample, set[str]]:
    """Return a row as a sample, and its columns that are not read. Paths are relative to `root`; None forbids them.
    Raises ValueError with the location."""
    try:
        row = json.loads(row) if isinstance(row, bytes) else row
        if not isinstance(row, Mapping):
            raise ValueError(f"expected an object, found {type(row).__name__}")
        row = {name: value for name, value in row.items() if value is not None}
        if missing := [column for column in columns.values() if column not in row]:
            raise ValueError(f"expected a column {missing[0]!r}, found {', '.join(row)}")
        row |= {name: row[column] for name, column in columns.items()}
        if set(SCHEMA.names) - OPTIONAL <= set(row):
            parsed = Shards.parse(row)
            for part in (part for message in parsed.messages for part in message.parts):
                _with_bytes(part, None)
            _check(parsed.messages)
            return parsed, set()
        row, columns_of_row = _preference(row), set(row)
        conversation, meta = _conversation(row) if "messages" in row else (_from_columns(row), {})
        if "rejected" in row:
            meta["rejected"] = _answer_text(row["rejected"])
        messages = tuple(
            Message(m.role, tuple(_with_bytes(part, root) for part in m.parts), m.tools)
            for m in conversation
        )
        _check(messages)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{location}: expected JSON, {error}") from None
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{location}: {reason}") from None
    file, _, line = location.rpartition(", ")
    id = str(row.get("id") or f"{Path(file).name}, {line}")
    unused_columns = columns_of_row - set(COLUMNS) - set(columns.values())
    return Sample(id, messages, file, str(row.get("licence", "")), meta), unused_columns


def _preference(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with TRL's columns `chosen` and `rejected` as one with `question` and `answer`, or with `messages`
    and the dispreferred answer as `rejected`. The prompt may be in `prompt`, or begin both conversations."""
    if "chosen" not in row or "answer" in row:
        return row
    prompt, chosen, rejected = row.get("prompt", ()), row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(prompt, str):
        return {**row, "question": prompt, "answer": chosen}
    prompt, chosen, rejected = (
        [{"role": role, "content": value}] if isinstance(value, str) else list(value)
        for role, value in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
    )
    same = [one == two for one, two in zip(chosen, rejected, strict=False)]
    shared = chosen[: [*same, False].index(False)]
    if shared and isinstance(shared[0], Mapping) and shared[0].get("role") != "assistant":
        prompt = []  # it is the beginning of both
    if (len(chosen) - len(shared), len(rejected) - len(shared)) != (1, 1):
        raise ValueError(
            "expected `chosen` and `rejected` to differ in their last message alone, found "
            f"{len(chosen)} and {len(rejected)} messages of which the first {len(shared)} are equal"
        )
    return {**row, "messages": [*prompt, *chosen], "rejected": rejected[-1]}


def _answer_text(value: Any) -> str:
    """Return the text of a dispreferred answer, which is a text or an assistant message, alone or in a list."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        message = Message.parse(with_reasoning([value])[0][0])
        if message.role == "assistant" and all(isinstance(part, Text) for part in message.parts):
            return message.text
    if not isinstance(value, str):
        raise ValueError(
            f"expected the rejected answer as a text or one assistant message of text, found {value!r:.80}"
        )
    return value


def _conversation(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
    raw_messages = row["messages"]
    raw_messages = json.loads(raw_messages) if isinstance(raw_messages, str) else raw_messages
    raw_messages, omitted = with_reasoning(raw_messages)
    media_parts = {modality: iter(_media(row, modality)) for modality in ("image", "audio")}

    def part(value: Any) -> Part:
        modality = value.get("type") if isinstance(value, Mapping) else None
        if modality not in media_parts:
            return Message.parse({"role": "user", "content": [value]}).parts[0]
        if value.get(modality) is not None:
            return _medium(modality, value[modality])
        if (media_part := next(media_parts[modality], None)) is None:
            raise ValueError(f"a part of type {modality} without {modality}, no {modality}s left")
        return media_part

    def message(value: Any) -> Message:
        if not isinstance(value, Mapping):
            raise ValueError(f"a message is an object with role and content, found {value!r:.80}")
        if not isinstance(value.get("content"), list):
            return Message.parse(value)
        parts = tuple(map(part, value["content"]))
        rest = Message.parse({**value, "content": ()})  # the role, and calls behind the parts
        return Message(rest.role, (*parts, *rest.parts), rest.tools)

    messages = with_tools(
        [message(value) for value in _answers_in_order(raw_messages)], row.get("tools")
    )
    for modality, remaining in media_parts.items():
        if next(remaining, None) is not None:
            raise ValueError(f'more {modality}s than parts {{"type": "{modality}"}} for them')
    # Answers without their reasoning would train the model to answer without it.
    return list(messages), {"supervise": "last answer"} if omitted else {}


def _answers_in_order(raw_messages: Sequence[Any]) -> list[Any]:
    """Return the messages with answers of tools in the order of their calls: the chat template has no call ids."""
    order: list[tuple[int, int]] = []  # (turn, position in it)
    turn, calls = 0, dict[Any, int]()
    for value in raw_messages:
        fields = value if isinstance(value, Mapping) else {}
        if (position := calls.get(fields.get("tool_call_id"))) is None:
            turn += 1
            calls = {call.get("id"): i for i, call in enumerate(fields.get("tool_calls") or (), 1)}
        order.append((turn, position or 0))
    return [raw_messages[i] for i in sorted(range(len(raw_messages)), key=order.__getitem__)]


def _from_columns(row: Mapping[str, Any]) -> list[Message]:
    if "answer" not in row:
        raise ValueError(
            "expected `messages`, or `answer` with `question`, `image` or `audio`; found "
            f"{', '.join(row) or 'nothing'} (--columns answer=NAME says which column it is)"
        )
    images, audios = _media(row, "image"), _media(row, "audio")
    question = row.get("question", TRANSCRIBE if audios and not images else "")
    parts = (*images, *audios, *((Text(question),) if question else ()))
    return [Message("user", parts), Message.assistant(row["answer"])]


def _media(row: Mapping[str, Any], modality: str) -> list[Part]:
    """Return the media of the columns `image` and `images`, or `audio` and `audios`."""
    parts: list[Part] = []
    for value in (row[name] for name in (modality, f"{modality}s") if name in row):
        parts += [_medium(modality, v) for v in (value if isinstance(value, list) else [value])]
    return parts


def _medium(modality: str, value: Any) -> Part:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise ValueError(f"expected a path or bytes as {modality}, found {type(value).__name__}")
    return Image(value) if modality == "image" else Audio(value)


def _with_bytes(part: Part, root: Path | None) -> Part:
    """Return the part with its media as bytes, after a test decoding. Raises ValueError if that fails."""
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
    """Raise ValueError for messages that training can't use."""
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

"""Responses of models and endpoints on disk, so that a run that was killed resumes and no request is sent twice.

>>> cache = ResponseCache(Path("work/answers"))
>>> request = {"teacher": "phi", "messages": messages_json(messages), "seed": 3}
>>> cache.get(request, lambda: endpoint.chat(messages).text)
'Seven.'

A response is a line of `FOLDER/NAME.jsonl`, on the disk before it is returned. Its `key` is a hash of all that it
depends on. Threads and processes may share a file: the first response to a request stays. A line that a kill cut off is
ignored. The files of the parts of a run on several machines, `FOLDER/NAME.*.jsonl`, are read as one.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from polyphi.runtime.files import appending
from polyphi.types.messages import Message
from polyphi.types.parts import Part, Text

SURROGATE = re.compile("[\ud800-\udfff]")
CacheLine = dict[str, Any]


class ResponseCache:
    """Responses by key. `sent` counts the requests of `get` that weren't cached, `cached` the others."""

    def __init__(self, folder: Path, name: str = "answers") -> None:
        self.path = Path(folder) / f"{name}.jsonl"
        self.sent = self.cached = 0
        self._positions: dict[str, tuple[Path, int]] = {}  # key -> file and offset of its line
        self._end = 0  # of the part of `path` that was read
        self._lock = threading.RLock()
        # One lock per 1/4096 of the keys: equal requests wait for each other, others rarely do.
        self._requests = [threading.Lock() for _ in range(4096)]
        stem = name.partition(".")[0]
        parts = {*Path(folder).glob(f"{stem}.jsonl"), *Path(folder).glob(f"{stem}.*.jsonl")}
        for path in sorted(parts):
            end = self._read(path)
            self._end = end if path == self.path else self._end

    def __len__(self) -> int:
        """The number of stored responses."""
        with self._lock:
            return len(self._positions)

    def get(self, request: Mapping[str, Any], respond: Callable[[], Any]) -> Any:
        """The stored response to a request (a JSON value), or that of `respond`, which is then stored."""
        key = request_key(request)
        with self._requests[int(key[:3], 16)]:
            line, cached = self.find(key), True
            if line is None:
                line, cached = {"request": request, "answer": respond()}, False
                line = self.store({key: line})[key]
        with self._lock:
            self.sent, self.cached = self.sent + (not cached), self.cached + cached
        return line["answer"]

    def find(self, key: str) -> CacheLine | None:
        """The line with a key, None without one."""
        with self._lock:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size < self._end:  # the file was replaced
                self._end = 0
            if size > self._end:  # what other processes stored
                self._end = self._read(self.path, self._end)
            if key not in self._positions:
                return None
            path, offset = self._positions[key]
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(offset)
            line = _parse(file.readline())
            if line and line.get("key") == key:
                return line
        return None  # the file was replaced

    def store(self, lines: Mapping[str, CacheLine]) -> dict[str, CacheLine]:
        """Store lines by key, and return the stored ones: another process's, if it was first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, appending(self.path) as write:
            stored = {key: self.find(key) for key in lines}
            new = {key: {"key": key, **lines[key]} for key, line in stored.items() if line is None}
            # In one write: lines stay whole on a file system without locks.
            write("".join(map(dump, new.values())).encode())
            self._end = self._read(self.path, self._end)
        return {key: line or new[key] for key, line in stored.items()}

    def _read(self, path: Path, start: int = 0) -> int:
        """Add the whole lines of a file from an offset on, and return their end."""
        with path.open("rb") as file:
            file.seek(start)
            for text in file:
                if not text.endswith(b"\n"):
                    break
                if (line := _parse(text)) and isinstance(line.get("key"), str) and line["key"]:
                    self._positions[line["key"]] = path, start
                start += len(text)
        return start


# ---------------------------------------------------------------------- lines


def dump(line: Mapping[str, Any]) -> str:
    """A line of a JSON lines file. Lone surrogates, which UTF-8 can't encode, are escaped."""
    text = json.dumps(line, ensure_ascii=False)
    return (json.dumps(line) if SURROGATE.search(text) else text) + "\n"


def whole_lines(path: Path) -> Iterator[CacheLine]:
    """The objects of a JSON lines file, without incomplete lines."""
    # In binary: lines end with b"\n" alone, and answers may contain other line separators.
    with path.open("rb") as file:
        yield from filter(None, map(_parse, file))


def _parse(text: bytes) -> CacheLine | None:
    try:
        line = json.loads(text.decode(errors="replace"))
    except (json.JSONDecodeError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


# ---------------------------------------------------------------------- keys


def request_key(request: Mapping[str, Any]) -> str:
    """The SHA-256 of a request."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def messages_json(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as JSON, its media as their SHA-256."""

    def part(p: Part) -> dict[str, Any]:
        if isinstance(p, Text):
            return {"text": p.text}
        return {type(p).__name__.lower(): media_sha256(p), **media_settings(p)}

    return [
        {"role": m.role, "parts": [part(p) for p in m.parts], "tools": m.tools} for m in messages
    ]


def media_sha256(part: Part) -> str:
    """The SHA-256 of the contents of a media part."""
    assert not isinstance(part, Text)
    if isinstance(part.source, tuple):
        samples, rate = part.source
        data = np.ascontiguousarray(samples).tobytes() + str(rate).encode()
    else:
        data = part.source if isinstance(part.source, bytes) else Path(part.source).read_bytes()
    return hashlib.sha256(data).hexdigest()


def media_settings(part: Part) -> dict[str, Any]:
    """The fields of a media part other than its content (`detail`, `max_crops`, `frames`) that don't have their
    default."""
    return {
        f.name: value
        for f in fields(part)
        if f.name != "source" and (value := getattr(part, f.name)) != f.default
    }

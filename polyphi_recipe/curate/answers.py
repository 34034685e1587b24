"""A cache of a model's answers on disk: `FOLDER/ab/abcd....json`, one file per answer, written atomically. The file
name is the SHA-256 of everything that the answer depends on; the file holds the request and the answer.

>>> cache = AnswerCache(Path("answers"))
>>> key = cache.key({"teacher": "phi", "messages": messages_json(messages), "seed": 3})
>>> cache.find(key) or cache.store(key, {...}, "Seven.")

Threads and processes may share a folder: the first answer to a request is the one that is kept.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.messages import Message, Text


def messages_json(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as JSON, media as their SHA-256. Raises ValueError if media aren't encoded bytes."""

    def part(p: Any) -> dict[str, str]:
        if isinstance(p, Text):
            return {"text": p.text}
        if not isinstance(p.source, bytes):
            raise ValueError(
                f"expected media as encoded bytes, as shards hold them; found {type(p.source).__name__}"
            )
        return {type(p).__name__.lower(): hashlib.sha256(p.source).hexdigest()}

    return [
        {"role": m.role, "parts": [part(p) for p in m.parts], "tools": m.tools} for m in messages
    ]


class AnswerCache:
    """Answers (JSON values, never null) by the hash of their request."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @staticmethod
    def key(request: Mapping[str, Any]) -> str:
        """Return the SHA-256 of a request."""
        text = json.dumps(request, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()

    def find(self, key: str) -> Any:
        """Return the stored answer, or None. Raises ValueError if its file is damaged."""
        path = self._path(key)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["answer"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path} is damaged: expected an answer in JSON; delete it to request the answer again"
            ) from None

    def store(self, key: str, request: Mapping[str, Any], answer: Any) -> Any:
        """Store an answer and return the stored one: another process's, if that was first."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}.partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump({"request": request, "answer": answer}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # unlike a rename, it replaces nothing
        except FileExistsError:
            answer = self.find(key) or answer
        except OSError:  # a file system without hard links
            partial.replace(path)
            return answer
        partial.unlink()
        return answer

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

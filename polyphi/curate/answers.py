"""A model's answers on disk, so that nothing is asked twice: `FOLDER/ab/abcd....json`, one file each, there whole or
not at all. The name is the SHA-256 of all that the answer depends on; it stands beside the answer.

>>> kept = Kept(Path("answers"))
>>> key = kept.key({"teacher": "phi", "messages": told(messages), "seed": 3})
>>> kept.find(key) or kept.keep(key, {...}, "Seven.")

Threads and processes may share a folder: of two answers to one request the first stays.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.messages import Message, Text


def told(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as JSON, media by their SHA-256. Raises ValueError where media aren't encoded bytes."""

    def part(p: Any) -> dict[str, str]:
        if isinstance(p, Text):
            return {"text": p.text}
        if not isinstance(p.source, bytes):
            raise ValueError(
                f"a model is shown encoded bytes, as shards hold them; found {type(p.source).__name__}"
            )
        return {type(p).__name__.lower(): hashlib.sha256(p.source).hexdigest()}

    return [
        {"role": m.role, "parts": [part(p) for p in m.parts], "tools": m.tools} for m in messages
    ]


class Kept:
    """Answers (JSON values, never null) by what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @staticmethod
    def key(request: Mapping[str, Any]) -> str:
        """The name of what was asked."""
        text = json.dumps(request, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()

    def find(self, key: str) -> Any:
        """The answer on disk, or None. Raises ValueError where its file is damaged."""
        path = self._path(key)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["answer"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path} is damaged: it should hold an answer in JSON; delete it to ask again"
            ) from None

    def keep(self, key: str, request: Mapping[str, Any], answer: Any) -> Any:
        """The answer that is kept: another process's, where one was faster."""
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

"""A fake server for the page's tests: it serves the page, implements the server's API without a model, and records
every request."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from polyphi.serve.page import page

RICH = """Here is what I see, in **short**:

1. A *spiral* of about 60 seeds
2. Two families of arcs, `21` and `34`
   - both are Fibonacci numbers
   - their ratio is close to $\\varphi$

The golden ratio solves a quadratic equation:

$$\\varphi = \\frac{1 + \\sqrt{5}}{2} \\approx 1.618, \\qquad \\lim_{n \\to \\infty} \\frac{F_{n+1}}{F_n} = \\varphi$$

| Family | Arcs | Direction |
|:--|--:|:-:|
| inner | 21 | left |
| outer | 34 | right |

```python
def fib(n: int) -> int:
    # a loop, not a recursion
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
```

> Nature uses as little as possible of anything.

More on [phyllotaxis](https://example.org/phyllotaxis)."""

HOSTILE = """<script>alert('xss')</script><img src=x onerror="alert('xss')">
<svg onload=alert('xss')></svg> <iframe src="javascript:alert('xss')"></iframe>

[click me](javascript:alert('xss')) [or me](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)
[and me]( vbscript:alert(1) ) ![p](/stolen.png) ![q](https://evil.invalid/pixel.png) <javascript:alert(1)>

| <img src=/stolen.png onerror=alert(1)> | b |
|---|---|
| `<script>alert(1)</script>` | <b onmouseover=alert(1)>x</b> |

```"><img src=/stolen.png onerror=alert(1)>
"><img src=/stolen.png onerror=alert(1)>
</code></pre><script>alert('xss')</script>
```

$\\text{<img src=/stolen.png onerror=alert(1)>}$
$\\href{javascript:alert(1)}{x}$ $$\\unknown{<script>alert(1)</script>}$$
"""

PROPS: dict[str, Any] = {
    "model": "phi-mock",
    "modalities": {"image": True, "audio": True, "video": True},
    "containers": True,
    "documents": True,
    "image_formats": [
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/avif",
        "image/heic",
    ],
    "adapters": ["vision", "speech"],
    "context": 131072,
    "languages": {"de": "German", "en": "English", "fr": "French", "ja": "Japanese"},
    "limits": {
        "max_image_bytes": 1 << 20,
        "max_image_pixels": 4_000_000,
        "max_audio_bytes": 8 << 20,
        "max_audio_seconds": 1800,
        "max_recording_seconds": 14400,
        "max_body_bytes": 100 << 20,
        "max_document_bytes": 1 << 20,
        "max_document_pages": 20,
        "max_parts": 256,
        "max_answers": 8,
        "max_tokens": 16384,
    },
    "sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 256},
    "structured": True,
    "version": "0.1.0",
}
SAID = "Guten Morgen & willkommen. Wir <b>beginnen</b> --> jetzt."
WORDS = [
    {"word": word, "start": 0.1 * n, "end": 0.1 * n + 0.1, "source": "estimated"}
    for n, word in enumerate(SAID.split())
]
TRANSLATION = "Good morning and welcome. We begin now."
AUDIO_FIELDS = {"file", "filename", "model", "response_format", "chunking_strategy"}


@dataclass
class PageServer:
    """`with PageServer() as server:` listens on a free port until the block ends."""

    props: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(PROPS)))
    key: str | None = None
    pace: float = 0.01
    """Seconds between two pieces of an answer."""
    seen: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and body (JSON, or the fields of a form) of every request."""
    left: list[str] = field(default_factory=list)
    """Paths of the requests whose client disconnected before the answer."""

    def __enter__(self) -> Self:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        config = uvicorn.Config(self._app(), log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.socket.close()

    def bodies(self, path: str) -> list[Any]:
        return [body for _, other, body in self.seen if other == path]

    def _app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.get("/")
        async def root() -> Response:
            return Response(page.PAGE, headers=page.HEADERS)

        @app.api_route("/{path:path}", methods=["GET", "POST"])
        async def rest(request: Request, path: str) -> Response:
            path = f"/{path}"
            if request.headers.get("content-type", "").startswith("multipart/"):
                form = await request.form()
                body: Any = {}
                for name, value in form.multi_items():
                    content = await value.read() if hasattr(value, "read") else value
                    body[name] = f"{body[name]},{content}" if name in body else content
                body["filename"] = getattr(form.get("file"), "filename", None)
            else:
                raw = await request.body()
                body = json.loads(raw) if raw else None
            self.seen.append((request.method, path, body))
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return _error(401, "an API key is needed", code="invalid_api_key")
            return await self._answer(request, path, body)

        return app

    async def _answer(self, request: Request, path: str, body: Any) -> Response:
        if path == "/props":
            return JSONResponse(self.props)
        if path == "/v1/models":
            names = [self.props["model"], "phi-alias", *self.props["adapters"]]
            return JSONResponse({"object": "list", "data": [{"id": name} for name in names]})
        if path == "/tokenize":
            return JSONResponse(self._tokens(body))
        if path == "/v1/chat/completions":
            return await self._chat(request, body)
        if path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
            return self._transcript(path, body)
        return _error(404, f"there is no {path}")

    def _transcript(self, path: str, body: dict[str, Any]) -> Response:
        own = {"to_language", "cot"} if "translations" in path else {"timestamp_granularities[]"}
        if strange := body.keys() - AUDIO_FIELDS - own:
            return _error(400, f"unknown field {min(strange)!r}", param=min(strange))
        transcript: dict[str, Any] = {"language": "unknown", "duration": 1.25, "warnings": []}
        segment: dict[str, Any] = {"id": 0, "start": 0.0, "end": 1.25, "source": "window"}
        if "transcriptions" in path:
            return JSONResponse(
                {
                    **transcript,
                    "text": SAID,
                    "segments": [{**segment, "text": SAID}],
                    "words": WORDS,
                }
            )
        segment["text"] = TRANSLATION
        if body.get("cot"):
            transcript["transcript"] = segment["transcript"] = SAID
        return JSONResponse({**transcript, "text": TRANSLATION, "segments": [segment]})

    def _tokens(self, body: dict[str, Any]) -> dict[str, int]:
        texts = [body["prompt"]] if "prompt" in body else []
        images = audios = 0
        for message in body.get("messages", ()):
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            texts += [part["text"] for part in parts if part["type"] == "text"]
            images += sum(part["type"] == "image_url" for part in parts)
            audios += sum(part["type"] == "input_audio" for part in parts)
            images += sum(
                part["type"] == "file" and "application/pdf" in part["file"]["file_data"]
                for part in parts
            )
        words = sum(len(text.split()) for text in texts)
        count = {"text_tokens": words, "image_tokens": 1093 * images, "audio_tokens": 25 * audios}
        return {**count, "count": sum(count.values()), "max_model_len": self.props["context"]}

    async def _chat(self, request: Request, body: dict[str, Any]) -> Response:
        content = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else content[-1].get("text", "")
        if match := re.match(r"refuse (\S+)", prompt):
            return _error(400, "this <b>picture</b> can't be read", param=match[1])
        counts = self._tokens(body)
        answer = {"rich": RICH, "hostile": HOSTILE}.get(
            prompt.split(" ")[0], f"You said: {prompt} 🙂é"
        )
        if body.get("continue_final_message"):
            answer = "" if "complete" in prompt else " And more."
        elif prompt == "nothing" and not body.get("temperature"):
            answer = ""
        usage = {
            "prompt_tokens": counts["count"],
            "completion_tokens": len(answer) // 4,
            "total_tokens": counts["count"] + len(answer) // 4,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "image_tokens": counts["image_tokens"],
                "audio_tokens": counts["audio_tokens"],
            },
        }
        adapter = "vision" if counts["image_tokens"] else None
        adapter = adapter or ("speech" if counts["audio_tokens"] else None)

        async def stream() -> AsyncIterator[bytes]:
            def chunk(**more: Any) -> bytes:
                head = {"id": "x", "object": "chat.completion.chunk", "adapter": adapter}
                return f"data: {json.dumps({**head, **more}, ensure_ascii=False)}\n\n".encode()

            def delta(finish: str | None = None, **values: str) -> bytes:
                return chunk(choices=[{"index": 0, "delta": values, "finish_reason": finish}])

            try:
                if "never" in prompt:
                    await asyncio.sleep(3600)
                yield delta(role="assistant", content="")
                if "think" in prompt:
                    for piece in ("one <b>and", "</b> two"):
                        yield delta(reasoning_content=piece, reasoning=piece)
                for at in range(0, len(answer), 6):
                    piece = delta(content=answer[at : at + 6])
                    # Letters of several bytes may be cut in two on their way.
                    for half in (piece[: len(piece) // 2], piece[len(piece) // 2 :]):
                        yield half
                        await asyncio.sleep(self.pace * (60 if "slowly" in prompt else 1) / 2)
                    if "break" in prompt:
                        failure = {"message": "out of memory", "type": "server_error"}
                        yield f"data: {json.dumps({'error': failure})}\n\n".encode()
                        return
                yield delta("length" if "long" in prompt else "stop")
                yield chunk(choices=[], usage=usage)
                yield b"data: [DONE]\n\n"
            except asyncio.CancelledError:
                self.left.append(request.url.path)
                raise

        return StreamingResponse(stream(), media_type="text/event-stream")


def _error(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Response:
    kind = "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status)

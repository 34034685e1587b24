"""A local endpoint that answers from recorded pairs, records its requests and fails on demand."""

import base64
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

Answer = str | Sequence[str] | Mapping[str, Any]


class Replay:
    """`chats` maps a piece of a prompt, or the SHA-256 of a picture or clip in it, to the answer; a list holds an
    answer for each seed, a mapping is sent as JSON. `clips` maps a text to its speech, `transcripts` a clip to text.

    `faults` are applied one by one, each to one request: an int is a status, (status, headers, body), "cut" (the
    connection breaks before the head), "half" (in the middle of the body), "torn" (likewise, of an error),
    "garbage" (not JSON), "drip" (a byte each 0.1 s, for 60 s), "endless" or a float (seconds of silence). With a
    `key`, other keys are rejected with an error that quotes them. `port` 0 is a free one."""

    def __init__(
        self,
        chats: Mapping[str, Answer] = {},
        *,
        clips: Mapping[str, bytes] = {},
        transcripts: Mapping[bytes, str] = {},
        key: str = "",
        seconds: float = 0.0,
        port: int = 0,
    ) -> None:
        self.chats, self.clips, self.transcripts, self.key = chats, clips, transcripts, key
        self.seconds, self.port = seconds, port
        self.faults: list[Any] = []
        self.requests: list[dict[str, Any]] = []  # bodies, in order of arrival
        self.headers: list[str] = []
        self.under_way, self.most_under_way = 0, 0
        self.open: list[http.server.BaseHTTPRequestHandler] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        replay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                replay.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.where = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        path = handler.path.removeprefix("/v1")
        body = {"file": data} if path == "/audio/transcriptions" else json.loads(data)
        with self.lock:
            self.requests.append(body)
            self.headers.append(str(handler.headers))
            self.under_way += 1
            self.open.append(handler)
            self.most_under_way = max(self.most_under_way, self.under_way)
            fault = self.faults.pop(0) if self.faults else None
        try:
            self.give(handler, path, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has disconnected
        finally:
            self.ended(handler)

    def ended(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Before its last byte is sent: a client that has it may send another request at once."""
        with self.lock:
            if handler in self.open:
                self.open.remove(handler)
                self.under_way -= 1

    def give(
        self, handler: http.server.BaseHTTPRequestHandler, path: str, body: Any, fault: Any
    ) -> None:
        time.sleep(fault if isinstance(fault, float) else self.seconds)
        key = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        status, headers, content = 200, {}, b""
        if fault in ("drip", "endless"):
            handler.send_response(200)
            handler.end_headers()
            for _ in range(600 if fault == "drip" else 1 << 30):
                handler.wfile.write(b" " * (1 if fault == "drip" else 1 << 16))
                time.sleep(0.1 if fault == "drip" else 0)
            return
        if fault == "cut":
            handler.connection.close()
            return
        if isinstance(fault, int) or fault == "torn":
            status = 500 if fault == "torn" else fault
            content = json.dumps({"error": {"message": "on demand"}}).encode()
        elif isinstance(fault, tuple):
            status, headers, content = fault
        elif self.key and key != self.key:
            error = {"error": {"message": f"Incorrect API key provided: {key}"}}
            status, content = 401, json.dumps(error).encode()
        elif fault == "garbage":
            content = b"<html>Welcome</html>"
        elif path == "/chat/completions":
            status, content = self.chat(body)
        elif path == "/audio/speech":
            content = self.clips[body["input"]]
        else:
            texts = [text for clip, text in self.transcripts.items() if clip in body["file"]]
            content = json.dumps({"text": texts[0]}).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        self.ended(handler)
        handler.wfile.write(content[: len(content) // 2] if fault in ("half", "torn") else content)

    def chat(self, body: dict[str, Any]) -> tuple[int, bytes]:
        text = " ".join(seen(part) for m in body["messages"] for part in _parts(m))
        answer = next((a for piece, a in self.chats.items() if piece in text), None)
        if answer is None:
            error = {"error": {"message": f"nothing is recorded for {text[:80]!r}"}}
            return 400, json.dumps(error).encode()
        if isinstance(answer, Mapping):
            answer = json.dumps(answer)
        elif not isinstance(answer, str):
            answer = answer[body.get("seed", 0)]
        if body.get("stream"):
            pieces = [{"delta": {"content": w}} for w in re.findall(r"\S+\s*", answer)]
            pieces.append({"delta": {}, "finish_reason": "stop"})
            lines = [f"data: {json.dumps({'choices': [piece]})}\n\n" for piece in pieces]
            return 200, "".join([*lines, "data: [DONE]\n\n"]).encode()
        choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 5}
        return 200, json.dumps({"choices": [choice], "usage": usage}).encode()


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def seen(part: dict[str, Any]) -> str:
    """A part as pairs are found by it."""
    if part["type"] == "text":
        return part["text"]
    kind = part["type"]
    data = part[kind]["url"].partition(",")[2] if kind == "image_url" else part[kind]["data"]
    return hashlib.sha256(base64.b64decode(data)).hexdigest()

"""A client of any OpenAI-compatible endpoint: chat with text, pictures and clips, speech, transcription.

>>> teacher = Endpoint("http://127.0.0.1:8000/v1", "some-model", key_from="TEACHER_KEY")
>>> teacher.chat([Message.user(Image("cat.png"), Text("What is this?"))]).text
'A cat.'

It is a `Generate` (polyphi/messages.py), so it can be judged as our own model can, except where log-probabilities are
asked for. Requests wait their turn (`Pace`), and are sent again when the server is busy, fails or can't be reached.
The key is read from an environment variable when a request is sent, and stands in no message, file or `repr`.
"""

import base64
import io
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyphi.messages import (
    Audio,
    Completion,
    Delta,
    Image,
    Message,
    Part,
    SamplingParams,
    Text,
    Video,
    call_text,
    functions,
)

if TYPE_CHECKING:
    import httpx2

GREEDY = SamplingParams()
MINUTE = 60.0
CONNECT_SECONDS = 10.0
LONGEST_WAIT = 300.0
"""Seconds between two attempts; a server that asks for more has a quota that waiting won't mend."""
_FORMATS = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"RIFF": "wav",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
    b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3",
}


class Rejected(ValueError):
    """The endpoint works, but won't answer this request: too long, a medium it can't read, a content filter."""


class Pace:
    """When the next request may be sent: at most so many requests and tokens in any 60 seconds (None: no bound).

    `reserve` gives turns in the order of calling and looks at no clock: `now` and its answer are seconds."""

    def __init__(self, requests: int | None = None, tokens: int | None = None) -> None:
        self.requests, self.tokens = requests or inf, tokens or inf
        self._sent: deque[tuple[float, int]] = deque()  # (when, tokens), the latest minute's
        self._sum, self._earliest = 0, -inf
        self._lock = threading.Lock()

    def reserve(self, tokens: int, now: float) -> float:
        """When a request of so many tokens may be sent."""
        if tokens > self.tokens:
            raise ValueError(
                f"a request of about {tokens} tokens can never be sent at {self.tokens} tokens a minute; "
                "raise the limit or lower max_tokens"
            )
        with self._lock:
            when = max(now, self._earliest)
            while self._sent and (
                self._sent[0][0] + MINUTE <= when
                or len(self._sent) >= self.requests
                or self._sum + tokens > self.tokens
            ):
                start, used = self._sent.popleft()
                self._sum -= used
                when = max(when, start + MINUTE)
            self._sent.append((when, tokens))
            self._sum += tokens
            self._earliest = when
            return when

    def hold(self, until: float) -> None:
        """Nothing more is sent before: the server asked for a rest."""
        with self._lock:
            self._earliest = max(self._earliest, until)


def rough_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a prompt, guessed: a token for 4 bytes of UTF-8, 4 for each message, 1000 for a picture or clip. Enough
    to keep a pace; give a tokenizer's own count where money hangs on it."""
    parts = [p for m in messages for p in m.parts]
    letters = sum(len(p.text.encode()) for p in parts if isinstance(p, Text))
    media = sum(not isinstance(p, Text) for p in parts)
    return 4 * len(messages) + (letters + 3) // 4 + 1000 * media


class Endpoint:
    """`where` is the address that ends in "/v1"; `key_from` names the environment variable that holds the key, if one
    is needed. At most `concurrency` requests are under way at once, from however many threads. `extra` is added to the
    body of every chat request ({"reasoning_effort": "low"}); a value of None takes a field away, for servers that know
    `max_completion_tokens` only, say. `seconds` is the longest silence of a server; `clock` and `sleep` are there for
    tests."""

    def __init__(
        self,
        where: str,
        model: str,
        *,
        key_from: str | None = None,
        extra: Mapping[str, Any] | None = None,
        seconds: float = 300.0,
        attempts: int = 6,
        concurrency: int = 8,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        count: Callable[[Sequence[Message]], int] = rough_tokens,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not where.startswith(("http://", "https://")):
            raise ValueError(
                f"an endpoint's address starts with http:// or https://, found {where!r}"
            )
        if attempts < 1 or concurrency < 1:
            raise ValueError(
                f"attempts and concurrency are 1 or more, found {attempts} and {concurrency}"
            )
        self.where, self.model, self.key_from = where.rstrip("/"), model, key_from
        self.extra, self.seconds, self.attempts = dict(extra or {}), seconds, attempts
        self.count, self.clock, self.sleep = count, clock, sleep
        self.pace = Pace(requests_per_minute, tokens_per_minute)
        self._turns = threading.Semaphore(concurrency)
        self._client = _open_client(seconds)

    def __repr__(self) -> str:
        return f"Endpoint({self.where!r}, {self.model!r})"

    @property
    def name(self) -> str:
        """Who answers: the model, and the settings that change what it says."""
        return (
            f"{self.model} {json.dumps(self.extra, sort_keys=True)}" if self.extra else self.model
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = GREEDY,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """The answer; as JSON text where a JSON schema is given. Raises `Rejected` where the endpoint won't answer this
        request, `ValueError` for all that would befall others too: no endpoint, no key, no such model."""
        body = self._body(messages, sampling, schema)
        answer = self._json("/chat/completions", self._tokens(messages, sampling), json=body)
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            told, why = choice["message"], choice.get("finish_reason")
            return Completion(
                _with_calls(told.get("content") or "", told.get("tool_calls") or ()),
                finish_reason=why or "stop",
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(
                f"{self.where} gave no chat completion; expected choices[0].message.content, "
                f"found {json.dumps(answer)[:200]}"
            ) from None

    def speech(
        self, text: str, *, voice: str = "default", form: str = "wav", speed: float = 1.0
    ) -> bytes:
        """The text, spoken: an encoded clip of the form asked for ("wav", "flac", "mp3", ...)."""
        body = {"model": self.model, "input": text, "voice": voice, "response_format": form}
        if speed != 1.0:
            body |= {"speed": speed}  # type: ignore[dict-item]
        tokens = rough_tokens([Message.user(text)])
        with self._answer("/audio/speech", tokens, json=body) as response:
            data = response.read()
        if not data or data[:1] in b"{<":
            raise ValueError(
                f"{self.where} gave no clip; expected {form}, found {self._hide(data[:80].decode(errors='replace'))!r}"
            )
        return data

    def transcribe(self, clip: bytes, *, language: str | None = None) -> str:
        """What is said in an encoded clip (WAV, FLAC, OGG, MP3)."""
        form = {"model": self.model, "response_format": "json"}
        form |= {"language": language} if language else {}
        files = {"file": (f"clip.{_format(clip, 'wav')}", clip)}
        answer = self._json("/audio/transcriptions", 0, data=form, files=files)
        if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
            raise ValueError(
                f"{self.where} gave no transcript; expected {{'text': ...}}, found {json.dumps(answer)[:200]}"
            )
        return answer["text"]

    # As a `Generate`. An endpoint has one model, so "auto" and None are the only adapters.

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        _no_adapter(adapter)
        return self.chat(messages, sampling=sampling)

    def stream(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]:
        """The answer as it comes. Sent again only as long as nothing has come."""
        _no_adapter(adapter)
        if any(m.tools for m in messages):
            raise ValueError(
                "calls of tools don't come piece by piece from an endpoint; use generate"
            )
        body = self._body(messages, sampling, None) | {"stream": True}
        tokens, why = self._tokens(messages, sampling), None
        with self._answer("/chat/completions", tokens, json=body) as response:
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                for choice in self._parse(data).get("choices", ()):
                    why = choice.get("finish_reason") or why
                    if text := choice.get("delta", {}).get("content"):
                        yield Delta(text)
        if why is None:
            raise ValueError(f"{self.where} broke off in the middle of an answer; ask again")
        yield Delta("", why)

    def score(
        self, messages: Sequence[Message], continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        raise ValueError(
            "an OpenAI-compatible endpoint can't tell the log-probability of a given answer; "
            "use a task that is judged by what the model says"
        )

    # Sending

    def _body(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams,
        schema: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        body = {"model": self.model} | chat_body(messages, sampling, schema) | self.extra
        return {key: value for key, value in body.items() if value is not None}

    def _tokens(self, messages: Sequence[Message], sampling: SamplingParams) -> int:
        return self.count(messages) + sampling.max_tokens

    def _json(self, path: str, tokens: int, **content: Any) -> Any:
        with self._answer(path, tokens, **content) as response:
            return self._parse(response.read().decode(errors="replace"))

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise ValueError(
                f"{self.where} answered something that isn't JSON: {self._hide(text[:120])!r}; "
                "is it the address of an OpenAI-compatible API, up to and with /v1?"
            ) from None

    @contextmanager
    def _answer(self, path: str, tokens: int, **content: Any) -> "Iterator[httpx2.Response]":
        """The response to a POST, once it is a good one, its head read and its body still to come."""
        import httpx2

        with self._turns:
            response = self._insist(path, tokens, content)
            try:
                yield response
            except httpx2.RequestError as error:
                raise ValueError(
                    f"{self.where} broke off in the middle of an answer: {error}"
                ) from None
            finally:
                response.close()

    def _insist(self, path: str, tokens: int, content: dict[str, Any]) -> "httpx2.Response":
        import httpx2

        for attempt in range(1, self.attempts + 1):
            when = self.pace.reserve(tokens, self.clock())
            if (wait := when - self.clock()) > 0:
                self.sleep(wait)
            rest = min(LONGEST_WAIT, 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            headers = {"Authorization": f"Bearer {key}"} if (key := self._key()) else {}
            streamed = bool(content.get("json", {}).get("stream"))
            request = self._client.build_request(
                "POST", self.where + path, headers=headers, **content
            )
            try:
                response = self._client.send(request, stream=True)
                if not (streamed and response.is_success):
                    response.read()  # a connection cut here is tried again too
            except httpx2.RequestError as error:
                why = self._hide(str(error)) or type(error).__name__
                trouble = f"{self.where} can't be reached: {why}"
            else:
                if response.is_success:
                    return response
                trouble = self._judge(response)
                asked = _retry_after(response.headers.get("retry-after"))
                if asked > LONGEST_WAIT:
                    raise ValueError(
                        f"{trouble}; it asks to come back in {asked:.0f} s: is a quota used up?"
                    )
                rest = max(rest, asked)
                if asked:
                    self.pace.hold(self.clock() + asked)
            if attempt < self.attempts:
                self.sleep(rest)
        raise ValueError(f"{trouble}; gave up after {self.attempts} attempts")

    def _judge(self, response: "httpx2.Response") -> str:
        """What went wrong, where another attempt may help; raises where it can't."""
        code, said = response.status_code, self._hide(_said(response.text))
        trouble = f"{self.where} answered {code}: {said}"
        if code in (401, 403):
            if not self.key_from:
                raise ValueError(
                    f"{trouble}; it wants a key: name the variable that holds it, key_from='...'"
                )
            state = "is refused" if self._key() else "isn't set"
            raise ValueError(f"{trouble}; the key in the variable {self.key_from} {state}")
        if code == 404:
            raise ValueError(
                f"{trouble}; is {self.model!r} a model it serves, and {self.where!r} its address up to /v1?"
            )
        if code in (408, 425) or code >= 500:
            return trouble
        if code == 429:
            if "insufficient_quota" in response.text:
                raise ValueError(f"{trouble}; its quota is used up")
            return trouble
        if code in (400, 413, 415, 422):
            raise Rejected(trouble)
        raise ValueError(f"{trouble}; expected 200")

    def _hide(self, text: str) -> str:
        """Servers may quote the key in their complaints."""
        return text.replace(key, "***") if (key := self._key()) else text

    def _key(self) -> str:
        key = os.environ.get(self.key_from, "").strip() if self.key_from else ""
        if not (key.isascii() and (not key or key.isprintable())):
            raise ValueError(f"the variable {self.key_from} holds characters that no key has")
        return key


def _open_client(seconds: float) -> "httpx2.Client":
    try:
        import httpx2
    except ImportError:
        raise ValueError(
            "an endpoint needs the package httpx2; install it with `pip install 'polyphi[curate]'`"
        ) from None
    # No redirects, which would carry the key elsewhere; as many connections as there are turns.
    return httpx2.Client(
        timeout=httpx2.Timeout(seconds, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(max_connections=None),
    )


def _no_adapter(adapter: str | None) -> None:
    if adapter not in ("auto", None, "none"):
        raise ValueError(
            f"an endpoint chooses its adapters itself; expected 'auto' or None, found {adapter!r}"
        )


def _said(text: str) -> str:
    """The message of an error's body."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200] or "nothing"


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 where there is none."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def chat_body(
    messages: Sequence[Message],
    sampling: SamplingParams,
    schema: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a chat request as OpenAI's API has it, without the model. `top_k`, which only some servers know, is
    sent where it is set."""
    body: dict[str, Any] = {
        "messages": [_message(m) for m in messages if m.parts],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }
    if tools := [f for m in messages for f in functions(m.tools) or ()]:
        body["tools"] = [{"type": "function", "function": f} for f in tools]
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if schema is not None:
        form = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _with_calls(text: str, calls: Sequence[Any]) -> str:
    """What a model said, the tools that it called at its end as models themselves write them."""
    try:
        return text + call_text(calls) if calls else text
    except ValueError:  # arguments that are no JSON
        return text + json.dumps(calls, ensure_ascii=False)


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(p, Text) for p in message.parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [openai_part(p) for p in message.parts]}


def openai_part(part: Part) -> dict[str, Any]:
    """A part as OpenAI's interface has it, media whole. Raises ValueError for a video and a missing file."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Video):
        raise ValueError("videos aren't sent to an endpoint; expected some of its frames as Images")
    data = _encoded(part)
    text = base64.b64encode(data).decode()
    if isinstance(part, Image):
        url = {"url": f"data:image/{_format(data, 'png')};base64,{text}"}
        if part.detail != "auto":
            url["detail"] = part.detail
        return {"type": "image_url", "image_url": url}
    return {"type": "input_audio", "input_audio": {"data": text, "format": _format(data, "wav")}}


def _encoded(part: Image | Audio) -> bytes:
    if isinstance(part.source, bytes):
        return part.source
    if isinstance(part.source, tuple):
        import soundfile

        wave, rate = part.source
        out = io.BytesIO()
        soundfile.write(out, wave, rate, format="WAV", subtype="PCM_16")
        return out.getvalue()
    path = Path(part.source)
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    return path.read_bytes()


def _format(data: bytes, otherwise: str) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _FORMATS.items() if data.startswith(magic)), otherwise)

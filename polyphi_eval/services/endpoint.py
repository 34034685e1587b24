"""A client of any OpenAI-compatible endpoint: chat with text, images and audio, speech synthesis, transcription.

>>> teacher = Endpoint("http://127.0.0.1:8000/v1", "some-model", key_from="TEACHER_KEY")
>>> teacher.chat([Message.user(Image("cat.png"), Text("What is this?"))]).text
'A cat.'

It implements `Generate` (polyphi/types/generate.py), so it can be evaluated like polyphi's models, except on tasks
that need log-probabilities. OpenAI's SDK sends the requests and reads the responses. Here requests respect rate limits
(`Pace`), and are retried if the server is busy, fails or can't be reached. The key is read from an environment variable
for each request, and appears in no message, file or `repr`; the SDK's own variables (OPENAI_API_KEY, ...) aren't sent.
"""

import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from typing import TYPE_CHECKING, Any

from polyphi.runtime.installation import pip_install
from polyphi.types.completion import Completion, Delta
from polyphi.types.messages import Message
from polyphi.types.openai_parts import media_format, openai_part
from polyphi.types.parts import Text
from polyphi.types.routing import normalize_adapter
from polyphi.types.sampling import SamplingParams
from polyphi.types.tools import call_text, functions

if TYPE_CHECKING:
    import httpx2
    import openai

GREEDY = SamplingParams()
MINUTE = 60.0
CONNECT_SECONDS = 10.0
EVENTS = "text/event-stream"
MAX_WAIT = 300.0
"""Maximum seconds between two attempts; a server that requests more has probably exhausted a quota."""
_HEADERS = "host accept accept-encoding connection user-agent content-type content-length"
"""Headers of the SDK that are sent; others have OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS, and facts about this machine."""
_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""Errors of reading a response that has another form than OpenAI's."""


class RequestRejected(ValueError):
    """The endpoint refuses this request: it is too long, has unreadable media, or a content filter blocks it."""


class Pace:
    """A rate limiter: at most `requests` requests and `tokens` tokens in any 60 seconds (None: no limit).

    `reserve` assigns times in the order of its calls and reads no clock: `now` and its result are in seconds."""

    def __init__(self, requests: int | None = None, tokens: int | None = None) -> None:
        self.requests, self.tokens = requests or inf, tokens or inf
        self._sent: deque[tuple[float, int]] = deque()  # (time, tokens) of the last minute
        self._sum, self._earliest = 0, -inf
        self._lock = threading.Lock()

    def reserve(self, tokens: int, now: float) -> float:
        """The time at which a request of `tokens` tokens may be sent."""
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
        """Sends no further request before the time `until`, for a server's Retry-After."""
        with self._lock:
            self._earliest = max(self._earliest, until)


def parse_address(address: str) -> tuple[str, str]:
    """(URL, model) of an address such as http://127.0.0.1:8000/v1#phi. Raises ValueError for another text."""
    url, _, model = address.partition("#")
    if not url.startswith(("http://", "https://")) or not model:
        raise ValueError(
            "expected an address that starts with http:// or https://, and after # a model's name, such as "
            f"http://127.0.0.1:8000/v1#phi; found {address!r}"
        )
    return url, model


def rough_tokens(messages: Sequence[Message]) -> int:
    """An estimate of a prompt's tokens: one for 4 bytes of UTF-8, 4 for each message, 1000 for an image or audio. Good
    enough for rate limits; use a tokenizer's count for costs."""
    parts = [p for m in messages for p in m.parts]
    characters = sum(len(p.text.encode()) for p in parts if isinstance(p, Text))
    media = sum(not isinstance(p, Text) for p in parts)
    return 4 * len(messages) + (characters + 3) // 4 + 1000 * media


class Endpoint:
    """A client of one model at one endpoint. `where`: the URL that ends in "/v1"; `key_from`: the environment variable
    with the API key, if one is needed. At most `concurrency` requests run at once, over all threads. `extra` is added
    to the body of every chat request ({"reasoning_effort": "low"}); a value of None removes a field, for example for
    servers that accept only `max_completion_tokens`. `seconds`: longest time of a whole answer, and of a streamed
    one between two pieces; `clock` and `sleep`: for tests."""

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
                f"expected an endpoint's address that starts with http:// or https://, found {where!r}"
            )
        if attempts < 1 or concurrency < 1:
            raise ValueError(
                f"expected attempts and concurrency of at least 1, found {attempts} and {concurrency}"
            )
        self.where, self.model, self.key_from = where.rstrip("/"), model, key_from
        self.extra, self.seconds, self.attempts = dict(extra or {}), seconds, attempts
        self.count, self.clock, self.sleep = count, clock, sleep
        self.pace = Pace(requests_per_minute, tokens_per_minute)
        self._slots = threading.Semaphore(concurrency)
        self._client = self._open_client()

    @classmethod
    def at(cls, address: str, **settings: Any) -> "Endpoint":
        """The endpoint at an address with its model: http://127.0.0.1:8000/v1#phi."""
        return cls(*parse_address(address), **settings)

    def __repr__(self) -> str:
        return f"Endpoint({self.where!r}, {self.model!r})"

    @property
    def name(self) -> str:
        """The model with the settings that change its answers."""
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
        """The model's answer to a conversation; with a JSON schema, as JSON text. Raises `RequestRejected` if the
        endpoint refuses this request, and `ValueError` for errors that would affect all requests: no endpoint, no key,
        an unknown model."""
        body = self._body(messages, sampling, schema)
        answer = self._json("/chat/completions", self._tokens(messages, sampling), body=body)
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            message, finish_reason = choice["message"], choice.get("finish_reason")
            return Completion(
                _with_calls(message.get("content") or "", message.get("tool_calls") or ()),
                finish_reason=finish_reason or "stop",
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
            )
        except _MALFORMED:
            raise ValueError(
                f"{self.where} returned no chat completion; expected choices[0].message.content, "
                f"found {self._excerpt(json.dumps(answer))}"
            ) from None

    def speech(
        self, text: str, *, voice: str = "default", form: str = "wav", speed: float = 1.0
    ) -> bytes:
        """The text as speech: encoded audio in the format `form` ("wav", "flac", "mp3", ...)."""
        body = {"model": self.model, "input": text, "voice": voice, "response_format": form}
        speed_field = {"speed": speed} if speed != 1.0 else {}
        with self._slots:
            tokens = rough_tokens([Message.user(text)])
            data = self._send("/audio/speech", tokens, body=body | speed_field).content
        if not data or data[:1] in b"{<":
            text = self._excerpt(data.decode(errors="replace"))
            raise ValueError(f"{self.where} returned no audio; expected {form}, found {text!r}")
        return data

    def transcribe(self, clip: bytes, *, language: str | None = None) -> str:
        """The transcript of encoded audio (WAV, FLAC, OGG, MP3)."""
        body = {"model": self.model, "response_format": "json"}
        body |= {"language": language} if language else {}
        answer = self._json(
            "/audio/transcriptions",
            0,
            body=body,
            files={"file": (f"clip.{media_format(clip, 'wav')}", clip)},
            options={"headers": {"Content-Type": "multipart/form-data"}},
        )
        if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
            raise ValueError(
                f"{self.where} returned no transcript; expected {{'text': ...}}, "
                f"found {self._excerpt(json.dumps(answer))}"
            )
        return answer["text"]

    # The methods of `Generate`. An endpoint has one model, so "auto" and None are the only adapters.

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
        """The streamed answer. The request is retried only before the first output."""
        _no_adapter(adapter)
        if any(m.tools for m in messages):
            raise ValueError("tool calls can't be streamed from an endpoint; use generate")
        import openai

        body = self._body(messages, sampling, None) | {"stream": True}
        tokens, finish_reason = self._tokens(messages, sampling), None
        with self._slots:
            response = self._send("/chat/completions", tokens, body=body, stream=True)
            chunks = openai.Stream[Any](cast_to=object, response=response, client=self._client)
            try:
                for choice in (c for chunk in chunks for c in chunk.get("choices") or ()):
                    finish_reason = choice.get("finish_reason") or finish_reason
                    if text := (choice.get("delta") or {}).get("content"):
                        yield Delta(text)
            except (openai.APIError, *_MALFORMED) as error:
                raise ValueError(
                    f"{self.where} broke off in the middle of an answer: {self._reason(error)}"
                ) from None
            finally:
                response.close()
        if finish_reason is None:
            raise ValueError(f"{self.where} broke off in the middle of an answer; try again")
        yield Delta("", finish_reason)

    def score(
        self, messages: Sequence[Message], continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        raise ValueError(
            "an OpenAI-compatible endpoint can't return the log-probability of a given answer; "
            "use a task that is scored on generated text"
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

    def _json(self, path: str, tokens: int, **fields: Any) -> Any:
        """The JSON value in the response to a request."""
        with self._slots:
            text = self._send(path, tokens, **fields).content.decode(errors="replace")
        try:
            return json.loads(text)
        except _MALFORMED:
            raise ValueError(
                f"{self.where} returned something that isn't JSON: {self._excerpt(text)!r}; "
                "is it the address of an OpenAI-compatible API, including /v1?"
            ) from None

    def _send(self, path: str, tokens: int, **fields: Any) -> "httpx2.Response":
        """The response to a POST by the SDK, at this endpoint's pace, after retries."""
        import httpx2
        import openai

        from polyphi_eval.services.answer_stream import TooLong

        if fields.get("stream"):
            fields["options"] = {"headers": {"Accept": EVENTS}}
        for attempt in range(1, self.attempts + 1):
            when = self.pace.reserve(tokens, self.clock())
            if (wait := when - self.clock()) > 0:
                self.sleep(wait)
            delay = min(MAX_WAIT, 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            try:
                return self._client.post(path, cast_to=httpx2.Response, **fields)
            except openai.APIStatusError as error:
                response = error.response  # handled below: the error may quote the key
            except TooLong as error:
                raise ValueError(f"{self.where}: {error}") from None
            except (openai.APIConnectionError, httpx2.RequestError) as error:
                response, problem = None, f"{self.where} can't be reached: {self._reason(error)}"
            if response is not None:
                problem = self._check_status(response)
                retry_after = _retry_after(response.headers.get("retry-after"))
                if retry_after > MAX_WAIT:
                    raise ValueError(
                        f"{problem}; it asks to come back in {retry_after:.0f} s: is a quota used up?"
                    )
                delay = max(delay, retry_after)
                if retry_after:
                    self.pace.hold(self.clock() + retry_after)
            if attempt < self.attempts:
                self.sleep(delay)
        raise ValueError(f"{problem}; gave up after {self.attempts} attempts")

    def _reason(self, error: Exception) -> str:
        """The message of an error of the connection, which the SDK has as its cause."""
        cause = error.__cause__ or error
        return self._excerpt(str(cause)) or type(cause).__name__

    def _check_status(self, response: "httpx2.Response") -> str:
        """The description of an error that a retry may fix; raises for all other errors."""
        code, message = response.status_code, self._excerpt(_error_message(response.text))
        problem = f"{self.where} answered {code}: {message}"
        if code in (401, 403):
            if not self.key_from:
                raise ValueError(
                    f"{problem}; it needs a key: name the environment variable that holds it, key_from='...'"
                )
            state = "is refused" if self._key() else "isn't set"
            raise ValueError(f"{problem}; the key in the variable {self.key_from} {state}")
        if code == 404:
            raise ValueError(
                f"{problem}; is {self.model!r} a model it serves, and {self.where!r} its address up to /v1?"
            )
        if code in (408, 425) or code >= 500:
            return problem
        if code == 429:
            if "insufficient_quota" in response.text:
                raise ValueError(f"{problem}; its quota is used up")
            return problem
        if code in (400, 413, 415, 422):
            raise RequestRejected(problem)
        raise ValueError(f"{problem}; expected 200")

    def _excerpt(self, text: str) -> str:
        """The beginning of a server's text, with the API key masked, which servers may quote."""
        return (text.replace(key, "***") if (key := self._key()) else text)[:300]

    def _key(self) -> str:
        key = os.environ.get(self.key_from, "").strip() if self.key_from else ""
        if not (key.isascii() and (not key or key.isprintable())):
            raise ValueError(
                f"the variable {self.key_from} contains characters that no API key has"
            )
        return key

    def _open_client(self) -> "openai.OpenAI":
        try:
            import httpx2
            import openai

            from polyphi_eval.services.answer_stream import limit_answer, start_clock
        except ImportError:
            raise ValueError(
                f"an endpoint needs the package openai: {pip_install('curate')}"
            ) from None

        def limit(response: httpx2.Response) -> None:
            limit_answer(response, self.seconds, response.request.headers["accept"] == EVENTS)

        return openai.OpenAI(
            base_url=self.where,
            api_key="replaced",  # by `_set_headers`; without one the SDK reads OPENAI_API_KEY
            timeout=openai.Timeout(self.seconds, connect=CONNECT_SECONDS),
            max_retries=0,  # `_send` retries, because other requests must wait as well
            default_headers={"Accept": "*/*", "Accept-Encoding": "identity"},
            # No redirects, which would send the key elsewhere; `concurrency` limits the connections.
            http_client=httpx2.Client(
                limits=httpx2.Limits(max_connections=None),
                event_hooks={"request": [self._set_headers, start_clock], "response": [limit]},
            ),
        )

    def _set_headers(self, request: "httpx2.Request") -> None:
        basic = bool(request.url.userinfo)  # the client has set Authorization by it
        names = _HEADERS + " authorization" * basic
        for name in {*request.headers} - {*names.split()}:
            del request.headers[name]
        if not basic and (key := self._key()):
            request.headers["Authorization"] = f"Bearer {key}"


def _no_adapter(adapter: str | None) -> None:
    if normalize_adapter(adapter) not in ("auto", None):
        raise ValueError(
            f"an endpoint selects its adapters itself; expected 'auto' or None, found {adapter!r}"
        )


def _error_message(text: str) -> str:
    """The message in the body of an error response."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except _MALFORMED:
        return text.strip() or "nothing"


def _retry_after(value: str | None) -> float:
    """The seconds of a Retry-After header, which has seconds or a date; 0 without one."""
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
    """The body of a chat request in OpenAI's format, without the model. `top_k`, which only some servers support, is
    included if it is set."""
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
    """The text of an answer followed by its tool calls, in the format in which models write calls."""
    try:
        return text + call_text(calls) if calls else text
    except ValueError:  # the arguments aren't JSON
        return text + json.dumps(calls, ensure_ascii=False)


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(p, Text) for p in message.parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [openai_part(p) for p in message.parts]}

"""The client of OpenAI-compatible endpoints: requests, responses, and failures."""

import base64
import gzip
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from traceback import format_exception

import numpy as np
import pytest

from polyphi.types.generate import Generate
from polyphi.types.messages import Message, with_tools
from polyphi.types.parts import Audio, Image, Text
from polyphi.types.sampling import SamplingParams
from polyphi.types.tools import call_text
from polyphi_eval.services.endpoint import MINUTE, Endpoint, Pace, RequestRejected
from tests.fixtures.replay import Replay

PNG, WAV = b"\x89PNG picture", b"RIFF\0\0\0\0WAVE clip"
HELLO = [Message.user("hello")]


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, []
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.slept.append(seconds)
            self.now += seconds


def endpoint(replay: Replay, clock: Clock | None = None, **settings: object) -> Endpoint:
    clock = clock or Clock()
    return Endpoint(replay.where, "m", clock=clock, sleep=clock.sleep, **settings)


def test_text_pictures_and_clips_go_as_openai_has_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    messages = [
        Message.system("Be brief."),
        Message.user(Image(tmp_path / "a.png"), Audio(WAV), Text("What?")),
        Message.assistant("A cat."),
        Message.user(Audio((np.zeros(160, np.float32), 16000)), "And here?"),
    ]
    sampling = SamplingParams(max_tokens=9, temperature=0.5, top_k=3, seed=4, stop=("\n",))
    with Replay({"And here?": "A dog."}) as replay:
        answer = endpoint(replay, extra={"effort": "low", "top_p": None}).chat(
            messages, sampling=sampling, schema={"type": "string"}
        )
        [body] = replay.requests
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == ("A dog.", "stop", 7)
    sent = body.pop("messages")
    form = {"name": "answer", "schema": {"type": "string"}, "strict": True}
    assert body == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 4,
        "stop": ["\n"],
        "top_k": 3,
        "response_format": {"type": "json_schema", "json_schema": form},
        "effort": "low",
    }
    picture = "data:image/png;base64," + base64.b64encode(PNG).decode()
    clip = {"data": base64.b64encode(WAV).decode(), "format": "wav"}
    assert sent[0] == {"role": "system", "content": "Be brief."}
    assert sent[1]["content"] == [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "input_audio", "input_audio": clip},
        {"type": "text", "text": "What?"},
    ]
    assert base64.b64decode(sent[3]["content"][0]["input_audio"]["data"])[:4] == b"RIFF"


def test_it_is_a_model_to_be_judged() -> None:
    with Replay({"hello": "good day to you"}) as replay:
        model: Generate = endpoint(replay)
        assert model.generate(HELLO).text == "good day to you"
        *pieces, last = model.stream(HELLO)
        assert [p.text for p in pieces] == ["good ", "day ", "to ", "you"]
        assert last.finish_reason == "stop"
        with pytest.raises(ValueError, match="log-probability"):
            model.score(HELLO, "good")
        assert model.generate(HELLO, adapter="none").text == "good day to you"
        with pytest.raises(ValueError, match="found 'vision'"):
            model.generate(HELLO, adapter="vision")
        with pytest.raises(ValueError, match="use generate"):
            next(iter(model.stream([Message.system("", tools='[{"name": "add"}]')])))


def test_tools_are_sent_and_what_is_called_comes_back() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    replies = [
        {"content": None, "tool_calls": [call]},
        {"content": "So: ", "tool_calls": [{"function": {"name": "add", "arguments": "{"}}]},
    ]
    messages = with_tools([Message.user("What is 1 + 1?")], [{"name": "add"}])
    with Replay() as replay:
        replay.faults = [
            (200, {}, json.dumps({"choices": [{"message": reply}]}).encode()) for reply in replies
        ]
        model = endpoint(replay)
        assert model.generate(messages).text == call_text([call])
        assert model.generate(messages).text.startswith("So: [{")
    sent = replay.requests
    assert sent[0]["tools"] == [{"type": "function", "function": {"name": "add"}}]
    assert sent[0]["messages"] == [{"role": "user", "content": "What is 1 + 1?"}]


def test_a_stream_that_breaks_off_is_an_error() -> None:
    with Replay({"hello": "good day to you"}) as replay:
        malformed = (b"{1}", b"\xff", b"3", b'{"choices": ["x"]}', b"[" * 100_000)
        replay.faults = ["torn", "half", *((200, {}, b"data: %b\n\n" % m) for m in malformed)]
        for _ in range(6):
            with pytest.raises(ValueError, match="broke off"):
                list(endpoint(replay).stream(HELLO))
        assert len(replay.requests) == 7


def test_speech_and_transcription() -> None:
    with Replay(clips={"seven": WAV}, transcripts={WAV: "seven"}) as replay:
        model = endpoint(replay)
        assert model.speech("seven", voice="anna", speed=1.5) == WAV
        assert replay.requests[0] == {
            "model": "m",
            "input": "seven",
            "voice": "anna",
            "response_format": "wav",
            "speed": 1.5,
        }
        replay.faults = ["half"]
        assert model.transcribe(WAV, language="en") == "seven"  # after a cut connection
    assert b'name="language"\r\n\r\nen' in replay.requests[1]["file"]
    assert b'filename="clip.wav"' in replay.requests[1]["file"]


def test_responses_are_utf_8_whatever_their_header() -> None:
    with Replay() as replay:
        body = '{"choices": [{"message": {"content": "é"}}]}'.encode()
        replay.faults = [
            (200, {"Content-Type": f"application/json; charset={name}"}, body)
            for name in ("latin-1", "zlib")
        ]
        assert [endpoint(replay).chat(HELLO).text for _ in range(2)] == ["é", "é"]


def test_what_is_no_clip_and_no_transcript() -> None:
    with Replay() as replay:
        usage = b'{"choices": [{"message": {}}], "usage": {"prompt_tokens": Infinity}}'
        bodies = (b'{"txt": 1}', b'{"choices": []}', usage)
        replay.faults = ["garbage", *((200, {}, body) for body in bodies)]
        with pytest.raises(ValueError, match=r"expected wav, found '<html"):
            endpoint(replay).speech("seven")
        with pytest.raises(ValueError, match="no transcript"):
            endpoint(replay).transcribe(WAV)
        for _ in range(2):
            with pytest.raises(ValueError, match="no chat completion"):
                endpoint(replay).chat(HELLO)


@pytest.mark.parametrize("fault", [429, 500, 503, "cut", "half", "torn"])
def test_a_passing_trouble_is_waited_out_longer_each_time(fault: object) -> None:
    clock = Clock()
    with Replay({"hello": "hi"}) as replay:
        replay.faults = [fault] * 3
        assert endpoint(replay, clock).chat(HELLO).text == "hi"
        assert len(replay.requests) == 4
    assert [0.5 * 2**i <= s <= 2**i for i, s in enumerate(clock.slept)] == [True] * 3


def test_silence_is_a_trouble_too() -> None:
    with Replay({"hello": "hi"}) as replay:
        replay.faults = [1.5]
        assert endpoint(replay, seconds=0.5).chat(HELLO).text == "hi"
        assert len(replay.requests) == 2


def test_an_answer_that_never_ends() -> None:
    """A server that sends a byte now and then is given up like a silent one, and one that sends many at once."""
    with Replay({"hello": "hi"}) as replay:
        replay.faults = ["drip"]
        assert endpoint(replay, seconds=0.5).chat(HELLO).text == "hi"
        assert len(replay.requests) == 2
        replay.faults = ["endless"]
        with pytest.raises(ValueError, match="at most 16,777,216 bytes"):
            endpoint(replay).chat(HELLO)
        replay.faults = [(200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 1000))]
        with pytest.raises(ValueError, match="packed"):
            endpoint(replay).chat(HELLO)
        assert len(replay.requests) == 4


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all_requests(form: str) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=31), usegmt=True)
    clock = Clock()
    with Replay({"hello": "hi"}) as replay:
        model = endpoint(replay, clock)
        replay.faults = [(429, {"Retry-After": "30" if form == "seconds" else later}, b"{}")]
        model.chat(HELLO)
        assert 29 < sum(clock.slept) < 32
        # Those that come in the meantime wait as well.
        model.attempts, now = 1, clock.now
        replay.faults = [(429, {"Retry-After": "30"}, b"{}")]
        with pytest.raises(ValueError, match="gave up"):
            model.chat(HELLO)
        assert model.pace.reserve(1, now + 1) == now + 30


def test_a_server_that_wants_an_hour_is_not_waited_for() -> None:
    clock = Clock()
    with Replay() as replay:
        replay.faults = [(429, {"Retry-After": "3600"}, b"{}")]
        with pytest.raises(ValueError, match="come back in 3600 s"):
            endpoint(replay, clock).chat(HELLO)
        replay.faults = [(429, {}, b'{"error": {"message": "no", "code": "insufficient_quota"}}')]
        with pytest.raises(ValueError, match="quota is used up"):
            endpoint(replay, clock).chat(HELLO)
        assert len(replay.requests) == 2 and not clock.slept


def test_it_gives_up_at_last() -> None:
    with Replay() as replay:
        replay.faults = [500] * 9
        with pytest.raises(ValueError, match="answered 500: on demand; gave up after 3 attempts"):
            endpoint(replay, attempts=3).chat(HELLO)
        assert len(replay.requests) == 3


def test_errors_say_what_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with Replay({"hello": "hi"}, key="right") as replay:
        with pytest.raises(ValueError, match="key_from"):
            endpoint(replay).chat(HELLO)
        with pytest.raises(ValueError, match="the variable TEACHER_KEY isn't set"):
            endpoint(replay, key_from="TEACHER_KEY").chat(HELLO)
        monkeypatch.setenv("TEACHER_KEY", "wrong-one")
        with pytest.raises(ValueError, match="the variable TEACHER_KEY is refused") as error:
            endpoint(replay, key_from="TEACHER_KEY").chat(HELLO)
        assert "wrong-one" not in "".join(format_exception(error.value))
        assert "***" in str(error.value)
        monkeypatch.setenv("TEACHER_KEY", "wro\nng")
        with pytest.raises(ValueError, match="TEACHER_KEY contains characters") as bad:
            endpoint(replay, key_from="TEACHER_KEY").chat(HELLO)
        assert "wro" not in str(bad.value)
        monkeypatch.setenv("TEACHER_KEY", "right")
        model = endpoint(replay, key_from="TEACHER_KEY")
        assert model.chat(HELLO).text == "hi" and "right" not in repr(model) + str(vars(model))
        replay.faults = [404, "garbage"]
        with pytest.raises(ValueError, match="is 'm' a model it serves"):
            model.chat(HELLO)
        with pytest.raises(ValueError, match="isn't JSON: '<html>"):
            model.chat(HELLO)
        replay.faults = [(200, {}, b'{"error": "the key right is unknown"}')]
        with pytest.raises(ValueError, match=r"no chat completion.*the key \*\*\* is unknown"):
            model.chat(HELLO)
        replay.faults = [(400, {}, b"x" * 298 + b"right")]
        with pytest.raises(RequestRejected, match=r"x\*\*$"):
            model.chat(HELLO)
        with pytest.raises(RequestRejected, match="answered 400: nothing is recorded for 'bye'"):
            model.chat([Message.user("bye")])
        replay.faults = [(302, {"Location": "http://127.0.0.1:9/"}, b"")]
        with pytest.raises(ValueError, match="answered 302"):
            model.chat(HELLO)
    clock = Clock()
    with pytest.raises(ValueError, match=r"can't be reached: .*gave up after 2 attempts"):
        Endpoint("http://127.0.0.1:9/v1", "m", attempts=2, sleep=clock.sleep).chat(HELLO)
    with pytest.raises(ValueError, match=r"starts with http://"):
        Endpoint("localhost:8000", "m")
    with pytest.raises(ValueError, match="there is no file"):
        Endpoint("http://127.0.0.1:9/v1", "m").chat([Message.user(Image("none.png"))])


def test_variables_of_the_sdk_go_to_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Own: secret\nAuthorization: secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with Replay({"hello": "hi"}, clips={"seven": WAV}) as replay:
        assert endpoint(replay).chat(HELLO).text == "hi"
        monkeypatch.setenv("MINE", "own")
        assert endpoint(replay, key_from="MINE").speech("seven") == WAV
        assert "secret" not in "".join(replay.headers)
        assert "x-stainless" not in "".join(replay.headers)  # facts about this machine
        assert "Authorization" not in replay.headers[0]
        assert "Authorization: Bearer own\n" in replay.headers[1]
        address = replay.where.replace("//", "//user:password@")
        assert Endpoint(address, "m").chat(HELLO).text == "hi"
        assert "Authorization: Basic dXNlcjpwYXNzd29yZA==\n" in replay.headers[2]


def test_no_minute_holds_more_requests_or_tokens_than_allowed() -> None:
    sizes = [int(n) for n in np.random.default_rng(0).integers(1, 400, 300)]
    pace, now, sent = Pace(requests=7, tokens=1000), 0.0, []
    for i, size in enumerate(sizes):
        now += 3.0 * (i % 5 == 0)
        sent.append((pace.reserve(size, now), size))
    assert all(a[0] <= b[0] for a, b in pairwise(sent))
    for start, _ in sent:
        minute = [n for when, n in sent if start <= when < start + MINUTE]
        assert len(minute) <= 7 and sum(minute) <= 1000
    # No slower than needed: a request that waited could not have been sent earlier.
    for i, (when, size) in enumerate(sent):
        before = [n for w, n in sent[:i] if when - 0.01 - MINUTE < w]
        waited = when > 3.0 * (i // 5 + 1)
        assert not waited or len(before) >= 7 or sum(before) + size > 1000 or when == sent[i - 1][0]
    assert Pace().reserve(10**9, 5.0) == 5.0
    with pytest.raises(ValueError, match="about 1001 tokens can never be sent at 1000"):
        pace.reserve(1001, 0.0)


def test_the_pace_holds_from_many_threads_without_real_waiting() -> None:
    clock = Clock()
    with Replay({"hello": "hi"}) as replay:
        model = endpoint(replay, clock, requests_per_minute=4, concurrency=1)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: model.chat(HELLO), range(12)))
        assert len(replay.requests) == 12
    assert clock.now - 1000 == pytest.approx(2 * MINUTE)
    with Replay({"hello": "hi"}) as replay:
        model = endpoint(replay, clock, tokens_per_minute=300, count=lambda messages: 44)
        for _ in range(3):  # 44 + 256 tokens each: one a minute
            model.chat(HELLO)
    assert clock.now - 1000 == pytest.approx(4 * MINUTE)


def test_no_more_than_the_concurrency_is_under_way() -> None:
    with Replay({"hello": "hi"}, seconds=0.05) as replay:
        model = endpoint(replay, concurrency=3)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: model.chat(HELLO), range(16)))
        assert replay.most_under_way == 3
        assert json.dumps(replay.requests[0])  # requests are plain JSON

"""Transcriptions and translations through the official client: the engine's results in every format; uploads leave
nothing behind."""

import asyncio
import base64
import io
import json
import os
import random
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import soundfile
import torch
from openai import (
    APIStatusError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
)
from starlette.requests import Request as HttpRequest

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from polyphi.serve.audio import form as audio_form
from polyphi.serve.audio import transcriptions
from polyphi.serve.audio.transcriptions import RECORDINGS
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.events import ClientGone
from polyphi.transcription import longform, subtitles
from polyphi.transcription.longform import transcription
from polyphi.types.transcript import Transcript
from tests.fixtures.audio import audio_file, say
from tests.fixtures.servers import Running, serving, until
from tests.fixtures.variants import few

TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"


def clip(words: int = 4, form: str = "FLAC", pause: float = 0.2, **options: Any) -> bytes:
    wave = say([5 * n % 90 for n in range(words)], [pause] * (words + 1))
    return audio_file(wave, format=form, **options)


CLIP = clip()


@pytest.fixture
def client(running: Running) -> Iterator[OpenAI]:
    warnings.filterwarnings("ignore", "deprecated", DeprecationWarning)
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def engine_transcript(engine: Engine, task: Any = None, window: float | None = None) -> Transcript:
    (transcript,) = longform.transcribe(engine, [CLIP], task or transcription(), window=window)
    return transcript


def test_every_format_is_what_the_engine_hears(running: Running, client: OpenAI) -> None:
    timed = longform.replace(transcription(), words="estimated")
    expected = engine_transcript(running.engine, timed)
    ask: Callable[..., Any] = client.audio.transcriptions.create
    fields: dict[str, Any] = {"file": ("clip", CLIP), "model": "tiny"}
    answer = ask(**fields)
    assert answer.text == expected.text and expected.text
    used, inputs = answer.usage, answer.usage.input_token_details
    assert used.to_dict() == transcriptions.usage(expected) and used.type == "tokens"
    assert used.input_tokens == inputs.text_tokens + inputs.audio_tokens > 20
    assert used.total_tokens == used.input_tokens + used.output_tokens > used.input_tokens
    assert answer.model_extra["adapter"] == "speech"
    assert answer.model_extra.get("warnings", []) == list(expected.warnings)
    assert ask(**fields, response_format="text") == expected.text + "\n"
    for form in ("srt", "vtt"):
        assert ask(**fields, response_format=form) == subtitles.write(expected, form)
    params = {"response_format": "verbose_json", "language": "en-US"}
    both = ask(**fields, **params, timestamp_granularities=["word", "segment"])
    assert (both.language, both.duration) == ("english", round(expected.seconds, 3))
    assert both.usage.to_dict() == {"type": "duration", "seconds": both.duration}
    for received, segment in zip(both.segments, expected.segments, strict=True):
        assert (received.start, received.end) == (round(segment.start, 3), round(segment.end, 3))
        assert received.text == segment.text and received.tokens == list(segment.tokens)
        assert received.avg_logprob == pytest.approx(segment.avg_logprob)
        assert received.temperature == segment.temperature and received.compression_ratio > 0
        assert received.no_speech_prob == pytest.approx(segment.silence, abs=1e-3)
        assert received.source == segment.source
    for word, its in zip(both.words, expected.words, strict=True):
        assert (word.word, word.start) == (its.text, round(its.start, 3))
    plain = ask(**fields, response_format="verbose_json")
    assert plain.language == "unknown" and plain.words is None and plain.segments
    only = ask(**fields, response_format="verbose_json", timestamp_granularities=["word"])
    assert only.segments is None and only.words
    assert client.audio.transcriptions.with_raw_response.create(**fields).status_code == 200
    assert running.idle()


def test_what_was_heard_is_counted(fresh: Running) -> None:
    with fresh.client() as client:

        def post(data: bytes) -> httpx2.Response:
            return client.post(TRANSCRIPTIONS, files={"file": data})

        used = post(CLIP).json()["usage"]
        assert post(b"Dear Sir").status_code == 415
        assert post(damaged()["cut wav"]).status_code == 400
        lines = client.get("/metrics").text.splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if line.startswith("polyphi:"))
    one = '{model_name="tiny"}'
    assert float(metrics[f"polyphi:audio_seconds_total{one}"]) == pytest.approx(2.2)
    assert float(metrics[f"polyphi:prompt_tokens_total{one}"]) == used["input_tokens"]
    assert float(metrics[f"polyphi:generation_tokens_total{one}"]) == used["output_tokens"]
    for name in (
        'request_success_total{finished_reason="stop",model_name="tiny"}',
        'adapter_requests_total{adapter="speech",model_name="tiny"}',
        'media_rejected_total{model_name="tiny",reason="content"}',
    ):
        assert float(metrics[f"polyphi:{name}"]) == 1


def test_log_probabilities_are_of_the_text(client: OpenAI) -> None:
    params: dict[str, Any] = {"file": CLIP, "model": "tiny", "include": ["logprobs"]}
    answer = client.audio.transcriptions.create(**params)
    text = b"".join(bytes(map(int, t.bytes)) for t in answer.logprobs).decode(errors="replace")
    assert text.split() == answer.text.split()
    assert all(t.logprob <= 0 and t.token for t in answer.logprobs)
    *_, done = client.audio.transcriptions.create(**params, stream=True)
    logprobs = [t.logprob for t in answer.logprobs]
    assert [t.logprob for t in done.logprobs] == pytest.approx(logprobs, abs=1e-3)


def test_a_stream_joins_to_the_answer(
    running: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcriptions, "WINDOW", 1.0)
    expected = engine_transcript(running.engine, window=1.0)
    params: dict[str, Any] = {"file": CLIP, "model": "tiny"}
    *deltas, done = client.audio.transcriptions.create(**params, stream=True)
    assert {e.type for e in deltas} == {"transcript.text.delta"} and len(deltas) > 1
    assert "".join(e.delta for e in deltas) == done.text == expected.text
    assert done.type == "transcript.text.done" and done.usage.to_dict() == transcriptions.usage(
        expected
    )
    assert done.model_extra["adapter"] == "speech"
    cut = client.audio.transcriptions.create(**params, chunking_strategy="auto")
    assert cut.text == expected.text and cut.usage.to_dict() == transcriptions.usage(expected)
    with running.client() as plain:
        raw = plain.post("/v1/audio/transcriptions", files={"file": CLIP}, data={"stream": "true"})
    assert raw.headers["content-type"].startswith("text/event-stream")
    events = raw.text.split("\n\n")
    assert events.pop() == "" and json.loads(events[-1].removeprefix("data: "))["text"] == done.text


def test_a_stream_without_speech_has_an_empty_delta(client: OpenAI) -> None:
    stream = client.audio.transcriptions.create(file=silence(20), model="tiny", stream=True)
    assert [(e.type, e.to_dict().get("delta")) for e in stream] == [
        ("transcript.text.delta", ""),
        ("transcript.text.done", None),
    ]


def test_translations(running: Running, client: OpenAI) -> None:
    fields: dict[str, Any] = {"file": CLIP, "model": "tiny"}
    ask: Callable[..., Any] = client.audio.translations.create
    expected = engine_transcript(running.engine, transcription("en"))
    assert ask(**fields).text == expected.translation and expected.translation
    verbose = ask(**fields, response_format="verbose_json")
    assert (verbose.language, verbose.text) == ("english", expected.translation)
    both = engine_transcript(running.engine, transcription("de", True))
    answer = ask(**fields, extra_body={"to_language": "german", "cot": True})
    assert answer.text == (both.translation or "" if both.translation is not None else both.text)
    assert answer.model_extra["usage"] == transcriptions.usage(both)


def test_a_translation_has_its_transcript_beside_it(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = longform_segment("good day", "guten Tag")
    transcript = Transcript(
        "good day", 1.0, "guten Tag", ("doubtful",), (segment,), adapter="speech"
    )
    monkeypatch.setattr(longform, "transcribe", lambda *_, **__: [transcript])
    fields: dict[str, Any] = {"file": CLIP, "model": "tiny", "extra_body": {"cot": True}}
    ask: Callable[..., Any] = client.audio.translations.create
    answer = ask(**fields)
    assert answer.text == "guten Tag"
    assert answer.model_extra["transcript"] == "good day"
    assert answer.model_extra["warnings"] == ["doubtful"]
    assert ask(**fields, response_format="text") == "guten Tag\n"
    verbose = ask(**fields, response_format="verbose_json")
    assert (verbose.text, verbose.model_extra["transcript"]) == ("guten Tag", "good day")
    assert verbose.segments[0].text == "guten Tag"


def longform_segment(text: str, translation: str) -> Any:
    from polyphi.types.transcript import Segment

    return Segment(0.0, 1.0, text, -0.5, translation=translation)


def test_seeds_and_temperatures(client: OpenAI) -> None:
    def ask(**fields: Any) -> Any:
        return client.audio.transcriptions.create(
            file=CLIP, model="tiny", response_format="verbose_json", extra_body=fields
        )

    drawn = [ask(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].text == drawn[1].text != drawn[2].text
    assert {s.temperature for f in drawn for s in f.segments} == {1.0}
    texts = [ask(temperature=1.0).text for _ in range(2)]
    assert texts[0] != texts[1], "each request has its own seed"
    assert {s.temperature for s in ask(temperature=["1.0", "0.5"]).segments} <= {1.0, 0.5}
    assert {s.temperature for s in ask(temperature=["0"]).segments} <= set(longform.TEMPERATURES)


def test_a_prompt_is_a_hint_that_is_ignored_with_a_warning(client: OpenAI) -> None:
    for form in ("json", "verbose_json"):
        plain, hinted = (
            client.audio.transcriptions.create(
                file=CLIP, model="tiny", response_format=form, **prompt
            )
            for prompt in ({}, {"prompt": "Names: Ann"})
        )
        assert hinted.text == plain.text
        warnings = [answer.model_extra.get("warnings", []) for answer in (plain, hinted)]
        assert [text for text in warnings[1] if text not in warnings[0]] == [
            transcriptions.PROMPT_WARNING
        ]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"response_format": "diarized_json"}, "response_format"),
    ({"timestamp_granularities": ["phone"]}, "timestamp_granularities"),
    ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
    ({"include": ["logprobs"], "response_format": "text"}, "include"),
    ({"language": "tlh"}, "language"),
    ({"extra_body": {"seed": "one"}}, "seed"),
    ({"extra_body": {"temperature": ["0"] * 9}}, "temperature"),
    ({"extra_body": {"top_p": 0.5}}, "top_p"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "nan"}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"stream": True, "response_format": "srt"}, "response_format"),
    ({"chunking_strategy": {"type": "server_vad"}}, "chunking_strategy"),
    ({"keywords": ["Ann"]}, "keywords"),
    ({"extra_body": {"langage": "en"}}, "langage"),
    ({"extra_body": {"stream": "maybe"}}, "stream"),
    ({"extra_body": {"adapter": "x"}}, "adapter"),
    ({"extra_body": {"to_language": "de"}}, "to_language"),
    ({"extra_body": {"model": ["tiny", "tiny"]}}, "model"),
]


def test_languages_by_name_and_region(client: OpenAI) -> None:
    fields = {"file": CLIP, "model": "whisper-1", "response_format": "verbose_json"}
    for language, expected in (
        ("auto", "unknown"),
        ("pt_BR", "portuguese"),
        ("German", "german"),
        ("zh-Hant-TW", "chinese"),
    ):
        answer = client.audio.transcriptions.create(language=language, **fields)
        assert answer.language == expected


def test_what_is_wrong_is_told_by_its_field(running: Running, client: OpenAI) -> None:
    for params, param in WRONG:
        fields = {"file": CLIP, "model": "tiny", **params}
        with pytest.raises(BadRequestError) as caught:
            client.audio.transcriptions.create(**fields)
        assert caught.value.param == param, params
        assert caught.value.type == "invalid_request_error"
    with pytest.raises(NotFoundError) as missing:
        client.audio.transcriptions.create(file=CLIP, model="mini")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(BadRequestError) as caught:
        client.audio.translations.create(file=CLIP, model="tiny", extra_body={"language": "en"})
    assert caught.value.param == "language"
    client.audio.transcriptions.create(file=CLIP, model="speech", prompt="", language="Chinese")
    client.audio.transcriptions.create(file=CLIP, model="", extra_body={"adapter": "null"})
    assert running.engine.counters().requests == 0


def test_a_form_that_is_none(running: Running) -> None:
    with running.client() as plain:

        def post(**options: Any) -> tuple[int, dict[str, Any]]:
            answer = plain.post("/v1/audio/transcriptions", **options)
            return answer.status_code, answer.json()["error"]

        assert post(json={"file": "x"})[0] == 415
        assert post()[0] == 415
        assert post(data={"file": "no file"})[0] == 415
        head = {"content-type": "multipart/form-data"}
        assert post(content=b"x", headers=head)[0] == 400  # no boundary
        head = {"content-type": "multipart/form-data; boundary=B"}
        assert post(content=b"--B\r\nrubbish", headers=head)[0] == 400
        bare = b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--B--\r\n'
        assert post(content=bare, headers=head)[1]["param"] == "file"
        assert post(files={"audio": CLIP})[1]["message"].endswith("expected 'file'")
        assert post(files={"file": b""})[1]["param"] == "file"


def test_s19_many_parts_and_large_fields_are_refused(running: Running) -> None:
    with running.client() as plain:

        def post(**options: Any) -> int:
            return plain.post("/v1/audio/transcriptions", **options).status_code

        many = {f"x{n}": "1" for n in range(audio_form.MAX_FIELDS + 1)}
        assert post(files={"file": CLIP}, data=many) == 400
        assert post(files=[("file", CLIP), ("file", CLIP)]) == 400
        assert post(files={"file": CLIP}, data={"prompt": "x" * (audio_form.MAX_FIELD + 1)}) == 400
        name = "x" * 100_000
        assert post(files={"file": (name, CLIP)}) == 400
        assert post(files={"file": CLIP}) == 200


def test_s15_a_file_name_says_nothing(running: Running, client: OpenAI) -> None:
    expected = client.audio.transcriptions.create(file=CLIP, model="tiny")
    for name in ("<|system|>.wav", "../../etc/passwd", "a.mp4\x00.wav", "<|audio_1|>", "ä.webm"):
        answer = client.audio.transcriptions.create(file=(name, CLIP, "video/mp4"), model="tiny")
        assert (answer.text, answer.usage) == (expected.text, expected.usage)


NOT_AUDIO = {
    "text": b"Dear Sir or Madam, ",
    "picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
    "zip": b"PK\3\4" + b"\0" * 99,
}


def damaged() -> dict[str, bytes]:
    wav = clip(form="WAV")
    return {
        "cut wav": wav[:-2000],
        "cut flac": CLIP[: len(CLIP) // 2],
        "forged rate": wav[:24] + (1_000_000).to_bytes(4, "little") + wav[28:],
        "no channels": wav[:22] + b"\0\0" + wav[24:],
        "not a number": audio_file(np.full(16000, np.nan, np.float32), subtype="FLOAT"),
        "head only": wav[:44],
        "slow": wav[:24] + (4000).to_bytes(4, "little") + wav[28:],
        "noise": CLIP[:50] + np.random.default_rng(0).bytes(5000),
        "mp3": b"ID3" + b"\0" * 500,
        "webm": b"\x1a\x45\xdf\xa3" + b"\0" * 99,
        "m4a": b"\0\0\0\x20ftypM4A " + b"\0" * 99,
    }


def test_s9_what_is_no_recording_gets_a_message_without_internals(client: OpenAI) -> None:
    cases = [(415, d) for d in NOT_AUDIO.values()] + [(400, d) for d in damaged().values()]
    for status, data in cases:
        for stream in (False, True):
            with pytest.raises(APIStatusError) as caught:
                client.audio.transcriptions.create(file=data, model="tiny", stream=stream)
            error = caught.value
            assert (error.status_code, error.param) == (status, "file"), data[:20]
            text = error.response.text
            assert not [w for w in ("0x", "/tmp", "polyphi-", "Error", "sndfile") if w in text]


def on_every_route(client: httpx2.Client, data: bytes) -> dict[str, httpx2.Response]:
    """The answers of all routes that take audio, by a name for each; "tokenize" reads headers only."""
    encoded = base64.b64encode(data).decode()
    content = [{"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}]
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
    logprobs = {"logprobs": True, "top_logprobs": 2}
    files = {"file": data}
    return {
        "chat": client.post("/v1/chat/completions", json={**chat, **logprobs}),
        "drawn": client.post("/v1/chat/completions", json={**chat, "temperature": 1.0, "seed": 1}),
        "chat stream": client.post("/v1/chat/completions", json={**chat, "stream": True}),
        "transcription": client.post(TRANSCRIPTIONS, files=files),
        "words": client.post(
            TRANSCRIPTIONS,
            files=files,
            data={"response_format": "verbose_json", "timestamp_granularities[]": "word"},
        ),
        "transcription stream": client.post(TRANSCRIPTIONS, files=files, data={"stream": "true"}),
        "translation": client.post(TRANSLATIONS, files=files),
        "tokenize": client.post("/tokenize", json={"messages": chat["messages"]}),
    }


def statuses(answers: dict[str, httpx2.Response]) -> set[int]:
    """The answers of the routes that decode; they must fail with an HTTP status, not later."""
    for name, answer in answers.items():
        assert answer.status_code < 500, (name, answer.text)
        if answer.status_code == 200:
            assert '"error"' not in answer.text, (name, answer.text)
    return {answer.status_code for name, answer in answers.items() if name != "tokenize"}


def noise(form: str, **options: Any) -> bytes:
    wave = 0.1 * np.random.default_rng(0).standard_normal(6000)
    return audio_file(wave, format=form, **options)


FORMS = {
    "wav": noise("WAV"),
    "float wav": noise("WAV", subtype="FLOAT"),
    "flac": noise("FLAC"),
    "ogg": noise("OGG"),
    "opus": noise("OGG", subtype="OPUS"),
    "mp3": noise("MP3"),
}


@pytest.mark.parametrize("form", few(FORMS, 3))
def test_s9_corrupt_audio_is_400_on_every_route(running: Running, form: str) -> None:
    """Truncated, or with flipped bits: refused by all routes or by none, and never a server error."""
    dice, whole = random.Random(form), FORMS[form]
    seen: set[int] = set()
    with running.client() as client:
        assert statuses(on_every_route(client, whole)) == {200}
        cut = whole[: dice.randrange(12, len(whole) * 9 // 10)]
        assert statuses(on_every_route(client, cut)) == {400}
        for _ in range(4):
            data = bytearray(whole)
            for _ in range(dice.choice((1, 3, 30))):
                at = dice.randrange(12, dice.choice((60, len(data))))
                data[at] ^= 1 << dice.randrange(8)
            status = statuses(on_every_route(client, bytes(data)))
            assert len(status) == 1, status
            seen |= status
    assert seen <= {200, 400}


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_s9_one_wrong_bit_is_400_on_every_route(running: Running) -> None:
    wav, slow = FORMS["float wav"], audio_file(np.zeros(20_000), rate=1)
    with running.client() as client:
        for data in (
            # One bit of the exponent of a sample: 1e37, whose square is no number any more.
            flipped(wav, wav.index(b"data") + 8 + 4 * 999 + 3, 6),
            # One bit of the number of samples: the header promises days.
            flipped(FORMS["flac"], 21, 3),
        ):
            assert statuses(on_every_route(client, data)) == {400}
        answers = on_every_route(client, slow)  # more than five hours, at 1 Hz
    assert {answer.status_code for answer in answers.values()} == {400}
    errors = [answer.json()["error"] for answer in answers.values()]
    assert len({(e["message"], e["code"], e["type"]) for e in errors}) == 1
    assert {e["param"] for e in errors} == {"file", "messages[0].content[0].input_audio.data"}


def test_s9_a_failure_of_ours_says_no_more_than_that(
    running: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **options: Any) -> Any:
        options["on_progress"](0.0)
        raise RuntimeError("secret at 0x7f00")

    monkeypatch.setattr(longform, "transcribe", broken)
    with pytest.raises(InternalServerError) as caught:
        client.audio.transcriptions.create(file=CLIP, model="tiny")
    assert "secret" not in caught.value.response.text
    with running.client() as plain:
        raw = plain.post("/v1/audio/transcriptions", files={"file": CLIP}, data={"stream": "1"})
    (only,) = raw.text.strip().split("\n\n")  # an error in the stream, and no end of it
    assert json.loads(only.removeprefix("data: "))["error"]["type"] == "server_error"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The files in the temporary folder, and open deleted ones."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def left() -> list[str]:
        links = []
        for number in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                continue
        return [*os.listdir(tmp_path), *(link for link in links if str(tmp_path) in link)]

    return left


@pytest.fixture
def large() -> bytes:
    """A recording of twenty seconds that is stored in a file."""
    return clip(40, "WAV", subtype="FLOAT") + b"\0" * transcriptions.IN_MEMORY


def test_s25_uploads_are_private_and_gone_afterwards(
    running: Running,
    client: OpenAI,
    large: bytes,
    temporary: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, list[str]]] = []
    real = longform.transcribe

    def watched(engine: Engine, sources: Any, *args: Any, **named: Any) -> Any:
        (path,) = sources
        seen.append((path.stat().st_mode & 0o777, temporary()))
        named["window"] = 10.0
        return real(engine, sources, *args, **named)

    monkeypatch.setattr(longform, "transcribe", watched)
    client.audio.transcriptions.create(file=large, model="tiny")
    assert seen[0][0] == 0o600 and seen[0][1] and not temporary()
    with pytest.raises(BadRequestError):  # refused while it is read
        client.audio.transcriptions.create(file=large[:1_100_000], model="tiny")
    assert len(seen) == 2 and not temporary()
    with pytest.raises(BadRequestError):  # before it is
        client.audio.transcriptions.create(file=large, model="tiny", language="tlh")
    assert len(seen) == 2 and not temporary()
    with (
        running.client() as plain,
        plain.stream(
            "POST", "/v1/audio/transcriptions", files={"file": large}, data={"stream": "true"}
        ) as answer,
    ):
        assert answer.status_code == 200 and temporary()
    until(lambda: not temporary())


@pytest.mark.parametrize("end", ["gone", "too much", "no form"])
def test_s25_a_broken_upload_is_gone(
    end: str, large: bytes, temporary: Callable[[], list[str]]
) -> None:
    body = form(large)[:-2000]
    seen: list[list[str]] = []

    async def receive() -> dict[str, Any]:
        seen.append(temporary())
        if len(seen) == 1:
            return {"type": "http.request", "body": body, "more_body": True}
        if end == "too much":
            return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}
        if end == "no form":
            return {"type": "http.request", "body": b"\r\n--B\r\n\0", "more_body": False}
        return {"type": "http.disconnect"}

    kind = [(b"content-type", b"multipart/form-data; boundary=B")]
    request = HttpRequest({"type": "http", "headers": kind}, receive)  # type: ignore[arg-type]
    with pytest.raises((ClientGone, ApiError)):
        asyncio.run(audio_form.receive(request, 4_000_000))
    assert seen[1] and not temporary()


def head(length: int) -> bytes:
    return (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\n\r\n"
    ).encode()


def form(data: bytes, **fields: str) -> bytes:
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'
        for n, v in fields.items()
    ]
    front = '--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return "".join(parts).encode() + front.encode() + data + b"\r\n--B--\r\n"


@pytest.mark.parametrize("when", few(["streamed", "waiting", "answered"], 2))
def test_who_hangs_up_frees_everything(
    fresh: Running, when: str, temporary: Callable[[], list[str]], large: bytes
) -> None:
    """Alone it would run on for hundreds of steps: an answer to twenty seconds has room for 224 tokens, is asked for
    again with twice as many, and in halves."""
    server = fresh.server
    weight = fresh.engine.model.decoder.embed_tokens.weight
    with torch.no_grad():
        weight[list(fresh.engine.processor.tokenizer.eos_ids)] = 0
    body = form(large, **({"stream": "true"} if when == "streamed" else {}))
    port = int(fresh.url.rpartition(":")[2])
    count = RECORDINGS + 2 if when == "waiting" else 1
    lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for line in lines:
        line.sendall(head(len(body)) + body)
    if when == "streamed":
        assert b"text/event-stream" in lines[0].recv(4096)
    until(lambda: server.admitted == count and fresh.engine.counters().running > 0)
    before = fresh.engine.counters().steps
    for line in lines:
        line.close()
    until(lambda: fresh.idle() and server.admitted == 0 and not temporary())
    after = fresh.engine.counters().steps
    assert after - before < 100
    time.sleep(0.1)
    assert fresh.engine.counters().steps == after


@pytest.fixture
def narrow(engine: Engine) -> Iterator[Running]:
    settings = Settings("tiny", max_audio_bytes=200_000, max_recording_seconds=30)
    with serving(engine, settings) as running:
        yield running


def silence(seconds: int, rate: int = 16000) -> bytes:
    """Some kilobytes per minute."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, "PCM_16", format="FLAC") as flac:
        for _ in range(0, seconds, 60):
            flac.write(np.zeros(rate * 60, np.int16))
    return file.getvalue()


def test_s8_large_and_long_recordings_are_refused(narrow: Running) -> None:
    long = audio_file(np.zeros(8000 * 40, np.float32), 8000, "OGG", "OPUS")
    with narrow.client() as plain:

        def post(data: bytes, **fields: str) -> tuple[int, str]:
            answer = plain.post("/v1/audio/transcriptions", files={"file": data}, data=fields)
            return answer.status_code, answer.text

        for fields in ({}, {"stream": "true"}):
            assert post(CLIP[:100] + bytes(200_000), **fields)[0] == 413
            assert post(bytes(200_000 + 2 * audio_form.AROUND), **fields)[0] == 413
            status, error = post(long, **fields)  # its header tells
            assert status == 413 and "may last 30 s" in error


def test_pieces_are_no_longer_than_clips_may_be(engine: Engine) -> None:
    with serving(engine, Settings("tiny", max_audio_seconds=1.0)) as running:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        answer = client.audio.transcriptions.create(
            file=CLIP, model="tiny", response_format="verbose_json"
        )
        assert len({segment.seek for segment in answer.segments}) > 1


def test_longer_audio_is_an_option_of_the_server(engine: Engine) -> None:
    """Its bodies may be as much larger, and frames of longer pieces count as prompts."""
    half, hour = Settings("tiny"), Settings("tiny", max_audio_seconds=3600)
    for name in ("max_audio_bytes", "max_body_bytes", "body_seconds"):
        assert getattr(hour, name) == 2 * getattr(half, name)
    assert (
        hour.max_requests_bytes - hour.max_body_bytes
        == half.max_requests_bytes - half.max_body_bytes
    )
    with pytest.raises(ValueError, match="between 1 and 10,080"):
        Settings("tiny", max_audio_seconds=10_081)
    long = base64.b64encode(silence(31 * 60)).decode()
    audio = {"type": "input_audio", "input_audio": {"data": long, "format": "flac"}}
    chat = {"messages": [{"role": "user", "content": [audio]}], "max_tokens": 1}
    for settings, status, message in (
        (half, 413, "may last 1800 s, found 1860"),
        (hour, 400, "at least 23"),
    ):
        with serving(engine, settings) as running, running.client() as client:
            answer = client.post("/v1/chat/completions", json=chat)
            assert answer.status_code == status and message in answer.text
            prompts = running.server.quotas.bytes
            prompts.always = 0
            assert prompts.used == 0, "it is released before the answer ends"
            reservation = prompts.take(b"another", prompts.total - len(CLIP) - 1000)
            answer = client.post("/v1/audio/transcriptions", files={"file": CLIP})
            assert answer.status_code == (200 if settings is half else 429), answer.text
            reservation.release()
            answer = client.post("/v1/audio/transcriptions", files={"file": CLIP})
            assert answer.status_code == 200 and prompts.used == 0


def test_s8_samples_are_counted_while_they_are_decoded(
    narrow: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trusting(longform.StoppableStream):
        """Takes any header for true."""

        def __init__(self, source: Any, max_seconds: float, stop: Any, decoders: Any) -> None:
            longform.AudioStream.__init__(self, source, max_seconds=max_seconds)
            self._stopped = stop

    monkeypatch.setattr(longform, "StoppableStream", Trusting)
    with narrow.client() as plain:
        for fields in ({}, {"stream": "true"}):
            files = {"file": silence(3600)}
            answer = plain.post("/v1/audio/transcriptions", files=files, data=fields)
            assert answer.status_code == 413 and "found 32" in answer.text, answer.text

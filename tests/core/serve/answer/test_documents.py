"""PDFs and text files in the requests of all APIs: the same prompt as their pages and texts, and errors that name
them."""

import base64
import io
import json
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import fixtures.heif  # noqa: F401 (writes HEIC)
import httpx2
import pytest
from fixtures.engines import fitted, make_engine
from fixtures.pdfs import pages, scanned_pdf, stream, text_pdf
from fixtures.processes import Children
from fixtures.servers import Running, from_address, serving, until
from fixtures.variants import few
from PIL import Image as pil

from polyphi.engine.engine import Engine
from polyphi.media import isolated
from polyphi.media.media import image_types
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer import fetch
from polyphi.types.parts import Document, Image, Text

LETTER = text_pdf("the quick fox", "1 + 2 = 3")
NOTES = b"the lazy dog\n"
DOCUMENTS = {"text": LETTER, "notes": NOTES, "scan": scanned_pdf("red")}
QUESTION = "what?"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def chat_file(
    data: bytes, name: str | None = "a.pdf", scheme: str = "data:application/pdf;base64,"
) -> dict[str, Any]:
    file = {"file_data": scheme + base64_of(data), **({"filename": name} if name else {})}
    return {"type": "file", "file": file}


def by_hand(engine: Engine, data: bytes, name: str = "a.pdf") -> list[Text | Image]:
    """The parts that stand for a document, decoded here."""
    expanded = engine.processor.expanded(Document(data, name))
    return [part for page in expanded for part in page]


def chat_part(part: Text | Image) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    assert isinstance(part.source, bytes)
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/bmp;base64," + base64_of(part.source)},
    }


def chat(client: httpx2.Client, *parts: dict[str, Any], **fields: Any) -> httpx2.Response:
    content = [*parts, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}
    return client.post("/v1/chat/completions", json=body)


def responses(client: httpx2.Client, *parts: dict[str, Any], **fields: Any) -> httpx2.Response:
    content = [*parts, {"type": "input_text", "text": QUESTION}]
    body = {"input": [{"role": "user", "content": content}], "max_output_tokens": 4, **fields}
    return client.post("/v1/responses", json=body)


def messages(client: httpx2.Client, *blocks: dict[str, Any], **fields: Any) -> httpx2.Response:
    content = [*blocks, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}
    return client.post("/v1/messages", json=body)


def as_responses(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"]}


def as_block(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    data = part["image_url"]["url"].partition(",")[2]
    return {"type": "image", "source": {"type": "base64", "data": data}}


def outcome(response: httpx2.Response) -> tuple[str, int]:
    """The text of an answer and the tokens of its prompt."""
    assert response.status_code == 200, response.text
    body = response.json()
    usage = body["usage"]
    if "choices" in body:
        return body["choices"][0]["message"]["content"], usage["prompt_tokens"]
    content = body["content"] if "content" in body else body["output"][0]["content"]
    # Anthropic's tokens of a cached prefix are apart.
    return content[0]["text"], usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)


def streamed(response: httpx2.Response) -> str:
    """The text of a stream."""
    assert response.status_code == 200, response.text
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    text = ""
    for event in map(json.loads, events):
        if event.get("choices"):
            text += event["choices"][0]["delta"].get("content") or ""
        elif event.get("type") == "response.output_text.delta":
            text += event["delta"]
        elif event.get("type") == "content_block_delta":
            text += event["delta"]["text"]
    return text


def error_of(response: httpx2.Response, status: int) -> tuple[str | None, str]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert "\n" not in error["message"] and "Traceback" not in response.text
    return error.get("param"), error["message"]


@pytest.mark.parametrize("name", few(DOCUMENTS, 2))
def test_a_document_is_its_pages_in_all_apis(
    running: Running, name: str, children: Children
) -> None:
    data = DOCUMENTS[name]
    separate = [chat_part(part) for part in by_hand(running.engine, data)]
    block = {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": base64_of(data)},
        "title": "a.pdf",
    }
    file = {"type": "input_file", "filename": "a.pdf", "file_data": base64_of(data)}
    with running.client() as client:
        ids = [
            client.post("/tokenize", json={"messages": [{"role": "user", "content": parts}]}).json()
            for parts in ([chat_file(data)], separate)
        ]
        assert ids[0] == ids[1] and ids[0]["count"] > 10
        for ask, whole, parts in (
            (chat, [chat_file(data)], separate),
            (chat, [chat_file(data, scheme="")], separate),
            (responses, [file], [as_responses(part) for part in separate]),
            (messages, [block], [as_block(part) for part in separate]),
        ):
            expected = outcome(ask(client, *parts))
            assert outcome(ask(client, *whole)) == expected
            assert streamed(ask(client, *whole, stream=True)) == expected[0]
        count = client.post(
            "/v1/responses/input_tokens",
            json={"input": [{"role": "user", "content": [file]}]},
        ).json()["input_tokens"]
        blocks = {"messages": [{"role": "user", "content": [block]}]}
        assert client.post("/v1/messages/count_tokens", json=blocks).json()["input_tokens"] == count
        assert count == ids[0]["count"]
    assert running.idle() and not children()


def test_a_stored_conversation_has_its_document(running: Running) -> None:
    file = {
        "type": "input_file",
        "filename": "a.pdf",
        "file_data": "data:;base64," + base64_of(LETTER),
    }
    with running.client() as client:
        first = responses(client, file, store=True)
        again = {
            "input": "more",
            "previous_response_id": first.json()["id"],
            "max_output_tokens": 4,
        }
        second = client.post("/v1/responses", json=again)
        items = client.get(f"/v1/responses/{first.json()['id']}/input_items").json()["data"]
        assert items[0]["content"][0] == file
        whole = [
            {"role": "user", "content": [file, {"type": "input_text", "text": QUESTION}]},
            {"role": "assistant", "content": outcome(first)[0]},
            {"role": "user", "content": "more"},
        ]
        same = client.post("/v1/responses", json={"input": whole, "max_output_tokens": 4})
        assert outcome(second) == outcome(same) and outcome(second)[1] > outcome(first)[1]


def test_documents_of_tool_results(running: Running) -> None:
    separate = [chat_part(part) for part in by_hand(running.engine, NOTES, "n.txt")]
    source = {"type": "base64", "data": base64_of(NOTES)}
    block = {"type": "document", "source": source, "title": "n.txt"}

    def anthropic(*content: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "c", "content": list(content)}
        turns = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        return {"messages": turns, "max_tokens": 4}

    def openai(*content: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
        result = {"type": "function_call_output", "call_id": "c", "output": list(content)}
        return {"input": [call, result], "max_output_tokens": 4}

    file = {"type": "input_file", "filename": "n.txt", "file_data": base64_of(NOTES)}
    with running.client() as client:
        for path, whole, parts in (
            ("/v1/messages", anthropic(block), anthropic(*map(as_block, separate))),
            ("/v1/responses", openai(file), openai(*map(as_responses, separate))),
        ):
            assert outcome(client.post(path, json=whole)) == outcome(client.post(path, json=parts))


@pytest.mark.parametrize(
    ("block", "texts"),
    [
        (
            {"source": {"type": "text", "media_type": "text/plain", "data": "a b"}},
            ["File document:\na b\n"],
        ),
        (
            {
                "source": {"type": "text", "data": "a"},
                "title": "t",
                "context": "c",
                "citations": {"enabled": False},
            },
            ["c\n", "File t:\na\n"],
        ),
        ({"source": {"type": "content", "content": "a"}, "title": "t"}, ["File t:\na\n"]),
        (
            {
                "source": {"type": "content", "content": [{"type": "text", "text": "a"}]},
                "title": "t",
                "context": None,
            },
            ["File t:\n", "a", "\n"],
        ),
    ],
)
def test_documents_in_words(running: Running, block: dict[str, Any], texts: list[str]) -> None:
    with running.client() as client:
        whole = messages(client, {"type": "document", **block})
        assert outcome(whole) == outcome(
            messages(client, *({"type": "text", "text": t} for t in texts))
        )


def document(**source: Any) -> dict[str, Any]:
    return {"type": "document", "source": source}


def input_file(**fields: Any) -> dict[str, Any]:
    return {"type": "input_file", **fields}


DATA = base64_of(NOTES)


@pytest.mark.parametrize(
    ("ask", "part", "param", "message"),
    [
        (chat, {"type": "file", "file": {"file_id": "file-1"}}, "file.file_id", "stores no files"),
        (chat, {"type": "file", "file": {"filename": "a"}}, "file.file_data", "required"),
        (
            chat,
            {"type": "file", "file": {"file_data": "http://example.org/a.pdf"}},
            "file.file_data",
            "base64",
        ),
        (chat, {"type": "file", "file": {"file_data": "data:x"}}, "file.file_data", "comma"),
        (responses, input_file(file_id="file-1"), "file_id", "stores no files"),
        (responses, input_file(), "", "either file_data or file_url"),
        (responses, input_file(file_data=DATA, file_url="http://example.org/a"), "", "either"),
        (responses, input_file(file_url="http://example.org/a.pdf"), "file_url", "fetches nothing"),
        (responses, input_file(file_url="file:///etc/passwd"), "file_url", "reads no files"),
        (messages, document(type="file", file_id="file_1"), "source", "stores no files"),
        (
            messages,
            document(type="url", url="http://example.org/a.pdf"),
            "source.url",
            "fetches nothing",
        ),
        (messages, document(type="folder"), "source", "unknown type"),
        (
            messages,
            {**document(type="base64", data=DATA), "citations": {"enabled": True}},
            "citations.enabled",
            "no citations",
        ),
    ],
)
def test_what_is_refused_says_why(
    running: Running,
    ask: Callable[..., httpx2.Response],
    part: dict[str, Any],
    param: str,
    message: str,
) -> None:
    with running.client() as client:
        path, text = error_of(ask(client, part), 400)
    assert message in text
    place = "input[0].content[0]" if ask is responses else "messages[0].content[0]"
    if ask is not messages:  # Anthropic's errors have no such field
        assert path == f"{place}.{param}".removesuffix(".")


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"PK\x03\x04\x14\0", 415, "expected a PDF or a text in UTF-8, found ZIP"),
        (b"Z\xfcrich", 415, "no UTF-8"),
        (LETTER[:300], 400, "damaged or truncated"),
        (text_pdf(*"x" * 101), 413, "may have 100 pages, found 101"),
    ],
)
def test_errors_name_the_document(running: Running, data: bytes, status: int, message: str) -> None:
    """Behind another document and an image of the same message."""
    image = chat_part(Image(_bmp()))
    with running.client() as client:
        param, text = error_of(chat(client, chat_file(NOTES), image, chat_file(data)), status)
        assert param == "messages[0].content[2].file.file_data" and message in text
        body = {"messages": [{"role": "user", "content": [chat_file(data)]}]}
        assert client.post("/tokenize", json=body).status_code == status
    assert running.idle()


@pytest.mark.parametrize(
    ("ask", "part"),
    [
        (chat, chat_file(NOTES, "bad.png")),
        (chat, chat_file(NOTES, None, "data:audio/mpeg;base64,")),
        (responses, input_file(filename="x.zip", file_data=DATA)),
        (responses, input_file(file_data=f"data:image/png;base64,{DATA}")),
        (messages, {**document(type="base64", data=DATA), "title": "bad.png"}),
        (messages, document(type="base64", media_type="image/png", data=DATA)),
    ],
)
def test_text_that_is_called_something_else_is_refused(
    running: Running, ask: Callable[..., httpx2.Response], part: dict[str, Any]
) -> None:
    with running.client() as client:
        _, text = error_of(ask(client, part), 415)
    assert "found text" in text


def _bmp(size: tuple[int, int] = (60, 60)) -> bytes:
    out = io.BytesIO()
    pil.new("RGB", size).save(out, "BMP")
    return out.getvalue()


def test_a_page_that_no_crops_fit_is_an_error_of_its_document(running: Running) -> None:
    thin = pages([stream(b"")], box=b"0 0 1 14400")
    with running.client() as client:
        parts = chat_file(LETTER), chat_part(Image(_bmp())), chat_file(thin)
        param, text = error_of(chat(client, *parts), 400)
        assert param == "messages[0].content[2].file.file_data" and "too long and thin" in text
        whole = _bmp()
        damaged = chat_part(Image(whole[:-50]))
        param, _ = error_of(chat(client, chat_file(LETTER), damaged), 400)
        assert param == "messages[0].content[1].image_url.url"


@pytest.mark.parametrize(
    ("limits", "status", "param"),
    [
        ({"max_document_bytes": 100}, 413, "content[0].file.file_data"),
        ({"max_document_pages": 1}, 413, "content[0].file.file_data"),
        ({"max_document_characters": 10}, 413, "content[0].file.file_data"),
        ({"max_parts": 3}, 413, "content[1].file.file_data"),
        ({"max_request_pixels": 50_000}, 413, ""),
        ({"max_parts": 4}, 200, ""),
    ],
)
def test_documents_have_limits(
    engine: Engine, limits: dict[str, Any], status: int, param: str
) -> None:
    with serving(engine, Settings("tiny", **limits)) as server, server.client() as client:
        answer = chat(client, chat_file(LETTER), chat_file(LETTER))
        assert answer.status_code == status, answer.text
        if status != 200:
            place = f"messages[0].{param}" if param else "messages"
            assert answer.json()["error"]["param"] == place
        props = client.get("/props").json()
        assert props["documents"] is True and "image/heic" in props["image_formats"]
        assert props["limits"]["max_document_pages"] == server.settings.max_document_pages
        assert props["limits"]["max_document_bytes"] == server.settings.max_document_bytes


@pytest.mark.parametrize("cause", ["option", "system"])
def test_where_nothing_isolates_pdfium_pdfs_are_refused(
    engine: Engine, cause: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings("tiny", containers=False if cause == "option" else None)
    if cause == "system":
        monkeypatch.setattr(fetch, "pdf_isolation_missing", lambda: "pip install this")
    with (
        caplog.at_level(logging.WARNING),
        serving(engine, settings) as server,
        server.client() as client,
    ):
        _, text = error_of(chat(client, chat_file(LETTER)), 415)
        assert "reads no PDFs" in text and "pip" not in text
        assert chat(client, chat_file(NOTES)).status_code == 200
        assert client.get("/props").json()["documents"] is False
    assert ("PDFs are refused: pip install this" in caplog.text) == (cause == "system")


def test_a_model_without_images_reads_the_text(
    tiny_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    config = replace(fitted(tiny_config, tokenizer, max_position_embeddings=2048), vision=None)
    engine = make_engine(config, tokenizer)
    texts = [chat_part(part) for part in by_hand(engine, LETTER)]
    assert [part["type"] for part in texts] == ["text"] * 4
    with serving(engine, Settings("tiny")) as server, server.client() as client:
        assert outcome(chat(client, chat_file(LETTER))) == outcome(chat(client, *texts))
        param, text = error_of(chat(client, chat_file(scanned_pdf("red"))), 400)
        assert param == "messages[0].content[0].file.file_data" and "reads no images" in text


def test_pdfium_that_fails_is_one_error(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    (tmp_path / "child.py").write_text("import os; os.abort()")
    with running.client() as client:
        expected = outcome(chat(client, chat_file(LETTER)))
        with monkeypatch.context() as patch:
            patch.setattr(isolated, "CHILD", tmp_path / "child.py")
            refused = chat(client, chat_file(LETTER))
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "media_not_decoded"
        assert outcome(chat(client, chat_file(LETTER))) == expected
    assert running.idle() and not children()


def test_documents_are_loaded_by_the_rules_of_images(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(LETTER)
    local = input_file(file_url=f"file://{tmp_path}/a.pdf", filename="a.pdf")
    sent = input_file(file_data=base64_of(LETTER), filename="a.pdf")
    with serving(engine, Settings("tiny", local=tmp_path)) as server, server.client() as client:
        assert outcome(responses(client, local)) == outcome(responses(client, sent))


@pytest.mark.long
def test_a_document_does_not_wait_for_all_pages_of_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients have both slots; a third one's turn comes between their pages."""
    monkeypatch.setattr(isolated, "DOCUMENT_TURN_SECONDS", 0)
    monkeypatch.setattr("polyphi.serve.admission.threads.TURN_SECONDS", 0)
    long, short = text_pdf(*"abcdefgh"), text_pdf("x")
    process, started, go = isolated.DecoderProcess, list[bytes](), threading.Event()

    def watched(data: bytes, *arguments: Any, **options: Any) -> isolated.DecoderProcess:
        started.append(data)
        assert go.wait(60)
        return process(data, *arguments, **options)

    with serving(engine, Settings("tiny")) as server, ExitStack() as stack:
        monkeypatch.setattr(isolated, "DecoderProcess", watched)
        threads = []
        slots = server.uvicorn.config.app.state.server.expansion_threads.slots
        for number, data in enumerate((long, long, short)):
            client = stack.enter_context(from_address(server, f"127.0.0.{number + 2}"))
            threads.append(threading.Thread(target=chat, args=(client, chat_file(data))))
            threads[-1].start()
            until(lambda: slots.running + slots.waiting == number + 1)  # noqa: B023
        go.set()
        for thread in threads:
            thread.join()
    assert started.count(long) == 16 and started.count(short) == 1
    assert started.index(short) < 8


def test_separate_processes_decode_them_too(engine: Engine) -> None:
    """As where other machines can reach the server; and HEIC, whose decoder starts a thread."""
    assert "image/heic" in image_types(), "the tests need pi-heif"
    heic = io.BytesIO()
    pil.linear_gradient("L").convert("RGB").save(heic, "HEIF")
    answers = []
    for separate in (False, True):
        settings = Settings("tiny", isolate_decoding=separate)
        with serving(engine, settings) as server, server.client() as client:
            parts = chat_file(LETTER), chat_part(Image(heic.getvalue()))
            answers.append(outcome(chat(client, *parts)))
    assert answers[0] == answers[1]

"""PDFs and text files in the requests of all APIs: the same prompt as their pages and texts, and errors that name
them."""

import base64
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image as pil

import tests.fixtures.heif  # noqa: F401 (writes HEIC)
from polyphi.engine.engine import Engine
from polyphi.media import isolated
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from polyphi.types.parts import Document, Text
from tests.core.serve.dialects import CHAT, MESSAGES, RESPONSES, Json, input_part
from tests.fixtures.engines import fitted, make_engine
from tests.fixtures.images import image_file
from tests.fixtures.pdfs import pages, scanned_pdf, stream, text_pdf
from tests.fixtures.processes import Children
from tests.fixtures.servers import Running, from_address, serving, until
from tests.fixtures.variants import few

LETTER = text_pdf("the quick fox", "1 + 2 = 3")
NOTES = b"the lazy dog\n"
DOCUMENTS = {"text": LETTER, "notes": NOTES, "scan": scanned_pdf("red")}
QUESTION = {"type": "text", "text": "what?"}
READERS = [CHAT, RESPONSES, MESSAGES]
FILE = "messages[0].content[{}].file.file_data"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def file(data: bytes, scheme: str = "data:application/pdf;base64,", name: str = "a.pdf") -> Json:
    return {"type": "file", "file": {"file_data": scheme + base64_of(data), "filename": name}}


def image(data: bytes) -> Json:
    return {"type": "image_url", "image_url": {"url": "data:image/bmp;base64," + base64_of(data)}}


def by_hand(engine: Engine, data: bytes, name: str = "a.pdf") -> list[Json]:
    """The parts that stand for a document, decoded here."""
    parts = [part for page in engine.processor.expanded(Document(data, name)) for part in page]
    return [
        {"type": "text", "text": part.text} if isinstance(part, Text) else image(part.source)  # type: ignore[arg-type]
        for part in parts
    ]


def asking(*parts: Json) -> Json:
    return {"messages": [{"role": "user", "content": [*parts, QUESTION]}], "max_tokens": 4}


def ask(client: httpx2.Client, *parts: Json) -> httpx2.Response:
    return client.post(CHAT.path, json=asking(*parts))


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
    whole, pages = asking(file(data)), asking(*by_hand(running.engine, data))
    with running.client() as client:
        counts = [
            client.post("/tokenize", json={"messages": body["messages"]}).json()
            for body in (whole, pages)
        ]
        assert counts[0] == counts[1] and counts[0]["count"] > 10
        for dialect in READERS:
            expected = dialect.answer(client, pages)
            assert dialect.answer(client, whole) == expected
            assert dialect.streamed(client, whole) == expected
            if dialect.count:
                counted = dialect.write({"messages": whole["messages"]})
                count = client.post(dialect.count, json=counted).json()["input_tokens"]
                assert count == counts[0]["count"]
        assert CHAT.answer(client, asking(file(data, scheme=""))) == CHAT.answer(client, pages)
    assert not children()


def test_a_stored_conversation_has_its_document(running: Running) -> None:
    more, path = {"role": "user", "content": "more"}, RESPONSES.path
    with running.client() as client:
        first = RESPONSES.body(client, asking(file(LETTER)))
        items = client.get(f"{path}/{first['id']}/input_items").json()["data"]
        assert items[0]["content"] == [input_part(file(LETTER)), input_part(QUESTION)]
        again = {"input": "more", "previous_response_id": first["id"], "max_output_tokens": 4}
        second = RESPONSES.read(client.post(path, json=again).json())
        reply = {"role": "assistant", "content": RESPONSES.read(first).text}
        turns = [*asking(file(LETTER))["messages"], reply, more]
        same = RESPONSES.answer(client, {"messages": turns, "max_tokens": 4})
    assert second == same and second.prompt_tokens > RESPONSES.read(first).prompt_tokens


def test_documents_of_tool_results(running: Running) -> None:
    pages = by_hand(running.engine, NOTES, "n.txt")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    def result(*content: Json) -> Json:
        turns = [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": list(content)},
        ]
        return {"messages": turns, "max_tokens": 4}

    with running.client() as client:
        for dialect in (RESPONSES, MESSAGES):
            whole = dialect.answer(client, result(file(NOTES, name="n.txt")))
            assert whole == dialect.answer(client, result(*pages))


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
    whole = asking({"type": "document", **block})
    with running.client() as client:
        reply = client.post(MESSAGES.path, json=whole)
        parts = [{"type": "text", "text": text} for text in texts]
        assert MESSAGES.read(reply.json()) == MESSAGES.answer(client, asking(*parts))


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
    with running.client() as client:
        param, text = error_of(ask(client, file(NOTES), image(bmp()), file(data)), status)
        assert param == FILE.format(2) and message in text
        body = {"messages": [{"role": "user", "content": [file(data)]}]}
        assert client.post("/tokenize", json=body).status_code == status


def bmp() -> bytes:
    return image_file(pil.new("RGB", (60, 60)), "BMP")


def test_a_page_that_no_crops_fit_is_an_error_of_its_document(running: Running) -> None:
    thin = pages([stream(b"")], box=b"0 0 1 14400")
    with running.client() as client:
        param, text = error_of(ask(client, file(LETTER), image(bmp()), file(thin)), 400)
        assert param == FILE.format(2) and "too long and thin" in text
        param, _ = error_of(ask(client, file(LETTER), image(bmp()[:-50])), 400)
        assert param == "messages[0].content[1].image_url.url"


LIMITS = [
    ({"max_document_bytes": 100}, 413, FILE.format(0)),
    ({"max_document_pages": 1}, 413, FILE.format(0)),
    ({"max_document_characters": 10}, 413, FILE.format(0)),
    ({"max_parts": 3}, 413, FILE.format(1)),
    ({"max_request_pixels": 50_000}, 413, "messages"),
    ({"max_parts": 4}, 200, None),
]


def test_documents_have_limits(engine: Engine) -> None:
    for limits, status, param in LIMITS:
        with serving(engine, Settings("tiny", **limits)) as server, server.client() as client:
            answer = ask(client, file(LETTER), file(LETTER))
            assert answer.status_code == status, answer.text
            assert status == 200 or answer.json()["error"]["param"] == param
            props = client.get("/props").json()
            assert props["documents"] is True and "image/heic" in props["image_formats"]
            assert props["limits"]["max_document_pages"] == server.settings.max_document_pages
            assert props["limits"]["max_document_bytes"] == server.settings.max_document_bytes


def test_a_model_without_images_reads_the_text(
    tiny_config: ModelConfig, tokenizer: Tokenizer
) -> None:
    config = replace(fitted(tiny_config, tokenizer, max_position_embeddings=2048), vision=None)
    engine = make_engine(config, tokenizer)
    texts = by_hand(engine, LETTER)
    assert [part["type"] for part in texts] == ["text"] * 4
    with serving(engine, Settings("tiny")) as server, server.client() as client:
        assert CHAT.answer(client, asking(file(LETTER))) == CHAT.answer(client, asking(*texts))
        param, text = error_of(ask(client, file(scanned_pdf("red"))), 400)
        assert param == FILE.format(0) and "reads no images" in text


def test_documents_are_loaded_by_the_rules_of_images(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(LETTER)
    part = {"type": "input_file", "file_url": f"file://{tmp_path}/a.pdf", "filename": "a.pdf"}
    local = {"input": [{"role": "user", "content": [part, input_part(QUESTION)]}]}
    with serving(engine, Settings("tiny", local=tmp_path)) as server, server.client() as client:
        reply = client.post(RESPONSES.path, json={**local, "max_output_tokens": 4})
        assert RESPONSES.read(reply.json()) == RESPONSES.answer(client, asking(file(LETTER)))


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
        slots = server.server.expansion_threads.slots
        for number, data in enumerate((long, long, short)):
            client = stack.enter_context(from_address(server, f"127.0.0.{number + 2}"))
            threads.append(threading.Thread(target=ask, args=(client, file(data))))
            threads[-1].start()
            until(lambda: slots.running + slots.waiting == number + 1)  # noqa: B023
        go.set()
        for thread in threads:
            thread.join()
    assert started.count(long) == 16 and started.count(short) == 1
    assert started.index(short) < 8

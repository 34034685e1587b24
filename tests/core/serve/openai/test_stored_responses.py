"""Stored responses over HTTP: a client that doesn't read them takes next to no memory, and media are stored once."""

import base64
import io
import json
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image as PIL

from tests.fixtures.servers import Running, until

MIB = 1 << 20
SIDE = 1300
"""Pixels of a side of an image whose base64 is larger than the system's socket buffers."""


@pytest.fixture(scope="module")
def image() -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.fromarray(pixels).save(file, "PNG", compress_level=0)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def http(fresh: Running) -> Iterator[httpx2.Client]:
    with fresh.client() as client:
        yield client


def create(http: httpx2.Client, url: str, text: str = "hi", **more: Any) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": url}]
    body = {"input": [{"role": "user", "content": content}], "max_output_tokens": 2, **more}
    reply = http.post("/v1/responses", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def stored_bytes(http: httpx2.Client) -> float:
    name = 'polyphi:stored_responses_bytes{model_name="tiny"} '
    (line,) = [line for line in http.get("/metrics").text.split("\n") if line.startswith(name)]
    return float(line.removeprefix(name))


@contextmanager
def requested(running: Running, path: str) -> Iterator[socket.socket]:
    """A connection that has sent a request and reads nothing."""
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
        head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        peer.sendall(head.encode())
        yield peer


def waiting(running: Running) -> int:
    """The number of connections whose client has to read before the server can send."""
    connections = list(running.uvicorn.server_state.connections)
    return sum(one.transport.get_write_buffer_size() > 0 for one in connections)


def rest(peer: socket.socket) -> bytes:
    """The body of the response."""
    received = bytearray()
    while piece := peer.recv(1 << 20):
        received += piece
    return bytes(received.partition(b"\r\n\r\n")[2])


def test_responses_that_are_not_read_take_no_memory(
    fresh: Running, http: httpx2.Client, image: str
) -> None:
    created = create(http, image)
    path, count = f"/v1/responses/{created['id']}/input_items", 8
    with ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        peers = [stack.enter_context(requested(fresh, path)) for _ in range(count)]
        until(lambda: waiting(fresh) == count)
        allocated, _ = tracemalloc.get_traced_memory()
        assert allocated < 16 * MIB, f"{count} unread copies of {len(image) / MIB:.0f} MiB"
        items = json.loads(rest(peers[0]))
    assert items["data"][0]["content"][1]["image_url"] == image
    assert items["first_id"] == items["last_id"] == items["data"][0]["id"]
    until(lambda: not fresh.uvicorn.server_state.tasks)


def test_a_response_is_read_to_its_end_although_it_is_deleted(
    fresh: Running, http: httpx2.Client, image: str
) -> None:
    created = create(http, image)
    with requested(fresh, f"/v1/responses/{created['id']}/input_items") as peer:
        until(lambda: waiting(fresh) == 1)
        assert http.delete(f"/v1/responses/{created['id']}").json()["deleted"]
        assert http.get(f"/v1/responses/{created['id']}").status_code == 404
        assert stored_bytes(http) > len(image), "it counts while it is read"
        assert json.loads(rest(peer))["data"][0]["content"][1]["image_url"] == image
    until(lambda: stored_bytes(http) == 0)


def test_media_are_stored_once(http: httpx2.Client, image: str) -> None:
    """A client that sends its whole conversation each time stores its media once, and finds them in each response."""
    first = create(http, image, "one")
    before = stored_bytes(http)
    assert before < len(image) * 1.01 + 16_384
    second = create(http, image, "two")
    continued = create(http, image, "three", previous_response_id=second["id"])
    assert stored_bytes(http) < before + 3 * 16_384
    for response, text in ((first, "one"), (second, "two"), (continued, "three")):
        (item,) = http.get(f"/v1/responses/{response['id']}/input_items").json()["data"]
        assert item["content"] == [
            {"type": "input_text", "text": text},
            {"type": "input_image", "image_url": image},
        ]
    for response in (first, second):
        http.delete(f"/v1/responses/{response['id']}")
    (item,) = http.get(f"/v1/responses/{continued['id']}/input_items").json()["data"]
    assert item["content"][1]["image_url"] == image


def test_items_are_listed_as_they_were_sent(http: httpx2.Client) -> None:
    long = 'größer "als"\n' * 60
    sent = [
        {"role": "user", "content": [{"type": "input_text", "text": f"{i} {long}"}]} for i in (1, 2)
    ]
    sent.append({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"})
    sent.append({"type": "function_call_output", "call_id": "a", "output": "noon"})
    body = {"input": sent, "max_output_tokens": 2}
    created = http.post("/v1/responses", json=body).json()
    path = f"/v1/responses/{created['id']}/input_items"
    items = http.get(path, params={"order": "asc"}).json()
    assert [item.get("content", item["type"]) for item in items["data"]] == [
        sent[0]["content"],
        sent[1]["content"],
        "function_call",
        "function_call_output",
    ]
    ids = [item["id"] for item in items["data"]]
    assert (items["first_id"], items["last_id"], items["has_more"]) == (ids[0], ids[-1], False)
    page = http.get(path, params={"limit": 2, "after": ids[3]}).json()
    assert [item["id"] for item in page["data"]] == [ids[2], ids[1]] and page["has_more"]
    empty = http.get(path, params={"order": "asc", "after": ids[-1]}).json()
    assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], None, False)

"""Fixtures of all uses. They run in a client's environment, which has pytest but not polyphi."""

import json
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def url() -> str:
    """The server's address, without `/v1`."""
    return os.environ["POLYPHI_URL"]


@pytest.fixture(scope="session")
def model() -> str:
    return os.environ["POLYPHI_MODEL"]


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """The run that is served: `model/` is its checkpoint, with the tokenizer."""
    return Path(os.environ["POLYPHI_RUN"])


@pytest.fixture(scope="session")
def media() -> dict[str, dict[str, str]]:
    """File name -> its path, a question about it and the answer: `picture.png` and `recording.wav`."""
    folder = Path(os.environ["POLYPHI_MEDIA"])
    entries = json.loads((folder / "media.json").read_text(encoding="utf-8"))
    return {name: {**entry, "path": str(folder / name)} for name, entry in entries.items()}


@pytest.fixture(scope="session")
def post(url: str) -> Callable[[str, dict[str, Any]], Any]:
    """Send a JSON body to a route without any client; returns the JSON answer. Clients must show the same."""

    def send(route: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
        request = urllib.request.Request(url + route, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    return send

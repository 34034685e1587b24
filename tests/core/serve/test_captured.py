"""Requests that Open WebUI, LibreChat and Home Assistant sent to a server: each is answered, and each stream ends.

`tests/clients/captured/` has their fields as the programs sent them, with short texts instead of the programs' own.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fixtures.audio import audio_file
from tests.fixtures.engines import clip, picture
from tests.fixtures.images import image_file
from tests.fixtures.servers import Running

FOLDER = Path(__file__).parents[2] / "clients" / "captured"
PROGRAMS = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
REQUESTS = {f"{p['program']}: {r['use']}": r for p in PROGRAMS for r in p["requests"]}
LIMITS = {"/v1/chat/completions": "max_tokens", "/v1/responses": "max_output_tokens"}


def body_of(request: dict[str, Any]) -> dict[str, Any]:
    """The body for the model `tiny`, with a picture and a PDF, and at most eight tokens of answer."""
    text = json.dumps(request["body"]).replace('"model": "nano"', '"model": "tiny"')
    text = text.replace("base64,PICTURE", f"base64,{base64.b64encode(picture().source).decode()}")
    page = image_file(Image.new("RGB", (64, 64)), "PDF")
    text = text.replace("base64,PDF", f"base64,{base64.b64encode(page).decode()}")
    limit = LIMITS.get(request["path"])
    return json.loads(text) | ({limit: 8} if limit else {})


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_answer(running: Running, request_: dict[str, Any]) -> None:
    with running.client() as client:
        if "form" in request_:
            files = {"file": ("a.wav", audio_file(*clip().source))}
            answer = client.post(request_["path"], data=request_["form"], files=files)
        else:
            answer = client.post(request_["path"], json=body_of(request_))
    assert answer.status_code == 200, answer.text
    if not request_.get("body", {}).get("stream"):
        assert "error" not in answer.json() or answer.json()["error"] is None
        return
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    if request_["path"] == "/v1/chat/completions":
        assert lines[-1] == "data: [DONE]"
        lines.pop()
        reasons = [c["finish_reason"] for line in lines for c in json.loads(line[6:])["choices"]]
        assert reasons[-1] in ("stop", "length", "tool_calls")
    else:
        assert json.loads(lines[-1][6:])["type"] in ("response.completed", "response.incomplete")

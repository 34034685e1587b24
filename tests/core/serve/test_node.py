"""OpenAI's client for Node: the same answers as with Python, and nothing stays in memory after it disconnects."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fixtures.chats import audio_part
from fixtures.engines import clip, picture
from fixtures.servers import Running, until
from serve.audio.test_transcriptions import CLIP

from polyphi.engine.engine import Engine
from polyphi.transcription import longform
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams

PACKAGE = "openai@^6"
"""The newest that runs on Node 20."""
SCRIPT = Path(__file__).with_name("node_client.mjs")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the script."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: OpenAI's Node client can't be tried")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"OpenAI's Node client needs Node 20 or newer, found {version.strip()}")
    folder = tmp_path_factory.mktemp("node")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
    done = subprocess.run(
        install, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        pytest.skip(f"npm could not install {PACKAGE}: {done.stderr.strip()[-300:]}")
    shutil.copy(SCRIPT, folder)
    return folder


def engines(engine: Engine) -> dict[str, Any]:
    ours = {
        "text": [Message.user("the quick fox")],
        "image": [Message.user("what is this?", picture())],
        "audio": [Message.user(clip(), "say it")],
    }
    sampling = SamplingParams(max_tokens=12)
    return {kind: engine.generate(messages, sampling=sampling) for kind, messages in ours.items()}


def test_the_node_client(running: Running, folder: Path) -> None:
    engine = running.engine
    expected = engines(engine)

    def ended() -> float:
        """Answers that were left before their end, as the server counts them."""
        with running.client() as http:
            message = [
                line.rsplit(" ", 1)[1]
                for line in http.get("/metrics").text.splitlines()
                if "request_success_total" in line and 'finished_reason="abort"' in line
            ]
        return sum(map(float, message))

    settings = {
        "url": running.url,
        "image": base64.b64encode(picture().source).decode(),
        "audio": audio_part()["input_audio"]["data"],
        "recording": base64.b64encode(CLIP).decode(),
    }
    (folder / "given.json").write_text(json.dumps(settings))
    results: dict[str, list[dict]] = {}
    process = subprocess.Popen(
        ["node", SCRIPT.name, "given.json"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout and process.stdin and process.stderr
        try:
            for line in process.stdout:
                message = json.loads(line)
                step = message.pop("step")
                results.setdefault(step, []).append(message)
                if step in ("streams", "waits"):
                    until(lambda: engine.counters().blocks_in_use > 0)
                elif step.startswith("left"):
                    until(running.idle)  # while the client lives on and its connections are open
                    until(lambda: ended() == len(results.get("waits", ())) + 1)
                else:
                    continue
                process.stdin.write("go on\n")
                process.stdin.flush()
            assert process.wait(30) == 0, process.stderr.read()
        finally:
            process.kill()

    for kind, its in expected.items():
        (message,) = results[kind]
        assert message["text"] == message["streamed"]["text"] == its.text, kind
        assert message["adapter"] == its.adapter
        assert message["streamed"]["pieces"] > 3
        # How much was cached depends on earlier requests; all else is the same.
        whole, streamed = message["usage"], message["streamed"]["usage"]
        for usage in (whole, streamed):
            usage["prompt_tokens_details"].pop("cached_tokens")
        assert whole == streamed
        assert whole["prompt_tokens"] == its.prompt_tokens
        assert whole["prompt_tokens_details"] == {
            "image_tokens": its.image_tokens,
            "audio_tokens": its.audio_tokens,
        }
    _, call, result, *_ = results["tools"][0]["messages"]
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}
    assert result["tool_call_id"] == call["tool_calls"][0]["id"]
    assert result["role"] == "tool" and result["content"] == "20 degrees in Rome"
    assert results["json_schema"][0]["parsed"] == {"city": "Rome"}

    (transcript,) = longform.transcribe(engine, [CLIP], longform.transcription())
    answer = results["transcription"][0]["answer"]
    assert answer["text"] == transcript.text and transcript.text
    assert answer["usage"]["total_tokens"] == transcript.prompt_tokens + transcript.answer_tokens
    *deltas, done = results["transcription stream"][0]["events"]
    assert done["type"] == "transcript.text.done"
    assert "".join(e["delta"] for e in deltas) == done["text"]
    (english,) = longform.transcribe(engine, [CLIP], longform.transcription("en"))
    assert (
        results["translation"][0]["answer"]["text"] == english.translation and english.translation
    )

    where = "messages[0].content[0].image_url.url"
    for message in results["bad part"]:
        assert message["status"] in (400, 415) and message["param"] == where
        assert message["type"] == "invalid_request_error"
    for message in results["bad model"]:
        assert message == {
            "kind": "NotFoundError",
            "status": 404,
            "code": "model_not_found",
            "param": "model",
            "type": "invalid_request_error",
        }
    assert len(results["bad part"]) == len(results["bad model"]) == 2, "streamed and not"
    assert results["left a stream"] == [{"aborted": True}]
    assert results["left an answer"] == [{"kind": "APIUserAbortError"}]

"""Hostile clients: their requests get errors in the standard format, leave nothing behind, and slow no other client
down. Includes the threats without a separate file (S10 to S18, S23, S25, S27, S28)."""

import ast
import json
import logging
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

import polyphi
from polyphi.decoding.tool_calls import ToolParser
from polyphi.engine.engine import Engine
from polyphi.types.tools import CALL, CALL_END
from tests.fixtures.chats import audio_part, image_part
from tests.fixtures.engines import save
from tests.fixtures.servers import Running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI: list[Any] = [{"role": "user", "content": "hi"}]
PACKAGE = Path(polyphi.__file__).parent
JSON = {"content-type": "application/json"}
MB = 1_000_000


def chat(**more: Any) -> bytes:
    return json.dumps({"messages": HI, "max_tokens": 2, **more}).encode()


def raw(field: str, value: str) -> bytes:
    """A request in which one value is inserted verbatim, valid JSON or not."""
    return chat(**{field: "?"}).replace(b'"?"', value.encode())


def part(kind: str, data: str) -> bytes:
    content = {
        "image_url": {"type": "image_url", "image_url": {"url": data}},
        "input_audio": {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        "file": {"type": "file", "file": {"file_data": data, "filename": "a" * 400}},
    }[kind]
    return turn([content])


def schema(value: Any) -> bytes:
    return chat(response_format={"type": "json_schema", "json_schema": {"schema": value}})


def regex(value: str) -> bytes:
    return chat(response_format={"type": "regex", "regex": value})


def nested(inner: str, depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + inner + closing * depth


def turn(content: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": content}])


TEXT = {"type": "text", "text": "a"}
PNG = image_part()["image_url"]["url"]
WAV = audio_part()["input_audio"]["data"]
DEPTH = 100_000
LIST, OBJECTS = nested("", DEPTH), nested("1", DEPTH, '{"a":', "}")
LARGE = {
    "digits": "9" * MB,
    "an exponent": "1e" + "9" * MB,
    "backslashes": '"' + "\\" * MB + '"',
    "escapes": '"' + "\\u0000" * (MB // 6) + '"',
    "a deep list": LIST,
    "deep objects": OBJECTS,
    "NaN": "NaN",
    "1e400": "1e400",
    "-Infinity": "-Infinity",
    "twenty digits": "9" * 20,
    "half a surrogate pair": r'"\ud800"',
}
"""JSON that is no value of any field."""
FIELDS = (
    *("messages", "model", "tools", "response_format", "stop", "what", "chat_template", "n"),
    *("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "top_logprobs"),
)
IMAGES = {
    "rubbish": "data:image/png;base64," + "QUJD" * 9999,
    "cut off": PNG[: len(PNG) // 2 // 4 * 4],
    "no base64": "data:image/png;base64,!!!",
    "no bytes": "data:image/png;base64,",
    "commas": "data:" + "," * MB,
    "parameters": "data:" + ";a=b" * (MB // 4) + ",",
    "from inside": "http://127.0.0.1/x.png",
    "from the disk": "file:///etc/passwd",
    "a TIFF": "data:;base64,SUkqAAg" + "A" * 99_997,
    "a HEIC": "data:;base64,AAAAGGZ0eXBoZWlj" + "QUJD" * 9999,
    "an AVIF": "data:;base64,AAAAHGZ0eXBhdmlm" + "QUJD" * 9999,
    "half a surrogate pair": "\ud800",
}
AUDIO = {"rubbish": "QUJD" * 9999, "cut off": WAV[:40], "a picture": PNG.split(",")[1]}
DOCUMENTS = {
    "rubbish": "JVBERi0x" + "LjcK" * 9999,
    "brackets": "JVBERi0x" + "W1tb" * (MB // 4),
    "no base64": "data:application/pdf;base64,!!!",
    "no bytes": "",
    "from inside": "http://127.0.0.1/x.pdf",
    "from the disk": "file:///etc/passwd",
    "four megabytes": "QUJD" * (MB + MB // 2),
}
SCHEMAS = {
    "itself": {"$ref": "#"},
    "elsewhere": {"$ref": "http://127.0.0.1/x"},
    "the disk": {"$ref": "file:///etc/passwd"},
    "no type": {"type": "strin"},
    "half an expression": {"type": "string", "pattern": "("},
    "a megabyte": {"enum": [f"{i:9}" for i in range(100_000)]},
}
REGEXES = {
    "half": "(" * 5000,
    "looks back": r"(a+)\1",
    "a megabyte": "(a|" * (MB // 3),
    "a million letters": "a{1000000}",
}
BODIES: dict[str, tuple[str, bytes]] = {
    **{
        f"{field}: {name}": (CHAT, raw(field, value))
        for number, field in enumerate(FIELDS)
        for at, (name, value) in enumerate(LARGE.items())
        if at % 3 == number % 3
    },
    **{f"image: {name}": (CHAT, part("image_url", url)) for name, url in IMAGES.items()},
    **{f"audio: {name}": (CHAT, part("input_audio", data)) for name, data in AUDIO.items()},
    **{f"document: {name}": (CHAT, part("file", data)) for name, data in DOCUMENTS.items()},
    **{f"schema: {name}": (CHAT, schema(value)) for name, value in SCHEMAS.items()},
    **{f"regex: {name}": (CHAT, regex(value)) for name, value in REGEXES.items()},
    "a deep body": (CHAT, LIST.encode()),
    "a deep body that never ends": (CHAT, b"[" * MB),
    "a deep ignored field": (CHAT, raw("metadata", OBJECTS)),
    "a deep prompt": (COMPLETIONS, f'{{"prompt": {LIST}}}'.encode()),
    "a hundred thousand fields": (CHAT, json.dumps({f"f{i}": i for i in range(DEPTH)}).encode()),
    "a field of a megabyte": (CHAT, chat(**{"x" * MB: 1})),
    "the same field again and again": (CHAT, b"{" + b'"model":"x",' * 80_000 + b'"model":"x"}'),
    "no end of messages": (CHAT, chat(messages=HI * 30_000)),
    "no end of pictures": (CHAT, turn([image_part()] * 300)),
    "no end of parts": (CHAT, turn([TEXT] * 300_000)),
    "no end of tools": (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}] * 9999)),
    "no UTF-8": (CHAT, b'{"messages": "\xff\xfe"}'),
    "nothing": (CHAT, b""),
    "null": (CHAT, b"null"),
    "a list": (CHAT, b"[1, 2]"),
    "half a surrogate pair in words": (CHAT, turn("a \ud800 b")),
    "half a surrogate pair to count": ("/tokenize", rb'{"prompt": "\udfff"}'),
    "half a surrogate pair in a prompt": (COMPLETIONS, rb'{"prompt": "\ud800", "max_tokens": 1}'),
    "half a surrogate pair as a field": (CHAT, rb'{"\ud800": 1, "messages": []}'),
    "half a surrogate pair in a schema": (CHAT, schema({"const": "\ud800"})),
    "half a surrogate pair as an expression": (CHAT, regex("\ud800")),
    "max_tokens of twenty digits": (CHAT, raw("max_tokens", "9" * 20)),
    "top_k below nothing": (CHAT, raw("top_k", "-9" + "9" * 20)),
    "stops without end": (CHAT, chat(stop=["a"] * 100_000)),
    "a stop of a megabyte": (CHAT, chat(stop="a" * MB)),
    "numbers that are no tokens": (COMPLETIONS, json.dumps({"prompt": [1.5] * 300_000}).encode()),
    "lists that hold no tokens": (COMPLETIONS, json.dumps({"prompt": [[1.5] * 300_000]}).encode()),
    "words that are no tokens": ("/detokenize", json.dumps({"tokens": ["a"] * 300_000}).encode()),
    "parts that are none": (CHAT, turn([{"type": "text", "text": 1}] * 9000)),
    "tokens that are none": ("/detokenize", b'{"tokens": [99999999999999999999]}'),
    "a prompt of tokens that are none": (COMPLETIONS, b'{"prompt": [-1], "max_tokens": 1}'),
    "prompts without end": (COMPLETIONS, json.dumps({"prompt": ["x"] * 50_000}).encode()),
    # S14: templates
    "a template": (CHAT, chat(chat_template="{{ cycler.__init__.__globals__.os.popen('id') }}")),
    "a template's values": (CHAT, chat(chat_template_kwargs={"chat_template": "x"})),
    "a template to count by": ("/tokenize", chat(chat_template="x")),
}
FOLLOWED_OR_REFUSED: dict[str, bytes] = {
    "powers of powers": regex("((a{1,90}){1,90}){1,90}"),
    "the classic": regex("(a+)+(a+)+(a+)+b"),
    "far back": regex(".*[ab].{18}c|.*b.{19}d"),
    "a wide choice": regex("|".join(f"{i:04}" for i in range(1900))),
    "doubling": schema(
        {
            "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
            | {"d30": {"type": "null"}},
            "$ref": "#/$defs/d0",
        }
    ),
    "all of many": schema({"allOf": [{"minLength": i} for i in range(2000)]}),
    "many of one": schema(
        {"oneOf": [{"type": "object", "required": [f"k{i}"]} for i in range(900)]}
    ),
    "a billion items": schema({"type": "array", "minItems": 10**9, "items": {"type": "null"}}),
    "a billion letters": schema({"type": "string", "minLength": 10**9}),
    "a thousand properties": schema(
        {"properties": {f"k{i}": {"type": "string"} for i in range(1000)}, "required": ["k999"]}
    ),
    "tiny steps": schema({"type": "number", "multipleOf": 1e-300, "minimum": -1e300}),
    "patterns of names": schema({"patternProperties": {"(a+)+$": {"pattern": "(b+)+$"}}}),
}


def refused(answer: httpx2.Response) -> None:
    """The response is a client error in the standard format, without library output."""
    assert 400 <= answer.status_code < 500, answer.text[:300]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) < 1000 and "\n" not in error["message"]
    for inside in ("Traceback", "0x", ".py", "pydantic", "Error(", "site-packages", "codec"):
        assert inside not in answer.text, answer.text[:300]


def well(running: Running, client: httpx2.Client) -> None:
    """The server answers, and nothing of earlier requests is in memory."""
    assert running.idle()
    assert not running.server.admitted
    assert client.get("/health").status_code == 200
    assert client.post(CHAT, content=chat(), headers=JSON).status_code == 200


def test_s14_s17_s18_s19_nonsense_is_refused(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {}
    with running.client() as client:
        for name, (path, body) in BODIES.items():
            try:
                refused(client.post(path, content=body, headers=JSON))
            except (AssertionError, httpx2.HTTPError) as error:
                wrong[name] = f"{type(error).__name__} {error}"[:300]
        well(running, client)
    assert not wrong, "\n".join(f"{name}: {message}" for name, message in wrong.items())
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_s17_grammars_that_grow_are_followed_or_refused(running: Running) -> None:
    wrong = {}
    with running.client() as client:
        for name, body in FOLLOWED_OR_REFUSED.items():
            answer = client.post(CHAT, content=body, headers=JSON)
            try:
                if answer.status_code != 200:
                    refused(answer)
            except AssertionError as error:
                wrong[name] = str(error)
        well(running, client)
    assert not wrong


# S10: nothing is unpickled


DANGEROUS = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}


def dangers(code: str) -> list[str]:
    """What in a module runs code that data bring: imports that unpickle, and calls that do so where they aren't told
    not to."""
    calls = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            calls += [name for name in names if name.split(".")[0] in DANGEROUS]
        if not isinstance(node, ast.Call):
            continue
        name, keywords = (
            ast.unparse(node.func),
            {k.arg: ast.unparse(k.value) for k in node.keywords},
        )
        if name == "torch.load" and keywords.get("weights_only") != "True":
            calls.append(name)
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
            calls.append(name)
        unsafe = name.startswith(("yaml.load", "yaml.unsafe", "yaml.full", "pickle."))
        if name in ("eval", "exec", "__import__") or unsafe:
            calls.append(name)
    return calls


def test_s10_nothing_runs_code_that_data_bring() -> None:
    """The sandbox alone runs code, and only inside its walls: of what is sent there, `trial.py` is a part. A benchmark
    that is published as pickles reads them as text, numbers, lists and dicts alone (its own test shows that). Worker
    processes of training exchange pickles with the process that started them, as all of `multiprocessing` does."""
    code = {str(p.relative_to(PACKAGE)): p.read_text() for p in PACKAGE.rglob("*.py")}
    calls = {name: dangerous for name, text in code.items() if (dangerous := dangers(text))}
    known = {"sandbox.py", "data/workers.py"}
    known |= {"eval/trial.py", "eval/benchmarks/text/livecodebench.py"}
    assert set(calls) <= known, calls
    assert len(code) > 100
    wrong = "import pickle\ntorch.load(f)\nnp.load(f, allow_pickle=True)\neval(x)\nyaml.load(f)"
    assert dangers(wrong) == ["pickle", "torch.load", "np.load", "eval", "yaml.load"]
    right = "torch.load(f, weights_only=True)\nmodel.eval()\nnp.load(f)\nyaml.safe_load(f)"
    assert not dangers(right)


# S11, S12, S13, S28: weights of strangers


def test_s11_s12_no_request_holds_a_tensor_and_no_checkpoint_a_pickle(
    running: Running, engine: Engine, tmp_path: Path
) -> None:
    with running.client() as client:
        for field in ("prompt_embeds", "prompt_token_ids", "inputs_embeds"):
            answer = client.post(COMPLETIONS, json={"prompt": "x", field: "UEsDBAAACAgA"})
            refused(answer)
            assert answer.json()["error"]["param"] == field
    folder = save(engine, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / ".metadata")
    (folder / "x.distcp").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="safetensors"):
        polyphi.load(folder, device="cpu")


def test_s11_headers_that_lie_are_refused(engine: Engine, tmp_path: Path) -> None:
    """Safetensors with lengths and offsets beyond the file, and invalid headers."""
    file = save(engine, tmp_path / "model") / "model.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    name = next(n for n in header if n != "__metadata__")

    def with_header(change: dict[str, Any]) -> bytes:
        text = json.dumps({**header, name: {**header[name], **change}}).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    start, end = header[name]["data_offsets"]
    lies = [
        (2**63).to_bytes(8, "little") + whole[8:],
        (len(whole)).to_bytes(8, "little") + whole[8:],
        whole[:8] + b"[" * size + whole[8 + size :],
        with_header({"data_offsets": [start, end + 2**40]}),
        with_header({"data_offsets": [2**62, 2**62 + end - start]}),
        with_header({"shape": [2**40, 2**40]}),
        with_header({"dtype": "OBJECT"}),
    ]
    for lie in lies:
        file.write_bytes(lie)
        with pytest.raises(ValueError) as caught:
            polyphi.load(file.parent, device="cpu")
        assert "\n" not in str(caught.value)
    file.write_bytes(whole)
    polyphi.load(file.parent, device="cpu")


def test_s13_a_poisoned_config_imports_nothing(engine: Engine, tmp_path: Path) -> None:
    folder = save(engine, tmp_path / "model")
    ran = tmp_path / "ran"
    for name in ("modeling_evil", "tokenization_evil", "processing_evil"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: ...\n")
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = folder / file
        config = json.loads(path.read_text()) if path.exists() else {}
        config["auto_map"] = {
            "AutoConfig": "modeling_evil.Evil",
            "AutoModelForCausalLM": "modeling_evil.Evil",
            "AutoTokenizer": ["tokenization_evil.Evil", None],
            "AutoProcessor": "processing_evil.Evil",
        }
        config |= {"trust_remote_code": True, "tokenizer_class": "Evil", "processor_class": "Evil"}
        path.write_text(json.dumps(config))
    phi = polyphi.load(folder, device="cpu")
    sampling = polyphi.SamplingParams(max_tokens=2)
    assert len(phi.generate([polyphi.Message.user("hi")], sampling=sampling).tokens) == 2
    assert not ran.exists()
    assert not [name for name in sys.modules if name.endswith("_evil")]


CHANGES: dict[str, tuple[str, Any]] = {
    "rank less": ("mis-shaped", lambda t: t[:-1].contiguous()),
    "rank more": ("mis-shaped", lambda t: torch.cat([t, t])),
    "turned": ("mis-shaped", lambda t: t.T.contiguous()),
    "an axis more": ("mis-shaped", lambda t: t[None]),
    "empty": ("mis-shaped", lambda t: torch.zeros(0)),
    "whole numbers": ("vision", lambda t: t.round().to(torch.int32)),
    "NaN": ("vision", lambda t: torch.full_like(t, math.nan)),
    "infinity": ("vision", lambda t: torch.full_like(t, math.inf)),
}


def test_s28_an_adapter_that_does_not_fit_is_refused(engine: Engine, tmp_path: Path) -> None:
    folder = save(engine, tmp_path / "model")
    file = folder / "vision-lora" / "adapter_model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    first = min(tensors)
    for name, (message, change) in CHANGES.items():
        save_file({**tensors, first: change(tensors[first])}, file)
        with pytest.raises(ValueError, match=message):
            polyphi.load(folder, device="cpu")
            pytest.fail(name)


def test_s28_no_request_brings_an_adapter(running: Running) -> None:
    with running.client() as client:
        for path in ("/v1/load_lora_adapter", "/v1/adapters", "/load_lora_adapter", "/v1/files"):
            assert (
                client.post(path, json={"lora_name": "x", "lora_path": "/tmp"}).status_code == 404
            )
        for params in ({"adapter": "../speech"}, {"adapter": "/tmp/x"}, {"model": "hf.co/x"}):
            answer = client.post(CHAT, json={"messages": HI, "max_tokens": 1, **params})
            refused(answer)
        refused(client.post(CHAT, json={"messages": HI, "lora_path": "/tmp"}))


# S16: calls of tools in text of strangers


TOOL_TEXTS = {
    "marks": (CALL, ""),
    "marks and brackets": (CALL + "[", ""),
    "marks that end": (CALL + CALL_END, ""),
    "objects that begin": (CALL + '[{"name": "f", "arguments": {', ""),
    "names of functions": ("functools[{", ""),
    "brackets": ("[", CALL),
    "objects": ('[{"a":', CALL),
    "one long string": ("a", CALL + '[{"name": "'),
    "backslashes": ("\\", CALL + '[{"name": "'),
    "quotes": ('\\"', CALL + '[{"name": "'),
    "escapes": ("\\u00e9", CALL + '[{"name": "'),
    "spaces": (" ", CALL + "["),
    "spaces between calls": (" ", CALL + '[{"name":"f","arguments":{}}'),
    "one long number": ("1", CALL + '[{"a": '),
    "numbers": ("1,", CALL + '[{"name": "f", "arguments": {"a": ['),
    "lists": ("[],", CALL + '[{"name": "f", "arguments": {"a": ['),
    "members": ('"":1,', CALL + "[{"),
    "numbers read twice": ("1,", CALL + '[{"' + CALL + '[{",":{"a":['),
    "letters of marks": ("<|tool_call|", ""),
    "calls": ('{"name":"f","arguments":{}},', CALL + "["),
    "marked calls": (CALL + '{"name":"f"}' + CALL_END, ""),
}
"""What is repeated, and what stands before it. tests/core/decoding/test_tool_calls.py has them in any pieces."""


@pytest.mark.long
@pytest.mark.parametrize("size", [2 * MB, 1000])
@pytest.mark.parametrize("name", TOOL_TEXTS)
def test_s16_a_megabyte_of_calls_is_read_in_little_time(name: str, size: int) -> None:
    """Whole, and in pieces as a stream. It takes less than a tenth of a second; in quadratic time it would be hours, on
    a slow machine too."""
    repeated, before = TOOL_TEXTS[name]
    text = before + repeated * (MB // len(repeated))
    began = time.process_time()
    parser = ToolParser(["f"])
    for at in range(0, len(text), size):
        parser.add(text[at : at + size])
    parser.finish()
    assert time.process_time() - began < 5


# S23: adapters don't share cached prefixes


def test_s23_with_and_without_an_adapter_nothing_is_shared(fresh: Running) -> None:
    """As the client sees it; tests of the cache check that the key contains the adapter's content."""
    long = [{"role": "user", "content": "the quick brown fox " * 12}]

    with fresh.client() as client:

        def cached(**params: Any) -> int:
            body = {"messages": long, "max_tokens": 2, **params}
            usage = client.post(CHAT, json=body).json()["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"]

        for adapter in (None, "speech", "vision"):
            assert cached(adapter=adapter) == 0, adapter
        again = [cached(adapter=adapter) for adapter in (None, "speech", "vision")]
        assert min(again) >= 32 and len(set(again)) == 1
        assert cached(model="speech") == again[0], "the same adapter, requested as a model"


# S25: nothing stays of requests


def test_s25_prompts_are_in_no_log_and_no_file(
    running: Running, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    caplog.set_level(logging.DEBUG)
    secret, key = "xyzzy plugh", "sk-secret"
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": secret}, image_part()]}
    ]
    options = [
        (CHAT, {"messages": messages, "max_tokens": 3}),
        (CHAT, {"messages": messages, "max_tokens": 3, "stream": True}),
        (CHAT, {"messages": messages, "max_tokens": 3, "temperature": secret}),
        (CHAT, {"messages": messages, secret: 1}),
        (COMPLETIONS, {"prompt": secret, "max_tokens": 3}),
        ("/tokenize", {"prompt": secret}),
    ]
    answers = []
    with running.client(key) as client:
        for path, body in options:
            answers.append(client.post(path, json=body).text)
        clip = {"file": ("xyzzy.wav", b"xyzzy plugh")}
        client.post("/v1/audio/transcriptions", files=clip)
    words = [json.loads(answers[0])["choices"][0]["message"]["content"]]
    logged = "\n".join(
        f"{record.getMessage()} {record.exc_text}"
        for record in caplog.records
        if not record.name.startswith(("httpx2", "httpcore2"))  # the client's own
    )
    assert "POST /v1/chat/completions 200" in logged
    for word in ("xyzzy", "plugh", key, "iVBORw", *words):
        assert word not in logged
    assert not list(tmp_path.iterdir())

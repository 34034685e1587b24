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
from fixtures.chats import audio_part, image_part
from fixtures.engines import save
from fixtures.servers import Running
from safetensors.torch import load_file, save_file

import polyphi
from polyphi.decoding.tool_calls import CallDelta, CallList, ToolParser, parse_calls
from polyphi.engine.engine import Engine
from polyphi.types.tools import CALL, CALL_END

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
    return chat(messages=[{"role": "user", "content": [content]}])


def schema(value: Any) -> bytes:
    return chat(response_format={"type": "json_schema", "json_schema": {"schema": value}})


def regex(value: str) -> bytes:
    return chat(response_format={"type": "regex", "regex": value})


def nested(inner: str, depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + inner + closing * depth


TEXT = {"type": "text", "text": "a"}
PNG = image_part()["image_url"]["url"]
WAV = audio_part()["input_audio"]["data"]
DEPTH = 100_000
DEEP_OBJECT = nested("1", DEPTH, '{"a":', "}")
BODIES: dict[str, tuple[str, bytes]] = {
    # JSON that is deep, large, or none
    "a deep list": (CHAT, nested("", DEPTH).encode()),
    "a deep list that never ends": (CHAT, b"[" * MB),
    "deep objects": (CHAT, DEEP_OBJECT.encode()),
    "deep content": (CHAT, raw("messages", nested("", DEPTH))),
    "a deep part": (CHAT, raw("messages", f'[{{"role":"user","content":{nested("", DEPTH)}}}]')),
    "a deep ignored field": (CHAT, raw("metadata", DEEP_OBJECT)),
    "a deep unknown field": (CHAT, raw("what", nested("", DEPTH))),
    "a deep schema": (CHAT, raw("response_format", nested("1", DEPTH, '{"json_schema":', "}"))),
    "a deep prompt": (COMPLETIONS, f'{{"prompt": {nested("", DEPTH)}}}'.encode()),
    "a deep tool": (
        CHAT,
        raw(
            "tools",
            f'[{{"type":"function","function":{DEEP_OBJECT}}}]',
        ),
    ),
    "a megabyte of digits": (CHAT, raw("seed", "9" * MB)),
    "a megabyte of an exponent": (CHAT, raw("temperature", "1e" + "9" * MB)),
    "a megabyte of backslashes": (CHAT, raw("model", '"' + "\\" * MB + '"')),
    "a megabyte of escapes": (CHAT, raw("model", '"' + "\\u0000" * (MB // 6) + '"')),
    "a hundred thousand fields": (CHAT, json.dumps({f"f{i}": i for i in range(DEPTH)}).encode()),
    "a field of a megabyte": (CHAT, chat(**{"x" * MB: 1})),
    "the same field again and again": (CHAT, b"{" + b'"model":"x",' * 80_000 + b'"model":"x"}'),
    "no end of messages": (CHAT, chat(messages=HI * 30_000)),
    "no end of pictures": (
        CHAT,
        chat(messages=[{"role": "user", "content": [image_part()] * 300}]),
    ),
    "no end of tools": (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}] * 9999)),
    "no UTF-8": (CHAT, b'{"messages": "\xff\xfe"}'),
    "half a surrogate pair as a model": (CHAT, raw("model", r'"\ud800"')),
    "half a surrogate pair in words": (
        CHAT,
        raw("messages", r'[{"role":"user","content":"a \ud800 b"}]'),
    ),
    "half a surrogate pair to count": ("/tokenize", rb'{"prompt": "\udfff"}'),
    "half a surrogate pair as a schema": (
        CHAT,
        schema("?").replace(b'"?"', rb'{"const":"\ud800"}'),
    ),
    "half a surrogate pair as an address": (
        CHAT,
        part("image_url", "?").replace(b'"?"', rb'"\ud800"'),
    ),
    "nothing": (CHAT, b""),
    "null": (CHAT, b"null"),
    "a list": (CHAT, b"[1, 2]"),
    # Media that are none
    "a picture of rubbish": (CHAT, part("image_url", "data:image/png;base64," + "QUJD" * 9999)),
    "a picture cut off": (CHAT, part("image_url", PNG[: len(PNG) // 2 // 4 * 4])),
    "a picture that isn't base64": (CHAT, part("image_url", "data:image/png;base64,!!!")),
    "a picture without bytes": (CHAT, part("image_url", "data:image/png;base64,")),
    "a megabyte of commas": (CHAT, part("image_url", "data:" + "," * MB)),
    "a megabyte of parameters": (CHAT, part("image_url", "data:" + ";a=b" * (MB // 4) + ",")),
    "a picture from inside": (CHAT, part("image_url", "http://127.0.0.1/x.png")),
    "a picture from the disk": (CHAT, part("image_url", "file:///etc/passwd")),
    "a clip of rubbish": (CHAT, part("input_audio", "QUJD" * 9999)),
    "a clip cut off": (CHAT, part("input_audio", WAV[:40])),
    "a clip that is a picture": (CHAT, part("input_audio", PNG.split(",")[1])),
    "a TIFF of rubbish": (CHAT, part("image_url", "data:;base64,SUkqAAg" + "A" * 99_997)),
    "a HEIC of rubbish": (CHAT, part("image_url", "data:;base64,AAAAGGZ0eXBoZWlj" + "QUJD" * 9999)),
    "an AVIF of rubbish": (
        CHAT,
        part("image_url", "data:;base64,AAAAHGZ0eXBhdmlm" + "QUJD" * 9999),
    ),
    "a PDF of rubbish": (CHAT, part("file", "JVBERi0x" + "LjcK" * 9999)),
    "a PDF of brackets": (CHAT, part("file", "JVBERi0x" + "W1tb" * (MB // 4))),
    "a document that isn't base64": (CHAT, part("file", "data:application/pdf;base64,!!!")),
    "a document without bytes": (CHAT, part("file", "")),
    "a document from inside": (CHAT, part("file", "http://127.0.0.1/x.pdf")),
    "a document from the disk": (CHAT, part("file", "file:///etc/passwd")),
    "a document of four megabytes of text": (CHAT, part("file", "QUJD" * (MB + MB // 2))),
    # Values that are none
    **{
        f"{field}: {value}": (CHAT, raw(field, value))
        for field in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty")
        for value in ("NaN", "1e400", "-Infinity")
    },
    "frequency_penalty: NaN": (CHAT, raw("frequency_penalty", "NaN")),
    **{
        f"{field} of twenty digits": (CHAT, raw(field, "9" * 20))
        for field in ("n", "top_logprobs", "seed")
    },
    "max_tokens of twenty digits": (CHAT, raw("max_tokens", "9" * 20)),
    "logprobs of twenty digits": (
        COMPLETIONS,
        b'{"prompt": "x", "logprobs": 99999999999999999999}',
    ),
    "top_k below nothing": (CHAT, raw("top_k", "-9" + "9" * 20)),
    "stops without end": (CHAT, chat(stop=["a"] * 100_000)),
    "a stop of a megabyte": (CHAT, chat(stop="a" * MB)),
    "no end of parts": (CHAT, chat(messages=[{"role": "user", "content": [TEXT] * 300_000}])),
    "numbers that are no tokens": (COMPLETIONS, json.dumps({"prompt": [1.5] * 300_000}).encode()),
    "lists that hold no tokens": (COMPLETIONS, json.dumps({"prompt": [[1.5] * 300_000]}).encode()),
    "words that are no tokens": ("/detokenize", json.dumps({"tokens": ["a"] * 300_000}).encode()),
    "parts that are none": (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": 1}] * 9000}]),
    ),
    "tokens that are none": ("/detokenize", b'{"tokens": [99999999999999999999]}'),
    "a prompt of tokens that are none": (COMPLETIONS, b'{"prompt": [-1], "max_tokens": 1}'),
    "prompts without end": (COMPLETIONS, json.dumps({"prompt": ["x"] * 50_000}).encode()),
    # S14: templates
    "a template": (CHAT, chat(chat_template="{{ cycler.__init__.__globals__.os.popen('id') }}")),
    "a template's values": (CHAT, chat(chat_template_kwargs={"chat_template": "x"})),
    "a template to count by": ("/tokenize", chat(chat_template="x")),
    # S17: schemas and expressions
    "a schema of itself": (CHAT, schema({"$ref": "#"})),
    "a schema from elsewhere": (CHAT, schema({"$ref": "http://127.0.0.1/x"})),
    "a schema from the disk": (CHAT, schema({"$ref": "file:///etc/passwd"})),
    "a schema without a type": (CHAT, schema({"type": "strin"})),
    "a schema with half an expression": (CHAT, schema({"type": "string", "pattern": "("})),
    "a schema of a megabyte": (CHAT, schema({"enum": [f"{i:9}" for i in range(100_000)]})),
    "half an expression": (CHAT, regex("(" * 5000)),
    "an expression that looks back": (CHAT, regex(r"(a+)\1")),
    "an expression of a megabyte": (CHAT, regex("(a|" * (MB // 3))),
    "an expression of a million letters": (CHAT, regex("a{1000000}")),
}
HALVES: dict[str, tuple[str, bytes]] = {
    "half a surrogate pair as a stop": (CHAT, raw("stop", r'["\ud800"]')),
    "half a surrogate pair as a field": (CHAT, rb'{"\ud800": 1, "messages": []}'),
    "half a surrogate pair in a prompt": (COMPLETIONS, rb'{"prompt": "\ud800", "max_tokens": 1}'),
    "half a surrogate pair as a tool": (
        CHAT,
        raw("tools", r'[{"type":"function","function":{"name":"\ud800"}}]'),
    ),
    "half a surrogate pair as an expression": (CHAT, regex("?").replace(b'"?"', rb'"\ud800"')),
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
    assert not running.uvicorn.config.app.state.server.admitted
    assert client.get("/health").status_code == 200
    assert client.post(CHAT, content=chat(), headers=JSON).status_code == 200


def test_s14_s18_s19_nonsense_is_refused(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    all_refused(running, BODIES)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def all_refused(running: Running, bodies: dict[str, tuple[str, bytes]]) -> None:
    wrong = {}
    with running.client() as client:
        for name, (path, body) in bodies.items():
            try:
                refused(client.post(path, content=body, headers=JSON))
            except (AssertionError, httpx2.HTTPError) as error:
                wrong[name] = f"{type(error).__name__} {error}"[:300]
        well(running, client)
    assert not wrong, "\n".join(f"{name}: {message}" for name, message in wrong.items())


def test_s18_halves_of_surrogate_pairs_are_refused(running: Running) -> None:
    """Lone surrogates are no text: they can't be encoded."""
    all_refused(running, HALVES)


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


def poisoned(folder: Path, change: Any) -> Path:
    file = folder / "vision-lora" / "adapter_model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    name = sorted(tensors)[0]
    tensors[name] = change(tensors[name])
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1].contiguous(),
        lambda t: torch.cat([t, t]),
        lambda t: t.T.contiguous(),
        lambda t: t[None],
        lambda t: torch.zeros(0),
    ],
    ids=["rank less", "rank more", "turned", "an axis more", "empty"],
)
def test_s28_an_adapter_that_does_not_fit_is_refused(
    engine: Engine, tmp_path: Path, change: Any
) -> None:
    with pytest.raises(ValueError, match="mis-shaped"):
        polyphi.load(poisoned(save(engine, tmp_path / "model"), change), device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.round().to(torch.int32),
        lambda t: torch.full_like(t, math.nan),
        lambda t: torch.full_like(t, math.inf),
    ],
    ids=["whole numbers", "NaN", "infinity"],
)
def test_s28_an_adapter_of_nonsense_is_refused(engine: Engine, tmp_path: Path, change: Any) -> None:
    with pytest.raises(ValueError, match="vision"):
        polyphi.load(poisoned(save(engine, tmp_path / "model"), change), device="cpu")


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
    "marks": CALL * 80_000,
    "marks and brackets": (CALL + "[") * 70_000,
    "marks that end": (CALL + CALL_END) * 40_000,
    "objects that begin": (CALL + '[{"name": "f", "arguments": {') * 24_000,
    "names of functions": "functools[" * 100_000,
    "functions and brackets": "functools[{" * 91_000,
    "brackets": CALL + "[" * MB,
    "objects": CALL + '[{"a":' * 160_000,
    "one long string": CALL + '[{"name": "' + "a" * MB,
    "backslashes": CALL + '[{"name": "' + "\\" * MB,
    "quotes": CALL + '[{"name": "' + '\\"' * (MB // 2),
    "escapes": CALL + '[{"name": "' + "\\u00e9" * (MB // 6),
    "spaces": CALL + " " * MB,
    "spaces in a list": CALL + "[" + " " * MB + "{",
    "spaces between calls": CALL + '[{"name":"f","arguments":{}}' + " " * MB + "]",
    "commas": CALL + "[{" + "," * MB,
    "one long number": CALL + '[{"a": ' + "1" * MB,
    "numbers": CALL + '[{"name": "f", "arguments": {"a": [' + "1," * (MB // 2),
    "letters of marks": "<|tool_call|" * 83_000,
    "angles": "<" * MB,
    "many calls": CALL + "[" + ",".join(['{"name":"f","arguments":{}}'] * 36_000) + "]" + CALL_END,
    "one large call": CALL + json.dumps([{"name": "f", "arguments": {"a": "x" * MB}}]) + CALL_END,
    "a wide call": CALL
    + json.dumps([{"name": "f", "arguments": {f"k{i}": i for i in range(80_000)}}])
    + CALL_END,
    "a call of many members": CALL + "[{" + '"":1,' * (MB // 5),
    "brackets side by side": CALL + '[{"name": "f", "arguments": {"a": [' + "[]," * (MB // 3),
    "many marked calls": (CALL + '{"name":"f"}' + CALL_END) * 25_000,
    "arguments as a string": CALL
    + json.dumps([{"name": "f", "arguments": json.dumps({"a": [1] * (MB // 3)})}]),
    "numbers read twice": CALL + '[{"' + CALL + '[{",":{"a":[' + "1," * (MB // 2),
    "spaces first": " " * MB,
    "plain words": "the quick brown fox " * 50_000,
}


@pytest.mark.parametrize("name", TOOL_TEXTS)
def test_s16_hostile_calls_in_pieces_are_what_they_are_whole(name: str) -> None:
    text = TOOL_TEXTS[name][: MB // 20]
    content, calls = parse_calls(text, ["f"])
    parser, own = ToolParser(["f"]), CallList()
    parsed = [part for at in range(0, len(text), 7000) for part in parser.add(text[at : at + 7000])]
    parsed += parser.finish()
    for part in parsed:
        if isinstance(part, CallDelta):
            own.add(part)
    assert own == calls
    assert "".join(part for part in parsed if isinstance(part, str)) == content


@pytest.mark.long
@pytest.mark.parametrize("size", [2 * MB, 1000])
@pytest.mark.parametrize("name", TOOL_TEXTS)
def test_s16_a_megabyte_of_calls_is_read_in_little_time(name: str, size: int) -> None:
    """Whole, and in pieces as a stream. It takes less than a tenth of a second; in quadratic time it would be hours, on
    a slow machine too."""
    text = TOOL_TEXTS[name]
    assert 0.9 * MB < len(text) < 1.5 * MB
    began = time.process_time()
    parser = ToolParser(["f"])
    for at in range(0, len(text), size):
        parser.add(text[at : at + size])
    parser.finish()
    assert time.process_time() - began < 5


# S23: adapters don't share cached prefixes


def test_s23_with_and_without_an_adapter_nothing_is_shared(running: Running) -> None:
    """As the client sees it; tests of the cache check that the key contains the adapter's content."""
    long = [{"role": "user", "content": "the quick brown fox " * 12}]

    with running.client() as client:

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

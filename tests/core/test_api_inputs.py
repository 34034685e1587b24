"""Prompts, media, options, tools and forms as arguments of `Phi`: each equals the longer way to write it."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as pil
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import polyphi
from polyphi import Audio, Completion, Image, Message, SamplingParams
from polyphi.checkpoints.write import save_checkpoint
from polyphi.quantization import quantize
from polyphi.types.completion import Delta
from polyphi.types.messages import with_tools
from polyphi.types.sampling import Grammar
from polyphi.types.tools import FunctionCall
from tests.fixtures.published import write

FIVE = {"max_tokens": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in float32, with an image and a clip beside it."""
    folder = tmp_path_factory.mktemp("api")
    write(folder / "model", "native", torch.float32)
    noise = np.random.default_rng(0)
    pil.fromarray(noise.integers(0, 256, (40, 90, 3), np.uint8)).save(folder / "a.png")
    soundfile.write(folder / "a.wav", noise.normal(0, 0.1, 8000).astype(np.float32), 16000)
    return folder


@pytest.fixture(scope="module")
def phi(folder: Path) -> polyphi.Phi:
    return polyphi.load(folder / "model", device="cpu")


def test_a_text_is_a_message_of_the_user(phi: polyphi.Phi) -> None:
    messages = [Message.user("which colour is it")]
    for form in ("which colour is it", messages[0], {"role": "user", "content": messages[0].text}):
        assert phi.tokenize(form) == phi.tokenize(messages)
        assert phi.count(form) == phi.count(messages)
        assert phi.generate(form, **FIVE) == phi.generate(messages, **FIVE)
        assert torch.equal(phi.logits(form)[1], phi.logits(messages)[1])
        assert phi.score(form, "red") == phi.score(messages, "red")
        assert list(phi.stream(form, **FIVE))[-1].completion == phi.generate(messages, **FIVE)


def test_a_list_of_texts_is_answered_one_by_one(phi: polyphi.Phi) -> None:
    texts = ["which colour", "low high", "it is"]
    answers = phi.generate(texts, **FIVE)
    assert answers == phi.generate_many(texts, **FIVE)
    assert answers == [phi.generate(text, **FIVE) for text in texts]
    with pytest.raises(ValueError, match="empty list"):
        phi.generate([])
    with pytest.raises(ValueError, match="one text"):
        phi.generate(texts, images=["a.png"])


def test_options_are_sampling_params(phi: polyphi.Phi) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0.9, "seed": 3, "stop": "e"}
    sampling = SamplingParams(max_tokens=6, temperature=0.9, seed=3, stop=("e",))
    expected = phi.generate("colour", sampling=sampling)
    assert phi.generate("colour", **options) == expected
    assert phi.generate("colour", sampling=options) == expected
    assert (
        phi.generate(
            "colour", sampling=SamplingParams(seed=3, stop=("e",)), max_tokens=6, temperature=0.9
        )
        == expected
    )
    assert list(phi.stream("colour", **options))[-1].completion == expected
    each = [SamplingParams(seed=1), {"seed": 2}]
    many = phi.generate_many(
        ["colour"] * 2, sampling=[SamplingParams.of(s) for s in each], max_tokens=4, temperature=1.0
    )
    assert many == [phi.generate("colour", sampling=s, max_tokens=4, temperature=1.0) for s in each]
    assert SamplingParams(stop_token_ids=[1, 2], logit_bias={3: 1.0}) == SamplingParams(
        stop_token_ids=(1, 2), logit_bias=((3, 1.0),)
    )


def test_media_beside_a_text_come_before_it(phi: polyphi.Phi, folder: Path) -> None:
    picture, clip = folder / "a.png", folder / "a.wav"
    expected = phi.generate([Message.user(Image(picture), Audio(clip), "which colour")], **FIVE)
    in_memory = pil.open(picture)
    empty = [{"type": "audio"}, "low", {"type": "image"}]
    assert phi.generate("which colour", [picture], [clip], **FIVE) == expected
    assert (
        phi.generate("which colour", images=[in_memory], audios=[Audio(clip)], **FIVE) == expected
    )
    filled = phi.generate([{"role": "user", "content": empty}], [in_memory], [clip], **FIVE)
    assert filled == phi.generate([Message.user(Audio(clip), "low", Image(picture))], **FIVE)
    with pytest.raises(ValueError, match="no images"):
        phi.generate([{"role": "user", "content": empty}], audios=[clip])
    with pytest.raises(ValueError, match="more audios"):
        phi.generate([{"role": "user", "content": [{"type": "image"}]}], [picture], [clip])


def test_parts_of_transformers_are_parts(folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    encoded = base64.b64encode(data).decode()
    for part in (
        {"type": "image", "image": data},
        {"type": "image", "image": f"data:image/png;base64,{encoded}"},
        {"type": "image", "base64": encoded},
        {"type": "image", "url": f"data:image/png;base64,{encoded}"},
    ):
        assert Message.user(part).parts == (Image(data),)
    for key in ("image", "path", "url"):
        assert Message.parse(
            {"role": "user", "content": [{"type": "image", key: "a.png"}]}, folder
        ).parts == (Image(folder / "a.png"),)
        key = "audio" if key == "image" else key
        assert Message.user({"type": "audio", key: "a.wav"}).parts == (Audio(Path("a.wav")),)
    with pytest.raises(ValueError, match="not fetched"):
        Message.user({"type": "image", "url": "https://example.org/a.png"})


def test_an_image_in_memory_has_the_logits_of_its_file(phi: polyphi.Phi, folder: Path) -> None:
    picture = pil.open(folder / "a.png")
    expected = phi.logits([Message.user(Image(folder / "a.png"), "colour")])
    for form in (
        picture,
        np.asarray(picture),
        torch.from_numpy(np.array(picture)).permute(2, 0, 1),
    ):
        ids, logits = phi.logits("colour", images=[form])
        assert torch.equal(ids, expected[0]) and torch.equal(logits, expected[1])
        assert torch.equal(phi.embed(Image(form)), phi.embed(Image(folder / "a.png")))


def test_recordings_of_all_forms_have_one_transcript(phi: polyphi.Phi, folder: Path) -> None:
    samples, rate = soundfile.read(folder / "a.wav", dtype="float32")
    few: dict[str, Any] = {"sampling": SamplingParams(max_tokens=4)}
    expected = phi.transcribe((samples, rate), **few)
    assert phi.transcribe(samples, sample_rate=rate, **few) == expected
    assert phi.transcribe(Audio(samples, rate), **few) == expected
    assert phi.transcribe(torch.from_numpy(samples)[None], rate, **few) == expected
    assert phi.transcribe_many([Audio((samples, rate)), (samples, rate)], **few) == [expected] * 2
    for wrong in (samples, {"array": samples}):
        with pytest.raises(ValueError, match="rate"):
            phi.transcribe(wrong)


def weather(city: str) -> str:
    """The weather of a city."""
    return city


def test_tools_stand_on_the_system_message(
    phi: polyphi.Phi, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = with_tools([Message.user("low")], [weather])
    assert phi.generate("low", tools=[weather], **FIVE) == phi.generate(messages, **FIVE)
    assert phi.generate([Message.system("", [weather]), Message.user("low")], **FIVE)
    with pytest.raises(ValueError, match="token ids"):
        phi.generate([5, 6], tools=[weather])
    text = 'So: <|tool_call|>[{"name": "weather", "arguments": {"city": "Rome"}}]<|/tool_call|>'
    answer = Completion(text, others=(Completion(text),))
    monkeypatch.setattr(phi.engine, "generate_many", lambda prompts, **_: [answer for _ in prompts])
    monkeypatch.setattr(
        phi.engine, "stream", lambda *_, **__: iter([Delta(text), Delta("", "stop", answer)])
    )
    calls = (FunctionCall("weather", {"city": "Rome"}),)
    for form in (messages, list(messages)):
        completion = phi.generate(form)
        assert completion.tool_calls == completion.others[0].tool_calls == calls
        assert completion.text == text
    assert phi.generate("low", tools=[weather]).tool_calls == calls
    assert list(phi.stream("low", tools=[weather]))[-1].completion.tool_calls == calls
    assert phi.generate("low").tool_calls == ()


class City(BaseModel):
    """A form of answers."""

    name: str
    size: int


def test_an_answer_has_the_requested_form(phi: polyphi.Phi) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    openai = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    answers = [
        phi.generate("low", response_format=form, max_tokens=60) for form in (schema, openai)
    ]
    assert answers[0] == answers[1] and json.loads(answers[0].text) == {"city": "Rome"}
    for form in (City, {"type": "json_object"}):
        answer = phi.generate("low", response_format=form, max_tokens=2)
        assert answer.text.lstrip().startswith("{")
    assert phi.generate("low", response_format={"type": "text"}, **FIVE) == phi.generate(
        "low", **FIVE
    )
    both = phi.generate("low", response_format=schema, tools=[weather], max_tokens=80)
    assert both.tool_calls or json.loads(both.text) == {"city": "Rome"}
    for wrong in ("json", 3, int, {"type": "json_schema"}):
        with pytest.raises(ValueError, match="response_format"):
            phi.generate("low", response_format=wrong)
    with pytest.raises(ValueError, match="found both"):
        phi.generate("low", response_format=schema, grammar=Grammar("regex", "a"))


def test_a_saved_model_is_the_model(phi: polyphi.Phi, tmp_path: Path) -> None:
    phi.save(tmp_path / "copy")
    again = polyphi.load(tmp_path / "copy", device="cpu")
    ids, logits = phi.logits("which colour is it")
    assert torch.equal(again.logits("which colour is it")[1], logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "copy")
    chat = [{"role": "user", "content": "which colour is it"}]
    theirs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert theirs == ids.tolist()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids[None]).logits[0], logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="empty folder"):
        phi.save(tmp_path / "copy")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="empty folder"):
        phi.save(tmp_path / "file")


@pytest.mark.parametrize("quant", quantize.STORED[:1])
def test_a_quantized_model_is_saved_as_export_writes_it(
    phi: polyphi.Phi, folder: Path, tmp_path: Path, quant: str
) -> None:
    polyphi.load(folder / "model", device="cpu", quant=quant).save(tmp_path / "copy")
    files = [folder / "model" / name for name in ("tokenizer.json", "tokenizer_config.json")]
    save_checkpoint(phi.model, tmp_path / "export", quant=quant, files=files)
    copy, export = (polyphi.load(tmp_path / name, device="cpu") for name in ("copy", "export"))
    assert torch.equal(copy.logits("low")[1], export.logits("low")[1])
    assert quant in repr(copy)


def test_the_package_and_the_model_describe_themselves(phi: polyphi.Phi) -> None:
    assert set(polyphi.__all__) <= set(dir(polyphi))
    assert polyphi.__version__
    with pytest.raises(AttributeError, match="load"):
        _ = polyphi.lod
    text = repr(phi)
    assert "model" in text and f"{phi.parameters:,}" in text and "float32 on cpu" in text
    assert "text, image, audio" in text and "\n" not in text
    answer = phi.generate("low", **FIVE)
    assert str(answer) == answer.text and "5 tokens" in repr(answer) and len(repr(answer)) < 400
    assert "<" in repr(Image(b"a" * 10_000)) and len(repr(Image(b"a" * 10_000))) < 100

"""The code of a model card for transformers and PEFT runs as it stands, in the folder of the card."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image as Picture

from polyphi import cli
from polyphi.checkpoints.processor import make_processor
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.adapters import add_adapter
from polyphi.model.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from polyphi.types.parts import Image, Text
from tests.fixtures import published

QUESTION = "What can you do?"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models to export: mini; native, with vision and speech; and native-third with a third adapter."""
    root = tmp_path_factory.mktemp("sources")
    for layout in ("mini", "native"):
        published.write(root / layout, layout)
        model = load_checkpoint(root / layout)
        add_adapter(model, "third", AdapterConfig(4, 8.0))
        files = [root / layout / name for name in ("tokenizer.json", "tokenizer_config.json")]
        save_checkpoint(model, root / f"{layout}-third", layout, files=files)
    return root


def run_card(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, image: bool = False
) -> dict[str, Any]:
    """Run the code of a folder's card there, with its line for an image if requested; returns its variables."""
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    if image:
        assert code.count("# content, media = ") == 1
        code = code.replace("# content, media = ", "content, media = ")
    variables: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), variables)
    return variables


@pytest.mark.parametrize("name", ["mini", "mini-third", "native", "native-third"])
def test_the_code_of_a_card_answers_a_question(
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    out = tmp_path / "out"
    cli.main(["export", str(sources / name), "--out", str(out), "--layout", name.partition("-")[0]])
    capsys.readouterr()
    variables = run_card(out, monkeypatch)
    tokenizer = Tokenizer.load(out)
    processor = make_processor(load_checkpoint(out).config, tokenizer)
    ids = processor.row([Message.user(QUESTION)], generation_prompt=True).ids.tolist()
    answer = variables["answer"][0].tolist()
    assert answer[: len(ids)] == ids and len(answer) > len(ids)
    printed = capsys.readouterr().out
    assert printed.strip() == tokenizer.decode(answer[len(ids) :], skip_special=True).strip()
    if isinstance(model := variables["model"], PeftModel):
        assert (model.active_adapter == "third") == name.endswith("third")
    else:
        assert name == "mini"


def test_the_code_of_a_card_takes_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the published crops, for which transformers counts the tokens of an image as we do."""
    tokenizer = Tokenizer.train(["what is this"] * 4, 320)
    tokenizer.save(tmp_path / "tokenizer")
    assert tokenizer.image_id is not None and tokenizer.audio_id is not None
    narrow = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    decoder = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        short_factor=(1.0,) * 6,
        long_factor=(1.0,) * 6,
        bos_token_id=tokenizer.eos_ids[1],
        pad_token_id=tokenizer.eos_ids[1],
        eos_token_ids=tokenizer.eos_ids,
        **narrow,
    )
    vision = VisionConfig(**narrow, num_hidden_layers=2, image_token_id=tokenizer.image_id)
    audio = AudioConfig(
        **narrow,
        num_blocks=1,
        nemo_conv_channels=16,
        ext_pw_out_channel=32,
        depthwise_separable_out_channel=32,
        audio_token_id=tokenizer.audio_id,
    )
    adapters = {name: AdapterConfig(2, 4.0) for name in ("vision", "speech")}
    model = PhiModel(ModelConfig(decoder, vision, audio, adapters))
    model.initialise(0)
    files = sorted((tmp_path / "tokenizer").iterdir())
    save_checkpoint(model.to(torch.bfloat16), tmp_path / "model", files=files)
    cli.main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out")])
    Picture.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "out" / "photo.jpg")
    variables = run_card(tmp_path / "out", monkeypatch, image=True)
    messages = [Message.user(Image(tmp_path / "out" / "photo.jpg"), Text("What is this?"))]
    processor = make_processor(model.config, tokenizer)
    expected = processor.row(messages, generation_prompt=True).ids.tolist()
    assert variables["inputs"]["input_ids"][0].tolist() == expected

"""Language models of the Llama layout: equal to transformers, written and read again to the bit, others refused.

Text logits are compared in float32; both sides do the same sums in another order, hence 2e-5 on logits of scale 4.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyphi.checkpoints.gguf import convert
from polyphi.checkpoints.gguf_export import write_gguf
from polyphi.checkpoints.headers import read_config, read_layout
from polyphi.checkpoints.names import tensor_names
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.config import AdapterConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.batch import row
from tests.core.parity import oracle
from tests.fixtures.conversations import write_tokenizer
from tests.fixtures.engines import SAYINGS, random_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FORMS: dict[str, dict[str, Any]] = {
    "SmolLM2": {"tie_word_embeddings": True, "rope_theta": 100000.0},
    "TinyLlama": {"tie_word_embeddings": False},
    "Llama 3.2": {"tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "Mistral": {"head_dim": 32, "sliding_window": None, "tie_word_embeddings": False},
}


def reference(form: str, folder: Path, **sizes: int) -> Any:
    """A random model of a form, as transformers stores it in a folder."""
    model_type = "mistral" if form == "Mistral" else "llama"
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **FORMS[form], **sizes})
    model = oracle.fill(transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(folder)
    return model


def same(a: PhiModel, b: PhiModel) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def logits(model: PhiModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(row(ids)))


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_transformers(form: str, tmp_path: Path) -> None:
    theirs = reference(form, tmp_path)
    model = load_checkpoint(tmp_path)
    assert read_layout(tmp_path) == "llama"
    generator = torch.Generator().manual_seed(1)
    for length in (1, 63, 200, 500):
        ids = torch.randint(256, (length,), generator=generator)
        with torch.no_grad():
            expected = theirs(ids[None], use_cache=False).logits[0]
        torch.testing.assert_close(
            logits(model, ids.tolist()), expected, atol=TOLERANCE * expected.abs().max(), rtol=0
        )


@pytest.mark.parametrize("layout", ["llama", "mini", "native"])
@pytest.mark.parametrize("form", FORMS)
def test_written_and_read_again(form: str, layout: str, tmp_path: Path) -> None:
    reference(form, tmp_path / "theirs")
    model = load_checkpoint(tmp_path / "theirs")
    save_checkpoint(model, tmp_path / "ours", layout, max_shard_bytes=50_000)
    again = load_checkpoint(tmp_path / "ours")
    assert again.config == model.config and same(model, again)


@pytest.mark.parametrize("form", FORMS)
def test_transformers_reads_what_we_write(form: str, tmp_path: Path) -> None:
    theirs = reference(form, tmp_path / "theirs")
    save_checkpoint(load_checkpoint(tmp_path / "theirs"), tmp_path / "ours", "llama")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    ids = torch.arange(200)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("form", ["SmolLM2", "TinyLlama"])
def test_quantized_while_it_is_read_or_before(form: str, quant: str, tmp_path: Path) -> None:
    reference(form, tmp_path / "theirs")
    while_read = load_checkpoint(tmp_path / "theirs", quant=quant)
    plain = load_checkpoint(tmp_path / "theirs")
    save_checkpoint(plain, tmp_path / "ours", "llama", quant=quant, dtype=torch.float32)
    before = load_checkpoint(tmp_path / "ours")
    ids = list(range(40))
    expected = logits(plain, ids)
    if form == "TinyLlama":  # the embeddings of a tied head in 8 bits are looked up in it
        assert torch.equal(logits(while_read, ids), logits(before, ids))
    for model in (while_read, before):
        error = (logits(model, ids) - expected).std() / expected.std()
        assert error < (0.05 if quant == "int8" else 0.3)


def test_peft_reads_an_adapter(tmp_path: Path) -> None:
    """On all linears, which this layout has separately."""
    reference("SmolLM2", tmp_path / "theirs")
    decoder = read_config(tmp_path / "theirs").decoder
    model = random_model(ModelConfig(decoder, None, None, {"mine": AdapterConfig(4, 8.0)}))
    save_checkpoint(model, tmp_path / "ours", "llama")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    )
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours/mine-lora").eval()
    ids = list(range(40))
    with torch.no_grad():
        expected = wrapped(torch.tensor([ids]), use_cache=False).logits[0]
        result = model.logits(model(row(ids, adapter="mine")))
    scale = expected.abs().max()
    torch.testing.assert_close(result, expected, atol=float(TOLERANCE * scale), rtol=0)
    assert (logits(model, ids) - expected).abs().max() > 1000 * TOLERANCE * scale


def test_adapters_are_split_and_joined(tmp_path: Path) -> None:
    """The linears that one of ours joins share its `a`, and have its rows of `b`."""
    reference("SmolLM2", tmp_path / "theirs")
    decoder = read_config(tmp_path / "theirs").decoder
    model = random_model(ModelConfig(decoder, None, None, {"mine": AdapterConfig(4, 8.0)}))
    save_checkpoint(model, tmp_path / "ours", "llama")
    names = tensor_names(model.config, "llama")
    name = "model.layers.1.self_attn.k_proj.lora_B.weight"
    assert names[f"mine-lora/{name}"].shape == (32, 4)
    again = load_checkpoint(tmp_path / "ours")
    assert again.config == model.config and same(model, again)
    file = tmp_path / "ours" / "mine-lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"base_model.model.{name.replace('lora_B', 'lora_A')}"][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1\.self_attn\.k_proj\.lora_A"):
        load_checkpoint(tmp_path / "ours")


@pytest.mark.parametrize("form", FORMS)
def test_gguf_written_and_read_again(form: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As llama.cpp's architecture llama, with the tokenizer and the template."""
    pytest.importorskip("gguf")
    reference(form, tmp_path / "theirs", vocab_size=tokenizer.vocab_size)
    template = "Llama 3" if form == "Llama 3.2" else "SmolLM2"
    folder = write_tokenizer(tokenizer, template, tmp_path / "theirs")
    model = load_checkpoint(folder)
    write_gguf(model, tmp_path / "model.gguf", folder)
    convert(tmp_path / "model.gguf", tmp_path / "again", dtype=torch.float32)
    again = load_checkpoint(tmp_path / "again")
    assert same(model, again)
    ours, theirs = Tokenizer.load(folder), Tokenizer.load(tmp_path / "again")
    assert ours.marks == theirs.marks and ours.controls == theirs.controls
    for text in SAYINGS:
        assert ours.encode(text) == theirs.encode(text)
    ids = list(range(100))
    torch.testing.assert_close(logits(again, ids), logits(model, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model_type": "qwen2"}, "biases"),
        ({"model_type": "qwen3"}, "norms of queries"),
        ({"model_type": "gemma2"}, "sliding window"),
        ({"model_type": "mixtral"}, "experts"),
        ({"model_type": "gpt_neox"}, "parallel"),
        ({"model_type": "phi"}, "parallel"),
        ({"model_type": "rwkv"}, "rwkv"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"sliding_window": 128}, "128"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {**LLAMA3, "factor": None}}, "factor"),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
    ],
)
def test_refused(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    reference("SmolLM2", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=fault):
        read_config(tmp_path)

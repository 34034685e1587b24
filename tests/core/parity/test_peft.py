"""Adapters that PEFT wrote give the same logits here, whatever their ranks, alphas and modules; in the model of the
public layout and in one with separate projections."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import polyphi
from polyphi.checkpoints.names import FUSED
from polyphi.checkpoints.peft import read_peft
from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.adapters import put_adapter, remove_adapter
from polyphi.model.config import ModelConfig
from polyphi.model.merge import merge_adapter
from polyphi.model.multimodal import PhiModel
from polyphi.quantization.quantize import quantize
from polyphi.types.batch import row
from polyphi.types.sampling import SamplingParams

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5
"""Sums in float32 in another order (measured: 4e-6)."""
IDS = torch.arange(7, 47)
CASES: dict[str, dict[str, Any]] = {
    "all linears": {"target_modules": "all-linear"},
    "some linears": {"target_modules": ["qkv_proj", "down_proj"]},
    "rslora": {"target_modules": ["o_proj", "gate_up_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"layers.0.self_attn.qkv_proj": 2, r".*\.down_proj": 7},
        "alpha_pattern": {"o_proj": 3, r"layers\.1\.mlp\.gate_up_proj": 11},
    },
    "one layer": {"target_modules": ["qkv_proj", "o_proj"], "layers_to_transform": [1]},
}


@pytest.fixture
def text_config(tiny_config: ModelConfig) -> ModelConfig:
    return replace(tiny_config, vision=None, audio=None, adapters={})


@pytest.fixture
def model(text_config: ModelConfig) -> PhiModel:
    model = PhiModel(text_config)
    model.initialise(0)
    return model.eval()


def write_adapter(model: PhiModel, folder: Path, **settings: Any) -> Tensor:
    """Write an adapter by PEFT on the model as transformers loads it; returns the logits of `IDS` with it."""
    save_checkpoint(model, folder / "mini", "mini")
    theirs = transformers.Phi3ForCausalLM.from_pretrained(
        folder / "mini", dtype=torch.float32, attn_implementation="eager"
    )
    config = peft.LoraConfig(r=4, lora_alpha=9, **settings)
    wrapped = peft.get_peft_model(theirs, config).eval()
    fill(wrapped)
    wrapped.save_pretrained(folder / "adapter")
    with torch.no_grad():
        logits: Tensor = wrapped(input_ids=IDS[None], use_cache=False).logits[0]
    return logits


def fill(wrapped: nn.Module) -> None:
    """Random factors; a new adapter has zeros."""
    draw = torch.Generator().manual_seed(3)
    for name, p in wrapped.named_parameters():
        if ".lora_" in name:
            p.data.copy_(0.2 * torch.randn(p.shape, generator=draw))


def logits(model: PhiModel, adapter: str | None = "mine") -> Tensor:
    with torch.inference_mode():
        return model.logits(model(row(IDS.tolist(), adapter=adapter)))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_peft(case: str, model: PhiModel, tmp_path: Path) -> None:
    expected, bare = write_adapter(model, tmp_path, **CASES[case]), logits(model, None)
    adapter = read_peft(tmp_path / "adapter", model.config)
    put_adapter(model, "mine", adapter.config, adapter.factors)
    torch.testing.assert_close(logits(model), expected, atol=TOLERANCE, rtol=0)
    assert (expected - bare).abs().max() > 1000 * TOLERANCE
    assert torch.equal(logits(model, None), bare)
    remove_adapter(model, "mine")
    assert not [n for n, _ in model.named_parameters() if ".lora." in n]


def test_an_adapter_of_separate_projections(model: PhiModel, tmp_path: Path) -> None:
    """As other implementations have them: each projection of a fused linear has its own factors."""
    expected = write_adapter(model, tmp_path, target_modules=["qkv_proj", "gate_up_proj"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    decoder, tensors = model.config.decoder, {}
    queries = decoder.num_attention_heads * decoder.head_dim
    keys = decoder.num_key_value_heads * decoder.head_dim
    sizes = {
        "self_attn.qkv_proj": (queries, keys, keys),
        "mlp.gate_up_proj": (decoder.intermediate_size,) * 2,
    }
    for name, tensor in load_file(path).items():
        fused = next(f for f in FUSED if f in name)
        parts = tensor.split(sizes[fused]) if "lora_B" in name else [tensor] * len(FUSED[fused])
        for part, value in zip(FUSED[fused], parts, strict=True):
            tensors[name.replace(fused, part)] = value.clone()
    save_file(tensors, path)
    adapter = read_peft(tmp_path / "adapter", model.config)
    put_adapter(model, "mine", adapter.config, adapter.factors)
    torch.testing.assert_close(logits(model), expected, atol=TOLERANCE, rtol=0)


def test_load_reads_adapters(model: PhiModel, tmp_path: Path) -> None:
    expected = write_adapter(model, tmp_path, target_modules=["qkv_proj"])
    folder = tmp_path / "adapter"
    phi = polyphi.load(
        tmp_path / "mini", dtype="float32", tokenizer=None, adapters={"mine": folder}
    )
    assert list(phi.config.adapters) == ["mine"]
    result = phi.logits(IDS.tolist(), adapter="mine")[1]
    torch.testing.assert_close(result, expected, atol=TOLERANCE, rtol=0)
    tokens = [
        phi.generate(IDS.tolist(), sampling=SamplingParams(max_tokens=3), adapter=name).tokens
        for name in ("mine", None)
    ]
    assert tokens[0][0] == int(expected[-1].argmax()) and tokens[0] != tokens[1]
    with pytest.raises(ValueError, match="new name"):
        polyphi.load(tmp_path / "mini", tokenizer=None, adapters={"auto": folder})


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8-all"])
def test_on_a_quantized_model(scheme: str, model: PhiModel, tmp_path: Path) -> None:
    """The adapter is not quantized, so its difference to the base is that on the unquantized model."""
    write_adapter(model, tmp_path, target_modules=["qkv_proj", "down_proj"])
    adapter = read_peft(tmp_path / "adapter", model.config)
    quantize(model, scheme)
    bare = logits(model, None)
    put_adapter(model, "mine", adapter.config, adapter.factors)
    mixed = logits(model)
    assert torch.equal(logits(model, None), bare) and (mixed - bare).abs().max() > 0.1
    for path, factors in adapter.factors.items():
        pair = dict(model.named_modules())[path].pair("mine")
        assert torch.equal(pair.a, factors.a) and torch.equal(pair.b, factors.b)


def test_other_adapters_stay_exact_when_a_foreign_one_is_merged(
    model: PhiModel, tmp_path: Path
) -> None:
    write_adapter(model, tmp_path, target_modules=["qkv_proj"], use_rslora=True)
    adapter = read_peft(tmp_path / "adapter", model.config)
    first = {p: f for p, f in adapter.factors.items() if ".layers.0." in p}
    put_adapter(model, "first", adapter.config, first)
    put_adapter(model, "mine", adapter.config, adapter.factors)
    before = {name: logits(model, name) for name in ("first", "mine")}
    merge_adapter(model, "mine")
    torch.testing.assert_close(logits(model, None), before["mine"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits(model, "first"), before["first"], atol=1e-4, rtol=0)


def change(folder: Path, **entries: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern has '\('"),
        ({"r": 1024}, "rank [0-9]+, .* r 1024"),
    ],
)
def test_adapters_that_would_answer_otherwise_are_refused(
    entries: dict[str, Any], message: str, model: PhiModel, tmp_path: Path
) -> None:
    write_adapter(model, tmp_path, target_modules=["qkv_proj"])
    change(tmp_path / "adapter", **entries)
    with pytest.raises(ValueError, match=message):
        read_peft(tmp_path / "adapter", model.config)


def test_damaged_and_foreign_folders_are_refused(
    model: PhiModel, text_config: ModelConfig, tmp_path: Path
) -> None:
    write_adapter(model, tmp_path, target_modules=["qkv_proj"])
    folder = tmp_path / "adapter"
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    for changed, message in (
        ({**tensors, name: tensors[name] * torch.nan}, "NaN"),
        ({n: t for n, t in tensors.items() if n != name}, "has no lora_"),
        ({**tensors, name: tensors[name][:, :-1].contiguous()}, "of another model"),
        ({**tensors, name.replace("layers.0", "layers.9"): tensors[name]}, "layer 9"),
        ({**tensors, "model.embed_tokens.lora_embedding_A": tensors[name]}, "embed_tokens"),
        ({}, "no tensors"),
    ):
        save_file({n: t.clone() for n, t in changed.items()}, path)
        with pytest.raises(ValueError, match=message):
            read_peft(folder, text_config)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged"):
        read_peft(folder, text_config)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ValueError, match="pickle"):
        read_peft(folder, text_config)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        read_peft(folder, text_config)

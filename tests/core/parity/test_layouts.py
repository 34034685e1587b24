"""Checkpoints in all three public layouts: bit-exact round trips, and transformers and PEFT read what we write.

Text logits are compared in float32; both sides do the same sums in another order, hence 2e-5 on logits of scale 4.
"""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyphi.checkpoints.headers import read_config, read_layout
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import SHARD_BYTES, save_checkpoint
from polyphi.model.config import AdapterConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.batch import pack, row
from tests.fixtures.engines import fitted, random_model

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
transformers.logging.set_verbosity_error()

TOLERANCE = 2e-5


def same(a: PhiModel, b: PhiModel) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [SHARD_BYTES, 100_000])
@pytest.mark.parametrize("layout", ["original", "native"])
def test_round_trip(
    tiny_config: ModelConfig, tmp_path: Path, layout: str, max_shard_bytes: int, dtype: torch.dtype
) -> None:
    model = random_model(tiny_config).to(dtype)
    save_checkpoint(model, tmp_path / "model", layout, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "model/model.safetensors.index.json").exists() == (
        max_shard_bytes == 100_000
    )
    again = load_checkpoint(tmp_path / "model")
    assert again.config == tiny_config
    assert same(model, again)


def test_round_trip_of_the_language_model(tiny_config: ModelConfig, tmp_path: Path) -> None:
    config = ModelConfig(tiny_config.decoder, None, None, {})
    model = random_model(config)
    for layout in ("mini", "original", "native"):
        save_checkpoint(model, tmp_path / layout, layout)
        again = load_checkpoint(tmp_path / layout)
        assert again.config == config
        assert same(model, again)


def test_through_all_layouts_in_turn(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(tiny_config)
    save_checkpoint(model, tmp_path / "a", "native")
    save_checkpoint(load_checkpoint(tmp_path / "a"), tmp_path / "b", "original")
    assert same(model, load_checkpoint(tmp_path / "b"))


def test_parts_may_be_absent(tiny_config: ModelConfig, tmp_path: Path) -> None:
    for layout in ("original", "native"):
        for change in ({"audio": None}, {"vision": None}, {"adapters": {}}):
            config = replace(tiny_config, **change)
            folder = tmp_path / f"{layout}-{next(iter(change))}"
            save_checkpoint(random_model(config), folder, layout)
            assert read_config(folder) == config


def test_without_adapters(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(tiny_config)
    for layout in ("original", "native"):
        save_checkpoint(model, tmp_path / layout, layout)
        bare = load_checkpoint(tmp_path / layout, adapters=False)
        assert bare.config == replace(tiny_config, adapters={})
        names = bare.state_dict().keys()
        assert names == {n for n in model.state_dict() if ".lora." not in n}


def ours(model: PhiModel, ids: torch.Tensor, adapter: str | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(row(ids.tolist(), adapter=adapter)))


def some_ids(n: int) -> torch.Tensor:
    return torch.randint(20, 1000, (n,), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_reads_our_mini(
    tiny_config: ModelConfig, tmp_path: Path, attention: str
) -> None:
    """Also around the LongRoPE switch at 64 tokens."""
    model = random_model(tiny_config)
    save_checkpoint(model, tmp_path / "mini", "mini")
    theirs, info = transformers.Phi3ForCausalLM.from_pretrained(
        tmp_path / "mini", attn_implementation=attention, output_loading_info=True
    )
    assert not any(info.values()), info
    for n in (7, 63, 64, 65, 100):
        with torch.no_grad():
            expected = theirs(some_ids(n)[None], use_cache=False).logits[0]
        torch.testing.assert_close(ours(model, some_ids(n)), expected, atol=TOLERANCE, rtol=0)


def test_we_read_a_mini_that_transformers_wrote(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(ModelConfig(tiny_config.decoder, None, None, {}))
    save_checkpoint(model, tmp_path / "mini", "mini")
    theirs = transformers.Phi3ForCausalLM.from_pretrained(tmp_path / "mini", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "again", max_shard_size="100KB")
    again = load_checkpoint(tmp_path / "again")
    assert same(model, again)
    assert again.config == model.config


def test_transformers_and_peft_read_our_native(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """Base model by transformers' loader, each adapter by PEFT's: no name too many, none too few."""
    model = random_model(tiny_config)
    save_checkpoint(model, tmp_path / "native", "native")
    theirs, info = transformers.Phi4MultimodalForCausalLM.from_pretrained(
        tmp_path / "native", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    assert theirs.config.vision_config.image_token_id == 10
    assert theirs.config.audio_config.bias_max_distance == 500
    wrapped = peft.PeftModel.from_pretrained(
        theirs, tmp_path / "native/vision-lora", adapter_name="vision"
    )
    missing = wrapped.load_adapter(tmp_path / "native/speech-lora", adapter_name="speech")
    assert not missing.unexpected_keys
    for n in (30, 65):
        for adapter in ("vision", "speech", None):
            wrapped.set_adapter(adapter or "vision")
            with torch.no_grad():
                if adapter is None:
                    with wrapped.disable_adapter():
                        expected = wrapped(input_ids=some_ids(n)[None], use_cache=False).logits[0]
                else:
                    expected = wrapped(input_ids=some_ids(n)[None], use_cache=False).logits[0]
            torch.testing.assert_close(
                ours(model, some_ids(n), adapter), expected, atol=TOLERANCE, rtol=0
            )


@pytest.mark.parametrize("layout", ["native", "mini"])
def test_peft_reads_a_sibling(tiny_config: ModelConfig, tmp_path: Path, layout: str) -> None:
    """A third adapter in addition to the two, or with the language model alone."""
    if layout == "mini":
        tiny_config = ModelConfig(tiny_config.decoder, None, None, {})
    medical = {"medical": AdapterConfig(3, 9.0, 0.1)}
    model = random_model(replace(tiny_config, adapters={**tiny_config.adapters, **medical}))
    save_checkpoint(model, tmp_path / layout, layout)
    kind = "Phi3ForCausalLM" if layout == "mini" else "Phi4MultimodalForCausalLM"
    theirs, info = getattr(transformers, kind).from_pretrained(
        tmp_path / layout, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    bare = ours(model, some_ids(30))
    with torch.no_grad():
        expected = theirs(input_ids=some_ids(30)[None], use_cache=False).logits[0]
        torch.testing.assert_close(bare, expected, atol=TOLERANCE, rtol=0)
        wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / layout / "medical-lora").eval()
        expected = wrapped(input_ids=some_ids(30)[None], use_cache=False).logits[0]
    torch.testing.assert_close(
        ours(model, some_ids(30), "medical"), expected, atol=TOLERANCE, rtol=0
    )
    assert (expected - bare).abs().max() > 100 * TOLERANCE
    again = load_checkpoint(tmp_path / layout)
    assert same(model, again) and again.config == model.config


def test_we_read_adapters_that_peft_wrote(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(tiny_config)
    save_checkpoint(model, tmp_path / "native", "native")
    theirs = transformers.Phi4MultimodalForCausalLM.from_pretrained(
        tmp_path / "native", attn_implementation="eager"
    )
    wrapped = peft.PeftModel.from_pretrained(
        theirs, tmp_path / "native/vision-lora", adapter_name="vision"
    )
    wrapped.save_pretrained(tmp_path / "adapters")
    for file in (tmp_path / "adapters/vision").iterdir():
        file.replace(tmp_path / "native/vision-lora" / file.name)
    assert same(model, load_checkpoint(tmp_path / "native"))


def test_an_untied_copy_of_the_head_must_be_the_embedding(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = random_model(ModelConfig(tiny_config.decoder, None, None, {}))
    save_checkpoint(model, tmp_path / "mini", "mini")
    file = tmp_path / "mini/model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    assert same(model, load_checkpoint(tmp_path / "mini"))
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        load_checkpoint(tmp_path / "mini")


def test_layout_is_recognized_without_a_model_type(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    for layout in ("mini", "original", "native"):
        save_checkpoint(random_model(tiny_config), tmp_path / layout, layout)
        path = tmp_path / layout / "config.json"
        settings = json.loads(path.read_text())
        del settings["model_type"]
        path.write_text(json.dumps(settings))
        assert read_layout(tmp_path / layout) == layout


def test_two_models_in_one_pack_are_unaffected_by_the_layout(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """A loaded model computes exactly what the saved one did, adapters mixed within a pack."""
    model = random_model(tiny_config)
    save_checkpoint(model, tmp_path / "original", "original")
    again = load_checkpoint(tmp_path / "original")
    rows = [
        row(some_ids(n).tolist(), adapter=a) for n, a in ((5, None), (9, "vision"), (70, "speech"))
    ]
    with torch.no_grad():
        assert torch.equal(model(pack(rows)), again(pack(rows)))


def test_the_maker_of_full_size_checkpoints(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """`random_checkpoint.py` at tiny size: it loads, gives finite numbers, and both layouts hold the same model."""
    file = Path(__file__).parents[3] / "benchmarks/random_checkpoint.py"
    spec = importlib.util.spec_from_file_location("maker", file)
    assert spec and spec.loader
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    loaded = []
    for layout in ("original", "native"):
        maker.make(tiny_config, tmp_path / layout, layout, shard_bytes=200_000)
        loaded.append(load_checkpoint(tmp_path / layout))
    assert same(*loaded)
    assert ours(loaded[0], some_ids(65), "vision").isfinite().all()


def test_transformers_reads_the_processor_of_our_native(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """Its settings are the model's, and it finds the placeholders in a tokenizer that another layout came with."""
    tokenizer = Tokenizer.train(["what is it"], 320)
    config = fitted(tiny_config, tokenizer)
    tokenizer.save(tmp_path / "tokenizer")
    files = sorted((tmp_path / "tokenizer").iterdir())
    save_checkpoint(random_model(config), tmp_path / "native", "native", files=files)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "native")
    vision, audio = config.vision, config.audio
    assert vision and audio
    assert processor.image_token_id == vision.image_token_id
    assert processor.audio_token_id == audio.audio_token_id
    assert processor.image_processor.size["height"] == vision.crop_size
    assert processor.image_processor.dynamic_hd == vision.max_crops
    assert processor.audio_processor.audio_compression_rate == audio.time_reduction
    again = load_checkpoint(tmp_path / "native")
    assert again.config == config

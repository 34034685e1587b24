"""A converted GGUF has the dequantized weights of the file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from polyphi import kernels
from polyphi.checkpoints import gguf
from polyphi.checkpoints.names import public_name
from polyphi.checkpoints.read import load_checkpoint
from polyphi.hub.location import locate
from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.types.batch import row

library = pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


def written(
    config: DecoderConfig, path: Path, kind: str, **options: object
) -> dict[str, np.ndarray]:
    """Write a random model as llama.cpp's converter does, norms in float32; returns its values by our names."""
    path.parent.mkdir(exist_ok=True)
    writer = library.GGUFWriter(path, str(options.get("architecture", "phi3")))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_sliding_window(int(options.get("window", 262144)))
    writer.add_eos_token_id(1)
    if "licence" in options:
        writer.add_license(str(options["licence"]))
    model = PhiModel(ModelConfig(config, None, None, {}))
    model.initialise(0)
    values = {}
    for name, tensor in model.state_dict().items():
        gguf_name, values_of = gguf.gguf_name(public_name(name, "mini")[0]), tensor.numpy()
        if tensor.dim() == 1:
            writer.add_tensor(gguf_name, values_of)
            values[name] = values_of
            continue
        packed = library.GGMLQuantizationType[kind]
        raw = library.quants.quantize(values_of, packed)
        writer.add_tensor(gguf_name, raw, raw_dtype=packed)
        values[name] = library.quants.dequantize(raw, packed)
    for which, factors in (("short", config.short_factor), ("long", config.long_factor)):
        writer.add_tensor(f"rope_factors_{which}.weight", np.array(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (path.parent / "tokenizer.json").write_text("{}")
    return values


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16"])
def test_weights_are_the_dequantized_ones(
    tiny_config: ModelConfig, tmp_path: Path, kind: str
) -> None:
    values = written(tiny_config.decoder, tmp_path / "model.gguf", kind)
    gguf.convert(tmp_path / "model.gguf", tmp_path / "out", dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.config.decoder.short_factor == tiny_config.decoder.short_factor
    assert loaded.config.decoder.rotary_dim == tiny_config.decoder.rotary_dim
    for name, tensor in loaded.state_dict().items():
        assert np.array_equal(tensor.numpy(), values[name]), name


@pytest.mark.parametrize(
    ("kind", "quant", "most"), [("Q4_0", "int4", 0.004), ("Q8_0", "int8", 0.012)]
)
def test_requantized_weights_lose_little(
    tiny_config: ModelConfig, tmp_path: Path, kind: str, quant: str, most: float
) -> None:
    """Q4_0 keeps its steps (requantized, 4 bits would lose 6 %); Q8_0 gets a single scale per output."""
    if reason := kernels.missing():
        pytest.skip(reason)
    values = written(tiny_config.decoder, tmp_path / "model.gguf", kind)
    gguf.convert(tmp_path / "model.gguf", tmp_path / "out", quant=quant)
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.quant == quant
    layer = loaded.decoder.layers[1].mlp.down_proj.kernel
    expected = torch.from_numpy(values["decoder.layers.1.mlp.down_proj.weight"])
    assert relative_error(layer.rows(torch.arange(len(expected))), expected) < most
    embeddings = torch.from_numpy(values["decoder.embed_tokens.weight"])
    assert relative_error(loaded.decoder.head.rows(torch.arange(1000)), embeddings) < most
    whole = PhiModel(loaded.config)
    whole.load_state_dict({n: torch.from_numpy(v) for n, v in values.items()})
    batch = row(list(range(20, 50)))
    actual, expected = (model.logits(model(batch)) for model in (loaded, whole.eval()))
    assert relative_error(actual, expected) < 0.04, "activations of 8 bits, and bfloat16"


def test_negative_scales_keep_their_steps() -> None:
    """Q4_0's scale has the sign that makes its largest value -8 steps."""
    values = np.random.default_rng(0).standard_normal((32, 64), dtype=np.float32)
    raw = library.quants.quantize(values, library.GGMLQuantizationType.Q4_0)
    expected = torch.from_numpy(library.quants.dequantize(raw, library.GGMLQuantizationType.Q4_0))
    assert (raw.view(np.float16)[:, ::9] < 0).any() and (raw.view(np.float16)[:, ::9] > 0).any()

    class Stored:
        data = raw

    pieces = gguf._four_bits(Stored)
    actual = gguf.native.numbers(
        pieces["q4"], pieces["row"], 64, torch.float32, bits=4, rotated=False
    )
    assert relative_error(actual, expected) < 0.004


def test_the_licence_is_what_the_file_states(tiny_config: ModelConfig, tmp_path: Path) -> None:
    texts = {"apache-2.0": "apache-2.0", "<b>all</b>": "", "x" * 65: ""}
    for number, (text, licence) in enumerate(texts.items()):
        written(tiny_config.decoder, path := tmp_path / f"{number}.gguf", "F16", licence=text)
        assert gguf.open_model(path).licence == licence
    written(tiny_config.decoder, path := tmp_path / "none.gguf", "F16")
    assert gguf.open_model(path).licence == ""


def test_other_files_are_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    path, out = tmp_path / "model.gguf", tmp_path / "out"
    with pytest.raises(ValueError, match=r"model\.gguf --out FOLDER"):
        path.write_bytes(b"GGUF")
        locate(path)
    with pytest.raises(ValueError, match="GGUF"):
        gguf.convert(path, out)
    for options, message in (
        ({"architecture": "gemma"}, "architecture 'gemma'"),
        ({"window": 100}, "sliding window of 100 tokens within 512"),
    ):
        written(tiny_config.decoder, path, "F16", **options)
        with pytest.raises(ValueError, match=message):
            gguf.convert(path, out)
    written(tiny_config.decoder, path, "F16")
    data = path.read_bytes()
    for cut in (3, 40, 900, len(data) // 2):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="GGUF"):
            gguf.convert(path, out)
    path.write_bytes(data)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="expected gpt2 with"):
        gguf.convert(path, out)
    assert not out.exists()


@pytest.mark.parametrize("value", [7, ["llama"], b"llama"])
def test_an_architecture_of_another_type_is_refused(value: object) -> None:
    class Field:
        def contents(self) -> object:
            return value

    with pytest.raises(ValueError, match="architecture"):
        gguf._architecture(Path("a.gguf"), {"general.architecture": Field()})


def test_a_link_beside_it_is_not_copied(tiny_config: ModelConfig, tmp_path: Path) -> None:
    written(tiny_config.decoder, tmp_path / "model" / "model.gguf", "F16")
    (tmp_path / "id_rsa").write_text("a private key")
    (tmp_path / "model" / "merges.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ValueError, match=r"merges\.txt .*link"):
        gguf.convert(tmp_path / "model" / "model.gguf", tmp_path / "out")

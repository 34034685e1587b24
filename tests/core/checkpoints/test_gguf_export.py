"""GGUF files that polyphi writes: read back they have the same weights and sizes, and llama.cpp's keys."""

import errno
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyphi.checkpoints import gguf
from polyphi.checkpoints.gguf_export import write_gguf
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.config import ModelConfig
from polyphi.model.merge import merge_adapter
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from tests.fixtures import published
from tests.fixtures.command_line import Refused, RunCommand

library = pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with encoders and the adapters vision and speech, in bfloat16."""
    return published.write(tmp_path_factory.mktemp("native") / "model", "native")


def read_back(path: Path, source: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights that our reader finds in a file, whose sizes must be those of `source`."""
    for file in source.glob("tokenizer*"):
        (path.parent / file.name).write_bytes(file.read_bytes())
    gguf.convert(path, path.with_suffix(""), dtype=dtype)
    loaded = load_checkpoint(path.with_suffix(""))
    expected = load_checkpoint(source).config.decoder
    for field in (
        "hidden_size",
        "rotary_dim",
        "short_factor",
        "long_factor",
        "rope_scale",
        "rope_theta",
        "rms_norm_eps",
        "eos_token_ids",
        "bos_token_id",
        "num_key_value_heads",
    ):
        assert getattr(loaded.config.decoder, field) == pytest.approx(
            getattr(expected, field), rel=1e-6
        ), field
    return loaded.state_dict()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_our_reader_finds_the_same_weights(
    native: Path, tmp_path: Path, run_command: RunCommand, dtype: str
) -> None:
    out = tmp_path / "model.gguf"
    code, printed, _ = run_command("export", str(native), "--out", str(out), "--dtype", dtype)
    assert code == 0 and "audio encoder" in printed and "adapter speech" in printed
    torch_dtype = getattr(torch, dtype)
    expected = load_checkpoint(native, dtype=torch_dtype, adapters=False).state_dict()
    tensors = read_back(out, native, torch_dtype)
    assert len(tensors) > 10
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_named_adapter_is_merged(native: Path, tmp_path: Path, run_command: RunCommand) -> None:
    out = tmp_path / "model.gguf"
    code, printed, _ = run_command(
        "export", str(native), "--to", "gguf", "--out", str(out), "--merge", "vision", "--dtype", "float32"
    )  # fmt: skip
    assert code == 0 and "with the adapter vision merged" in printed
    merged = load_checkpoint(native, dtype=torch.float32)
    merge_adapter(merged, "vision")
    tensors, expected = read_back(out, native, torch.float32), merged.state_dict()
    plain = load_checkpoint(native, dtype=torch.float32).state_dict()
    name = "decoder.layers.0.mlp.down_proj.weight"
    assert torch.equal(tensors[name], expected[name]) and not torch.equal(
        tensors[name], plain[name]
    )


@pytest.mark.parametrize(("quant", "embedding"), [("q8_0", "Q8_0"), ("q4_0", "Q8_0")])
def test_quantized_types(
    native: Path, tiny_config: ModelConfig, tmp_path: Path, quant: str, embedding: str
) -> None:
    with pytest.raises(ValueError, match=r"32 .*48"):
        write_gguf(load_checkpoint(native), tmp_path / "model.gguf", native, quant=quant)
    narrow = load_checkpoint(native).config.decoder
    sizes = ("vocab_size", "eos_token_ids", "bos_token_id", "pad_token_id")
    decoder = replace(tiny_config.decoder, **{size: getattr(narrow, size) for size in sizes})
    model = PhiModel(ModelConfig(decoder, None, None, {}))
    model.initialise(0)
    files = [native / "tokenizer.json", native / "tokenizer_config.json"]
    save_checkpoint(model, tmp_path / "wider", "mini", files=files)
    write_gguf(model, tmp_path / "model.gguf", native, quant=quant)
    types = {
        t.name: t.tensor_type.name for t in library.GGUFReader(tmp_path / "model.gguf").tensors
    }
    assert types["token_embd.weight"] == embedding
    assert types["blk.0.ffn_down.weight"] == quant.upper()
    assert types["output_norm.weight"] == types["rope_factors_long.weight"] == "F32"
    tensors = read_back(tmp_path / "model.gguf", tmp_path / "wider", torch.float32)
    name = "decoder.layers.1.mlp.down_proj.weight"
    original = model.state_dict()[name].float()
    error = float((tensors[name] - original).norm() / original.norm())
    assert error < (0.01 if quant == "q8_0" else 0.12)


def test_the_vocabulary_has_llama_cpps_keys(native: Path, tmp_path: Path) -> None:
    model, path = load_checkpoint(native), tmp_path / "model.gguf"
    write_gguf(model, path, native, name="phi3-Phi-3-mine")
    fields = library.GGUFReader(path).fields
    tokenizer = Tokenizer.load(native)

    def value(key: str) -> object:
        return fields[key].contents()

    tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    assert isinstance(tokens, list) and isinstance(types, list)
    assert len(tokens) == len(types) == model.config.decoder.vocab_size
    for token, id in tokenizer.controls.items():
        is_visible = token.strip("<|/>").startswith("tool")
        expected = library.TokenType.USER_DEFINED if is_visible else library.TokenType.CONTROL
        assert tokens[id] == token and types[id] == expected, token
    assert value("tokenizer.ggml.merges") == [
        " ".join(pair) for pair in tokenizer.specification["model"]["merges"]
    ]
    assert value("tokenizer.ggml.eot_token_id") == tokenizer.control("<|end|>")
    assert value("tokenizer.ggml.eos_token_id") == tokenizer.control("<|endoftext|>")
    assert value("tokenizer.ggml.pre") == "gpt-4o" and not value("tokenizer.ggml.add_bos_token")
    assert "message['content'].lstrip()" in str(value("tokenizer.chat_template"))
    # llama.cpp fails at a name with phi3 or phi-3: it expects Phi-3's tokens then
    assert value("general.name") == "phi 3-phi 3-mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "folder", "--to", "gguf"], "--out FILE.gguf"),
        (["--out", "m.gguf", "--layout", "mini"], "use --layout gguf"),
        (["--out", "m.gguf", "--quant", "int4"], "q8_0 or q4_0"),
        (["--out", "folder", "--quant", "q8_0"], "--layout gguf"),
        (["--out", "m.gguf", "--quant", "q8_0", "--dtype", "float16"], "--dtype"),
        (["--out", "m.gguf", "--results", "results"], "--results"),
        (["--out", "m.gguf", "--merge", "medical"], "'medical'"),
    ],
)
def test_wrong_options_are_one_line_each(
    native: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("export", str(native), *options)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_previous_file(
    native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = load_checkpoint(native), tmp_path / "model.gguf"
    path.write_bytes(b"the previous file")
    write = library.GGUFWriter.write_tensor_data
    written = []

    def full(self: object, tensor: np.ndarray) -> None:
        written.append(tensor)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        write(self, tensor)

    monkeypatch.setattr(library.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(OSError, match="No space left"):
        write_gguf(model, path, native)
    assert path.read_bytes() == b"the previous file" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_can_not_grow_names_the_cause(native: Path, tmp_path: Path) -> None:
    """As on a full disk: the system's error, and not numpy's."""
    model = load_checkpoint(native)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_gguf(model, tmp_path / "model.gguf", native)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG


def test_a_tokenizer_of_another_split_is_refused(native: Path, tmp_path: Path) -> None:
    other = (native / "tokenizer.json").read_text().replace("\\\\p{N}|", "\\\\p{N}{1,2}|")
    assert other != (native / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(other)
    with pytest.raises(ValueError, match="splits"):
        write_gguf(load_checkpoint(native), tmp_path / "model.gguf", tmp_path)
    assert not (tmp_path / "model.gguf").exists()

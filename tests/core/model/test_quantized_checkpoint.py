"""Quantized checkpoints: a loaded one equals the saved model and is mapped from its file; wrong uses raise errors."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from polyphi import kernels
from polyphi.checkpoints.headers import read_layout, read_quantization, stored_bytes
from polyphi.checkpoints.names import QUANTIZED
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import ALIGNED, save_checkpoint
from polyphi.model.adapters import add_adapter
from polyphi.model.config import ModelConfig
from polyphi.model.merge import merge_adapter
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.memory import model_bytes
from polyphi.quantization import quantize as quantized
from polyphi.quantization.integer_weights import FOUR, Quantized
from polyphi.quantization.quantize import STORED
from polyphi.types.batch import row
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.image import ImageInput, ImageLayout
from tests.fixtures.variants import few


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def whole(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16 whose adapters aren't zero."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    model = PhiModel(tiny_config)
    model.initialise(0)
    for name, p in model.named_parameters():
        if name.endswith(".b"):
            p.data.copy_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    save_checkpoint(model.bfloat16(), folder)
    return folder


@pytest.fixture(scope="module")
def stored(whole: Path) -> Callable[[str], Path]:
    """The same quantized, each way once; tests only read it."""

    @cache
    def of(quant: str) -> Path:
        folder = whole.with_name(quant)
        save_checkpoint(load_checkpoint(whole), folder, quant=quant)
        return folder

    return of


@pytest.fixture
def damaged(stored: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A quantized checkpoint that a test may change."""
    return lambda quant: shutil.copytree(stored(quant), tmp_path / quant)


def logits_of(model: PhiModel, adapter: str | None = "speech") -> torch.Tensor:
    """Logits for fixed embeddings: a checkpoint in int8 has only the rows of its head as embeddings."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 96, generator=generator).bfloat16()
    return model.logits(model.decoder(x, row(list(range(20, 50)), adapter=adapter)))


@pytest.mark.parametrize("kind", few(STORED, 2))
def test_a_quantized_checkpoint_equals_quantizing_while_loading(
    whole: Path, stored: Callable[[str], Path], kind: str
) -> None:
    folder = stored(kind)
    assert read_quantization(folder) == kind and read_layout(folder) == QUANTIZED
    saved, loaded = load_checkpoint(folder), load_checkpoint(whole, quant=kind)
    assert saved.quant == kind and saved.config == loaded.config
    for adapter in (None, "speech", "vision"):
        assert torch.equal(logits_of(saved, adapter), logits_of(loaded, adapter))
    crops, masks = torch.randn(2, 3, 56, 56).bfloat16(), torch.ones(2, 4, 4, dtype=torch.bool)
    mels, clips = 8 + 3 * torch.randn(180, 80), (AudioLayout(180, "vision"),)
    for inputs in (
        ImageInput(layouts=(ImageLayout(1, 1, 2, 2),), crops=crops, masks=masks),
        AudioInput(layouts=clips, mels=mels),
    ):
        assert torch.equal(*(m.encode(inputs.NAME, inputs) for m in (saved, loaded)))
    if kind.startswith("int4"):
        tokens = row(list(range(20, 50)), adapter="speech")
        assert torch.equal(saved.logits(saved(tokens)), loaded.logits(loaded(tokens)))


def test_embeddings_beside_a_head_in_4_bits_are_exact(
    whole: Path, stored: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, ids = stored("int4"), torch.arange(1000)
    expected = load_checkpoint(whole).decoder.embed(ids)
    saved = load_checkpoint(folder)
    assert torch.equal(saved.decoder.embed(ids), expected)
    bytes_in_memory = model_bytes(saved)
    model = load_checkpoint(whole)
    calibrated = tmp_path / "calibrated"
    rows = [row(list(range(20, 50)), adapter="speech")]
    save_checkpoint(model, calibrated, quant="int4", calibration=rows)
    assert torch.equal(load_checkpoint(calibrated).decoder.embed(ids), expected)
    table = quantized.table_bytes(model.config, "int4")
    assert table == 2 * 1000 * 96 and quantized.table_bytes(model.config, "int8") == 0
    assert stored_bytes(folder) - stored_bytes(folder, table=False) == table
    # what `pull` asks of the disk
    saving = quantized.saved_bytes(model.config, "int4") - table
    assert stored_bytes(whole) - saving == stored_bytes(folder)
    assert bytes_in_memory == model_bytes(load_checkpoint(whole, quant="int4"))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_without_a_table_embeddings_are_rows_of_the_head(
    whole: Path, damaged: Callable[[str], Path], kind: str
) -> None:
    """So they are in checkpoints of GGUF files whose head keeps its levels."""
    folder, exact = damaged(kind), load_checkpoint(whole)
    tensors = load_file(folder / "model.safetensors")
    if kind == "int4":
        del tensors["decoder.embed_tokens.weight.table"]
        save_file(tensors, folder / "model.safetensors")
    saved = load_checkpoint(folder)
    assert saved.decoder.embed_tokens.weight is None
    ids = torch.arange(1000)
    result, expected = saved.decoder.embed(ids), exact.decoder.embed(ids)
    assert result.dtype == torch.bfloat16
    assert float((result.float() - expected.float()).norm() / expected.float().norm()) < 0.12
    # the head has the same rows, but activations of 8 bits
    one = torch.eye(96)[:7].bfloat16()
    assert torch.allclose(
        saved.logits(one).float(), result[:, :7].t().float(), rtol=0.01, atol=1e-4
    )


def test_full_embeddings_stay_in_their_file_and_dtype(tiny_config: ModelConfig, tmp_path) -> None:
    """Casting the whole table would need memory for it, and only few rows are read."""
    model = PhiModel(tiny_config)
    model.initialise(0)
    save_checkpoint(model, tmp_path / "float32")
    loaded = load_checkpoint(tmp_path / "float32", dtype=torch.bfloat16, quant="int8")
    assert loaded.decoder.embed_tokens.weight.dtype == torch.float32
    assert loaded.decoder.embed(torch.tensor([5])).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", few(STORED, 1))
def test_quantized_tensors_are_aligned_for_the_kernels(
    stored: Callable[[str], Path], kind: str
) -> None:
    folder = stored(kind)
    length = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(8 + length)[8:])
    large = [e for e in header.values() if "dtype" in e and e["dtype"] == "U8"]
    assert large
    for entry in header.values():
        begin, end = entry.get("data_offsets", (0, 0))
        assert (8 + length + begin) % 64 == 0 or (end - begin) % 64
    load_file(folder / "model.safetensors")  # others read it too


def test_packed_weights_are_the_mapped_file(stored: Callable[[str], Path]) -> None:
    if reason := kernels.missing():
        pytest.skip(reason)
    model = load_checkpoint(stored("int4"))
    kernels_ = [getattr(m, "kernel", None) for m in model.modules()]
    fours = [one for one in kernels_ if isinstance(one, Quantized) and one.form == FOUR]
    assert fours
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = [
        [int(edge, 16) for edge in line[0].split("-")]
        for line in maps
        if line[-1].endswith("int4/model.safetensors")
    ]
    for four in fours:
        packed = max(four.tensors(), key=lambda t: t.nbytes)
        assert any(start <= packed.data_ptr() < end for start, end in files)
        assert packed.data_ptr() % ALIGNED == 0


@pytest.mark.parametrize("kind", ["int4", "int4-all"])
def test_without_native_kernels_the_same_file_is_loaded(
    whole: Path,
    stored: Callable[[str], Path],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = stored(kind)
    native = load_checkpoint(folder)
    monkeypatch.setattr(kernels, "missing", lambda: "no compiler")
    plain = load_checkpoint(folder)
    result, expected = logits_of(plain).float(), logits_of(native).float()
    assert float((result - expected).norm() / expected.norm()) < 0.03
    ids = torch.arange(1000)
    assert torch.equal(plain.decoder.embed(ids), native.decoder.embed(ids))
    again = tmp_path / "again"
    save_checkpoint(load_checkpoint(whole), again, quant=kind)
    for file in folder.glob("*.safetensors"):
        assert file.read_bytes() == (again / file.name).read_bytes(), "a compiler isn't needed"


@pytest.mark.parametrize("kind", ["int8-all", "int4"])
def test_shards(stored: Callable[[str], Path], whole: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    save_checkpoint(load_checkpoint(whole), folder, quant=kind, max_shard_bytes=200_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(logits_of(load_checkpoint(folder)), logits_of(load_checkpoint(stored(kind))))


def test_the_language_model_alone(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    save_checkpoint(load_checkpoint(whole), folder, "mini", quant="int8")
    loaded = load_checkpoint(folder)
    assert loaded.vision is None and not loaded.config.adapters
    expected = load_checkpoint(whole, quant="int8")
    assert torch.equal(logits_of(loaded, None), logits_of(expected, None))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_model_is_saved_unchanged(
    whole: Path, stored: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    """So that the result of calibration can be saved."""
    if reason := kernels.missing():
        pytest.skip(reason)
    folder = stored(kind)
    tensors = load_file(folder / "model.safetensors")
    for number, loaded in enumerate((load_checkpoint(whole, quant=kind), load_checkpoint(folder))):
        again = tmp_path / f"again {number}"
        save_checkpoint(loaded, again, quant=kind)
        assert torch.equal(logits_of(load_checkpoint(again)), logits_of(load_checkpoint(folder)))
        saved = load_file(again / "model.safetensors")
        assert saved.keys() == tensors.keys()
        for name, tensor in saved.items():
            assert torch.equal(tensor, tensors[name]), name


def test_wrong_uses_raise_errors(
    whole: Path, stored: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = stored("int8")
    with pytest.raises(ValueError, match=r"int8 .*int4"):
        load_checkpoint(folder, quant="int4")
    loaded = load_checkpoint(folder, quant="int8")
    with pytest.raises(ValueError, match="quant="):
        save_checkpoint(loaded, tmp_path / "again")
    with pytest.raises(ValueError, match="untrained adapters"):
        add_adapter(loaded, "mine", "speech")
    with pytest.raises(ValueError, match="untrained adapters"):
        merge_adapter(loaded, "speech")
    with pytest.raises(ValueError, match="found 'bf16'"):
        save_checkpoint(load_checkpoint(whole), tmp_path / "again", quant="bf16")
    with pytest.raises(ValueError, match="original layout"):
        save_checkpoint(load_checkpoint(whole), tmp_path / "again", "original", quant="int8")


def changed(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= fields
    path.write_text(json.dumps(config))


def test_foreign_quantization_and_newer_layouts_are_refused(
    damaged: Callable[[str], Path],
) -> None:
    folder = damaged("int8")
    for fields, message in (
        ({"format": 4}, "version 4 of the quantized layout"),
        ({"format": 2}, "version 2 of the quantized layout.* --quant int8"),
        ({"format": 3, "kind": "int2"}, "'int2'"),
        ({"quant_method": "gptq"}, "quantization method 'gptq'"),
    ):
        changed(folder, **fields)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(folder)


def test_broken_files_raise_errors(damaged: Callable[[str], Path]) -> None:
    folder = damaged("int8")
    file = folder / "model.safetensors"
    data, tensors = file.read_bytes(), load_file(file)
    for cut in (7, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="safetensors"):
            load_checkpoint(folder)
    head = f"{quantized.EMBEDDING}.r8"
    size = tensors[head].numel()
    for change, message in (
        ({head: None}, f"1 missing: {head}"),
        ({head: tensors[head][1:]}, rf"expected \[{size}\] found \[{size - 1}\]"),
        ({head: tensors[head].float()}, f"{head} expected uint8 found F32"),
        ({"decoder.norm.weight": torch.ones(96, dtype=torch.uint8)}, "expected a float found U8"),
    ):
        mixed = {k: v.clone() for k, v in (tensors | change).items() if v is not None}
        save_file(mixed, file)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(folder)


def test_adapters_of_a_quantized_checkpoint_hold_numbers(damaged: Callable[[str], Path]) -> None:
    folder = damaged("int8-all")
    file = folder / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    name = next(n for n in tensors if ".lora." in n and n.endswith(".row"))
    tensors[name][0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ValueError, match="NaN"):
        load_checkpoint(folder)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() is None  # as another tool writes it, and it was read

"""Checkpoints of strangers: whatever their files say, reading them ends with a model or a ValueError, and soon."""

import json
import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from polyphi.checkpoints import gguf
from polyphi.checkpoints.files import INDEX, LONGEST_HEADER, fault
from polyphi.checkpoints.headers import files_beside, read_config
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.config import ModelConfig
from polyphi.model.lora import is_adapter_name
from polyphi.model.multimodal import PhiModel
from tests.fixtures.variants import few
from tests.fixtures.wrong_json import WRONG, replaced

FILES = (
    ("original", None, "config.json"),
    ("native", None, "config.json"),
    ("mini", "int8", "config.json"),
    ("native", None, "vision-lora/adapter_config.json"),
    ("native", None, "generation_config.json"),
    ("native", None, "preprocessor_config.json"),
    ("native", None, INDEX),
)


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """A test that hangs fails."""

    def stop(*_: object) -> None:
        raise TimeoutError("a file of some bytes took minutes")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)


def saved(config: ModelConfig, folder: Path, layout: str, quant: str | None) -> Path:
    model = PhiModel(config)
    model.initialise(seed=0)
    save_checkpoint(model, folder, layout, quant=quant)
    return folder


def write_index(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("seed", few(range(len(WRONG)), 1))
@pytest.mark.parametrize(("layout", "quant", "name"), FILES)
def test_a_wrong_value_in_any_file_is_an_error_for_the_user(
    tiny_config: ModelConfig, tmp_path: Path, layout: str, quant: str | None, name: str, seed: int
) -> None:
    folder = saved(tiny_config, tmp_path / "model", layout, quant)
    if name == INDEX:
        write_index(folder)
    intact, outcomes = read_config(folder), set()
    for text in replaced((folder / name).read_text(), seed):
        (folder / name).write_text(text)
        fault(folder)  # of the cache; never raises
        try:
            files_beside(folder, layout)
            if read_config(folder) != intact:
                load_checkpoint(folder)
            outcomes.add("read")
        except ValueError as error:
            assert str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def edited(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("layout", "key", "value", "expected"),
    [
        ("original", "num_attention_heads", "six", "an integer"),
        ("original", "num_attention_heads", 0, "an integer from 1 to"),
        ("original", "num_hidden_layers", 10_000_000, "an integer from 1 to 1,000"),
        ("original", "audio_processor.config.attention_dim", [], "an integer"),
        ("original", "audio_processor.config.nemo_conv_settings", 3, "an object"),
        ("original", "embd_layer", 3, "an object"),
        ("original", "vision_lora.r", 0, "a positive integer"),
        ("original", "model_type", [], "a text"),
        ("native", "audio_config.num_blocks", 10_000_000, "an integer from 1 to 1,000"),
        ("native", "vision_config.num_hidden_layers", 10_000_000, "an integer from 1 to 1,000"),
        ("native", "rope_scaling.long_factor", [1.0, None], "numbers"),
        ("native", "rms_norm_eps", 1e400, "a number"),
    ],
)
def test_the_error_names_the_key_and_both_values(
    tiny_config: ModelConfig, tmp_path: Path, layout: str, key: str, value: Any, expected: str
) -> None:
    folder = saved(tiny_config, tmp_path / "model", layout, None)

    def change(values: Any) -> None:
        *outer, last = key.split(".")
        for name in outer:
            values = values[name]
        values[last] = value

    edited(folder, "config.json", change)
    with pytest.raises(ValueError) as error:
        read_config(folder)
    assert f"expected {key} to be {expected}" in str(error.value)
    assert str(folder) in str(error.value) and "found" in str(error.value)


@pytest.mark.parametrize("name", ["a.b", "keys", "auto", "", "7"])
def test_adapters_with_names_of_other_things_are_refused(
    tiny_config: ModelConfig, tmp_path: Path, name: str
) -> None:
    assert not is_adapter_name(name) and is_adapter_name("medical")
    folder = saved(tiny_config, tmp_path / "model", "native", None)
    (folder / "speech-lora").rename(folder / f"{name}-lora")
    with pytest.raises(ValueError, match="adapter's name"):
        read_config(folder)


# ---- GGUF

HEADER = b"GGUF" + struct.pack("<I", 3)
KEY = struct.pack("<Q", 1) + b"a"


PROMISES = {
    "texts in a list": struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 8, 1 << 40),
    "lists in a list": struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 9, 1 << 40),
    "bytes of a text": struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IQ", 8, 1 << 40),
    "keys": struct.pack("<QQ", 0, 1 << 40),
    "tensors": struct.pack("<QQ", 1 << 40, 0),
    "elements": struct.pack("<QQ", 1, 0) + KEY + struct.pack("<IQIQ", 1, 1 << 40, 0, 0),
}


@pytest.mark.parametrize("promise", PROMISES.values(), ids=PROMISES)
def test_a_gguf_that_promises_more_than_it_holds_is_refused(tmp_path: Path, promise: bytes) -> None:
    """Also where the file is long, for which a disk needs no space."""
    pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    path.write_bytes(HEADER + promise)
    for size in (path.stat().st_size, 1 << 33):
        os.truncate(path, size)
        with pytest.raises(ValueError, match=r"model\.gguf"):
            gguf.convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "value", "key"),
    [
        ("add_block_count", 10_000_000, r"phi3\.block_count"),
        ("add_head_count", 0, r"phi3\.attention\.head_count"),
        ("add_feed_forward_length", 64, r"ffn_up\.weight with the shape"),
    ],
)
def test_sizes_of_a_gguf_have_bounds(
    tiny_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    value: int,
    key: str,
) -> None:
    library = pytest.importorskip("gguf")
    from tests.core.checkpoints.test_gguf import written

    path = tmp_path / "model.gguf"
    add = getattr(library.GGUFWriter, method)
    monkeypatch.setattr(library.GGUFWriter, method, lambda self, _: add(self, value))
    written(tiny_config.decoder, path, "F16")
    with pytest.raises(ValueError, match=key):
        gguf.convert(path, tmp_path / "out")


@pytest.mark.parametrize("files", few([8, 1], 1))
def test_more_tensors_than_any_model_has_are_refused_unread(
    tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """600,000 names, in one file or in several."""
    folder = saved(tiny_config, tmp_path / "model", "native", None)
    monkeypatch.setattr(
        "polyphi.checkpoints.headers.safe_open", lambda *_, **__: pytest.fail("read")
    )
    for number in range(files):
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        names = range(number, 100_000, files)
        text = json.dumps({f"tensor {n}": empty for n in names}).encode()
        path = folder / f"extra{number}.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match=f"extra.*at most {LONGEST_HEADER:,} bytes"):
        read_config(folder)

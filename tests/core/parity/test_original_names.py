"""The published checkpoint's 2,047 names and shapes, and what the report says about sizes.

`original_tensors.txt` lists them, layers as `{0..31}`. Source: Microsoft's own modelling code built at full size.
"""

import json
import math
import re
import struct
import sys
from pathlib import Path

import pytest
import torch

from polyphi.checkpoints import config as public_config
from polyphi.checkpoints.headers import read_config
from polyphi.checkpoints.names import public_name, tensor_names
from polyphi.checkpoints.parts import parts
from polyphi.checkpoints.read import load_checkpoint
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel

LISTING = Path(__file__).parent / "original_tensors.txt"


def published() -> dict[str, tuple[int, ...]]:
    tensors = {}
    for line in LISTING.read_text().splitlines():
        name, shape = line.split(" ", 1)
        sizes = tuple(int(n) for n in re.findall(r"\d+", shape))
        if layers := re.search(r"\{0\.\.(\d+)\}", name):
            for n in range(int(layers[1]) + 1):
                tensors[name.replace(layers[0], str(n))] = sizes
        else:
            tensors[name] = sizes
    return tensors


def test_every_published_name_and_shape_is_ours() -> None:
    expected = published()
    assert len(expected) == 2047
    assert {name: entry.shape for name, entry in tensor_names(ModelConfig()).items()} == expected


def test_published_tensors_load_strictly_without_memory() -> None:
    config = ModelConfig()
    entries = tensor_names(config)
    state = {}
    for name, shape in published().items():
        entry = entries[name]
        unit_axes = public_name(entry.ours, "original")[1]
        state[entry.ours] = torch.empty(shape, dtype=torch.bfloat16, device="meta").reshape(
            shape[unit_axes:]
        )
    with torch.device("meta"):
        model = PhiModel(config)
    model.load_state_dict(state, strict=True, assign=True)


def hollow(folder: Path, tensors: dict[str, tuple[int, ...]], shards: int) -> None:
    """Safetensors files with a true header and no bytes on the disk: a full-size checkpoint of zeros."""
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        header, offset = {}, 0
        for name in names[i::shards]:
            end = offset + 2 * math.prod(tensors[name])
            header[name] = {
                "dtype": "BF16",
                "shape": list(tensors[name]),
                "data_offsets": [offset, end],
            }
            offset = end
            weight_map[name] = f"model-{i}.safetensors"
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / f"model-{i}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.long  # ten seconds of page faults
@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files, or it would fill the disk")
def test_a_published_folder_loads_at_full_size_by_mapping(tmp_path: Path) -> None:
    published_folder(tmp_path)
    model = load_checkpoint(tmp_path)
    assert model.config == ModelConfig()
    assert sum(t.numel() for t in model.state_dict().values()) == 5_574_460_384


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files, or it would fill the disk")
def test_sizes_of_a_published_folder(tmp_path: Path) -> None:
    """The published config.json says nothing of the vision tower: its sizes come from the shapes."""
    published_folder(tmp_path)
    assert read_config(tmp_path) == ModelConfig()


def published_folder(folder: Path) -> None:
    hollow(folder, published(), shards=3)
    written = public_config.write(ModelConfig(), "original")
    written.pop("polyphi")
    written["auto_map"] = {"AutoModelForCausalLM": "modeling_phi4mm.Phi4MMForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**written, "eos_token_id": 199999}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [200020, 199999]}')


def test_parameter_arithmetic() -> None:
    """The exact counts behind the report's rounded ones; the vision tower's unreached tensors count with it."""
    rows = {p.name: p.parameters for p in parts(ModelConfig())}
    assert rows == {
        "language model": 3_836_021_760,
        "vision encoder and projector": 441_550_016,
        "vision adapter": 369_098_752,
        "audio encoder and projectors": 466_416_256,
        "speech adapter": 461_373_440,
        "all": 5_574_460_224,
    }
    for part in parts(ModelConfig()):
        assert part.report is not None
        assert abs(part.parameters - part.report) < 0.015 * part.report, part

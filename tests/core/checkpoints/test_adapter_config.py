"""Adapter folders whose configuration or tensors have wrong types are refused with the reason."""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyphi.checkpoints.adapter_config import REFUSED, TYPES
from polyphi.checkpoints.peft import CONFIG, FILE, PeftError, read_peft
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from tests.fixtures.adapter_folders import random_factors, write_folder

NUMBERS = [0, -1, 5, 1.5, 10**400, 1e300, float("nan"), float("inf")]
TEXTS = ["", "x", "\ud800"]
LISTS = [[], [None], [[["x"]]]]
OBJECTS = [{}, {"x": None}, {"x": {"y": []}}]
ODD: list[Any] = [None, True, *NUMBERS, *TEXTS, *LISTS, *OBJECTS]
ACCEPTED: dict[str, list[Any]] = {
    "r": [],
    "lora_alpha": [0, -1, 5, 1.5],
    "lora_dropout": [None, 0],
    "alpha_pattern": [None, {}],
    "rank_pattern": [None, *OBJECTS],
    "use_rslora": [None, True],
    "fan_in_fan_out": [None, True],
    "target_modules": [None, *TEXTS, []],
    "init_lora_weights": [None, True, *TEXTS],
    "bias": [],
    "peft_type": [],
    **{entry: [None, 0, "", [], {}] for entry in REFUSED},
    "exclude_modules": ODD,
    "layers_pattern": ODD,
    "layers_to_transform": ODD,
    "task_type": ODD,
}
"""Entry -> which of the odd values it may have, in an adapter of rank 4."""
PATTERNS: list[Any] = [
    *({"o_proj": value} for value in (10**400, True, [1])),
    {"a{99999999999}": 1},
    {"(" * 10_000: 1},
]


@pytest.fixture
def folder(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "adapter", random_factors(PhiModel(tiny_config), 0))


def write(folder: Path, config: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(config))


def refusal(folder: Path, config: ModelConfig) -> str | None:
    """Why a folder is refused."""
    try:
        read_peft(folder, config)
    except PeftError as error:
        return error.reason
    return None


@pytest.mark.parametrize("entry", ACCEPTED)
def test_an_entry_of_a_wrong_type_is_named(
    entry: str, folder: Path, tiny_config: ModelConfig
) -> None:
    before, accepted = json.loads((folder / CONFIG).read_text()), []
    for value in [*ODD, *PATTERNS] if entry == "alpha_pattern" else ODD:
        write(folder, {**before, entry: value})
        if reason := refusal(folder, tiny_config):
            assert entry in reason and len(reason) < 400
        else:
            accepted.append(value)
    assert list(map(json.dumps, accepted)) == list(map(json.dumps, ACCEPTED[entry]))


def test_the_table_has_every_entry() -> None:
    assert TYPES.keys() | REFUSED.keys() <= ACCEPTED.keys()


@pytest.mark.parametrize("config", [[], 5, None, "x", {}, [{"r": 4}]])
def test_configurations_that_are_no_adapters(
    config: Any, folder: Path, tiny_config: ModelConfig
) -> None:
    write(folder, config)
    assert refusal(folder, tiny_config)


def test_files_that_are_no_json(folder: Path, tiny_config: ModelConfig) -> None:
    for text in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"r": 4, "lora_alpha": ' + b"9" * 5000):
        (folder / CONFIG).write_bytes(text)
        assert refusal(folder, tiny_config)
    (folder / CONFIG).write_bytes(b'{"r":4,"lora_alpha":1,"x":' + b"[" * 900 + b"]" * 900 + b"}")
    refusal(folder, tiny_config)


NAME = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"


def headers(inputs: int, outputs: int) -> Iterator[tuple[str, Any, int]]:
    """What is wrong, a header of safetensors and the bytes of its tensors."""

    def both(a: Any, end: int = 4 * inputs) -> dict[str, Any]:
        """With a second tensor whose bytes follow the first one's."""
        right = {"dtype": "F32", "shape": [outputs, 1], "data_offsets": [end, end + 4 * outputs]}
        return {NAME.format("A"): a, NAME.format("B"): right}

    size = 4 * (inputs + outputs)
    a = {"dtype": "F32", "shape": [1, inputs], "data_offsets": [0, 4 * inputs]}
    odd = [None, 5, -1, "x", [], {}, [None], ["x"], [1, -1], [2**70, 2**70], True, 1.5]
    for key in a:
        for value in odd:
            yield f"{key} {value}", both({**a, key: value}), size
        yield f"no {key}", both({k: v for k, v in a.items() if k != key}), size
    for value in odd:
        yield f"tensor {value}", both(value), size
        yield f"header {value}", value, size
        yield f"metadata {value}", {"__metadata__": value}, 0
    widths = {"I32": 4, "U32": 4, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "U64": 8}
    shapes = ([], [inputs], [1, 1, inputs], [inputs, 1], [0, inputs])
    for dtype, width, shape in (
        *((dtype, width, [1, inputs]) for dtype, width in widths.items()),
        *(("F32", 4, shape) for shape in shapes),
    ):
        end = width * prod(shape)
        first = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
        yield f"{dtype} {shape}", both(first, end), end + 4 * outputs
    for layer in ("00", "٠", "9" * 5000, "-1", ""):
        renamed = {name.replace("layers.0", f"layers.{layer}"): t for name, t in both(a).items()}
        yield f"layer {layer[:9]}", renamed, size


def test_headers_of_wrong_types_are_refused(folder: Path, tiny_config: ModelConfig) -> None:
    decoder = tiny_config.decoder
    cases = list(headers(decoder.intermediate_size, decoder.hidden_size))
    for what, header, size in cases:
        text = json.dumps(header, ensure_ascii=False).encode()
        (folder / FILE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
        assert refusal(folder, tiny_config), what
    assert len(cases) > 80


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=40), at=st.integers(0, 2000))
def test_damaged_weights_are_no_crash(
    data: bytes, at: int, folder: Path, tiny_config: ModelConfig
) -> None:
    whole = (folder / FILE).read_bytes()
    damaged = folder.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / CONFIG).write_text((folder / CONFIG).read_text())
    (damaged / FILE).write_bytes(whole[:at] + data + whole[at + len(data) :])
    refusal(damaged, tiny_config)


def test_a_folder_that_can_not_be_read(
    folder: Path, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "read_text", fail)
    reason = refusal(folder, tiny_config)
    assert reason and "Permission denied" in reason and str(folder) not in reason

"""Adapter folders whose configuration or tensors have wrong types are refused with the reason."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.adapter_folders import random_factors, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyphi.checkpoints.adapter_config import REFUSED, TYPES
from polyphi.checkpoints.peft import CONFIG, FILE, PeftError, read_peft
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel

ENTRIES = [
    *TYPES,
    *REFUSED,
    "bias",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "peft_type",
    "task_type",
]
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    5,
    10**400,
    1.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    [],
    [None],
    [[["x"]]],
    {},
    {"x": None},
    {"x": {"y": []}},
]


@pytest.fixture
def folder(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "adapter", random_factors(PhiModel(tiny_config), 0))


def write(folder: Path, config: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(config))


def change(folder: Path, **entries: Any) -> None:
    write(folder, {**json.loads((folder / CONFIG).read_text()), **entries})


def refusal(folder: Path, config: ModelConfig) -> str | None:
    """Why a folder is refused."""
    try:
        read_peft(folder, config)
    except PeftError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("r", "x"),
        ("r", None),
        ("r", True),
        ("r", 0),
        ("r", 4.5),
        ("r", [4]),
        ("lora_alpha", None),
        ("lora_alpha", "4"),
        ("lora_alpha", [4]),
        ("lora_alpha", True),
        ("lora_alpha", 10**400),
        ("lora_alpha", 1e300),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_dropout", "x"),
        ("lora_dropout", {}),
        ("lora_dropout", 2),
        ("alpha_pattern", []),
        ("alpha_pattern", 5),
        ("alpha_pattern", "x"),
        ("alpha_pattern", {"o_proj": 10**400}),
        ("alpha_pattern", {"o_proj": True}),
        ("alpha_pattern", {"o_proj": [1]}),
        ("alpha_pattern", {"a{99999999999}": 1}),
        ("alpha_pattern", {"(" * 10_000: 1}),
        ("rank_pattern", []),
        ("use_rslora", "no"),
        ("fan_in_fan_out", 1),
        ("target_modules", 5),
        ("target_modules", {}),
        ("target_modules", [5]),
        ("init_lora_weights", [1]),
        ("init_lora_weights", {"a": 1}),
        ("peft_type", 1),
        ("peft_type", ["LORA"]),
        ("bias", {}),
        ("bias", True),
    ],
)
def test_entries_of_wrong_types_are_named(
    entry: str, value: Any, folder: Path, tiny_config: ModelConfig
) -> None:
    change(folder, **{entry: value})
    reason = refusal(folder, tiny_config)
    assert reason is not None and entry in reason and len(reason) < 400


def test_nulls_of_optional_entries_are_accepted(folder: Path, tiny_config: ModelConfig) -> None:
    optional = TYPES.keys() - {"r", "lora_alpha"} | REFUSED.keys()
    change(folder, **dict.fromkeys(optional))
    assert refusal(folder, tiny_config) is None


def test_any_value_of_any_entry_is_accepted_or_refused(
    folder: Path, tiny_config: ModelConfig
) -> None:
    before = json.loads((folder / CONFIG).read_text())
    refused = 0
    for entry in ENTRIES:
        for value in ODD:
            write(folder, {**before, entry: value})
            refused += refusal(folder, tiny_config) is not None
    assert refused > len(ENTRIES) * len(ODD) // 2


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

    def both(a: Any, b: Any = None) -> dict[str, Any]:
        end = 4 * inputs
        right = {"dtype": "F32", "shape": [outputs, 1], "data_offsets": [end, end + 4 * outputs]}
        return {NAME.format("A"): a, NAME.format("B"): right if b is None else b}

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
    for dtype, width in (
        ("I32", 4),
        ("U32", 4),
        ("I8", 1),
        ("BOOL", 1),
        ("F8_E4M3", 1),
        ("U64", 8),
    ):
        end = width * inputs
        rest = {"dtype": "F32", "shape": [outputs, 1], "data_offsets": [end, end + 4 * outputs]}
        first = {"dtype": dtype, "shape": [1, inputs], "data_offsets": [0, end]}
        yield dtype, both(first, rest), end + 4 * outputs
    for shape in ([], [inputs], [1, 1, inputs], [inputs, 1], [0, inputs]):
        count = 1
        for length in shape:
            count *= length
        rest = {
            "dtype": "F32",
            "shape": [outputs, 1],
            "data_offsets": [4 * count, 4 * (count + outputs)],
        }
        first = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * count]}
        yield f"shape {shape}", both(first, rest), 4 * (count + outputs)
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

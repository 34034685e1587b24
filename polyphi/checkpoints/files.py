"""The files of a checkpoint folder: which hold the weights, and whether they are complete. Only headers are read."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polyphi.checkpoints.adapter_config import describe
from polyphi.runtime.files import read_object
from polyphi.text.quantity import quantity

MODEL_TYPES = {
    "phi3": "mini",
    "phi4mm": "original",
    "phi4_multimodal": "native",
    "llama": "llama",
    "mistral": "llama",
}
"""`model_type` in config.json -> the layout of the checkpoint."""
UNSUPPORTED = {
    "qwen2": "biases of the query, key and value linears",
    "qwen3": "norms of queries and keys",
    "gemma": "another norm and scaled embeddings",
    "gemma2": "a sliding window and capped logits",
    "gemma3_text": "a sliding window and norms of queries and keys",
    "mixtral": "experts",
    "phimoe": "experts",
    "phi": "biases and parallel blocks",
    "olmo2": "norms after the blocks and of queries and keys",
    "gpt2": "learned positions and biases",
    "gpt_neox": "parallel blocks and biases",
    "cohere": "parallel blocks",
    "smollm3": "layers without rotary positions",
    "llama4_text": "experts and layers without rotary positions",
}
"""`model_type` of known language models that can't be read -> what they have that the decoder doesn't."""
SIGLIP_TYPES = ("siglip", "siglip_vision_model")
"""`model_type` of SigLIP's checkpoints, and of SigLIP 2's with a fixed resolution, as parts of a recipe file. Those of
other resolutions (siglip2) have patches as vectors and other positions."""
INDEX = "model.safetensors.index.json"
ACCURACY = "accuracy.json"
"""The accuracy of a quantized checkpoint (accuracy_file.py)."""
DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""SHA-256 of a file, or the SHA-1 that git gives small ones, of its content after its type and length. In the Hub's
cache it is the name of the content."""
LONGEST_JSON = 64 << 20
"""Bytes of a JSON file of a checkpoint that is read; published ones have at most some megabytes."""
LONGEST_HEADER = 4 << 20
"""Bytes of the headers of a checkpoint's safetensors files: 40,000 tensors, twenty times those of the published model.
Reading the 600,000 tensors that the format allows takes many seconds."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file. Raises ValueError for a file that isn't one, and
    for a config.json's model_type, on which a folder's other files depend, that isn't a text."""
    if not path.is_file():
        return {}
    if (size := path.stat().st_size) > LONGEST_JSON:
        raise ValueError(f"{path} has {size:,} bytes; expected at most {LONGEST_JSON:,}")
    value = read_object(path)
    model_type = value.get("model_type")
    if path.name == "config.json" and not isinstance(model_type, str | None):
        raise ValueError(f"{path}: expected model_type to be a text, found {describe(model_type)}")
    return value


def is_inner(name: Any) -> bool:
    """Whether a name that was read somewhere is a path below a folder, to which it may be joined: relative, without
    "..", empty parts, backslashes and characters that aren't printable."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and "\\" not in name
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def index_members(index: Path) -> list[str]:
    """The files that an index (INDEX) names. Raises ValueError for other than safetensors in the same folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(
            f"{index}: expected weight_map to be an object of tensors and their files, found {describe(weight_map)}"
        )
    for name in weight_map.values():
        if not is_inner(name) or "/" in name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index} names {name!r:.200}; expected safetensors files in the same folder (pickles are refused)"
            )
    return sorted(set(weight_map.values()))


def inside(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """The files among `paths`, which are in a checkpoint's folder. Raises ValueError for a link that leads elsewhere,
    whose content isn't the checkpoint's and must not become part of a copy. Links of the Hub's cache are accepted:
    those from `snapshots/COMMIT` to `blobs/HASH` of the same repository."""
    root = folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    files = []
    for path in paths:
        target = path.resolve()
        is_blob = target.parent == blobs and DIGEST.fullmatch(target.name)
        if not (target.is_relative_to(root) or is_blob):
            raise ValueError(
                f"{path} is a link to {target}, outside of the checkpoint's folder; remove it, or replace it by the "
                "file itself if that belongs to the checkpoint"
            )
        if path.is_file():
            files.append(path)
    return files


def weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        members = index_members(index)
        if absent := [m for m in members if not (folder / m).is_file()]:
            raise ValueError(
                f"{index} names {quantity(len(members), 'shard')}, of which {len(absent)} aren't here: "
                f"{', '.join(absent)}"
            )
        return [folder / m for m in members]
    if files := sorted(folder.glob("*.safetensors")):
        return files
    if pickles := sorted(
        p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}
    ):
        raise ValueError(
            f"{folder} has {pickles[0]}, a pickle, which can run code and is refused; expected model.safetensors"
        )
    raise ValueError(
        f"{folder} has no weights; expected model.safetensors or model.safetensors.index.json"
    )


def check_headers(files: Iterable[Path]) -> None:
    """Raise ValueError for safetensors files with more tensors than any model has, without reading their names."""
    total = 0
    for file in filter(Path.is_file, files):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        total += length if length <= file.stat().st_size else 0  # a larger one is damaged
        if total > LONGEST_HEADER:
            raise ValueError(
                f"{file}: expected headers of at most {LONGEST_HEADER:,} bytes in all files, found {total:,}; store "
                "fewer tensors"
            )


def fault(folder: Path) -> str | None:
    """What a checkpoint folder lacks to be complete (a file that is missing or cut off), None if nothing. A folder of
    adapters that is missing as a whole is not noticed."""
    try:
        values = read_json(folder / "config.json")
        if not values:
            return f"{folder / 'config.json'} is missing"
        files = weight_files(folder)
    except (ValueError, OSError) as error:
        return str(error)
    original = values.get("model_type") == "phi4mm"  # has its adapters in the weights
    for adapter in () if original else sorted(folder.glob("*-lora")):
        files += [adapter / "adapter_model.safetensors"]
        if not (adapter / "adapter_config.json").is_file():
            return f"{adapter / 'adapter_config.json'} is missing"
    return next((text for file in files if (text := weights_fault(file))), None)


def weights_fault(file: Path) -> str | None:
    """Why a safetensors file is not complete, by its header and size; None if it is."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > (most := min(size, LONGEST_HEADER)):
                return f"{file} has a header of {length:,} bytes, expected at most {most:,}"
            header = json.loads(opened.read(length))
            ends = [value["data_offsets"][1] for name, value in header.items() if name[:2] != "__"]
    except FileNotFoundError:
        return f"{file} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"{file} is not a complete safetensors file ({error})"
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        return f"{file} has {size:,} bytes, expected {expected:,}"
    return None

"""A copy of a quantized GGUF file whose weights lie on no program's levels.

    python benchmarks/dithered.py SmolLM2-135M-Instruct.Q4_1.gguf dithered.gguf
    polyphi export dithered.gguf --out dithered --dtype float32

A file in Q4_1 flatters formats that can express its levels exactly. In the copy, in float32, each weight is moved by a
uniform draw within the cell of its level: by at most half the distance to the next level. The draws are pinned, so that
every program quantizes the same weights. Needs the package gguf.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

SEED = 74
BLOCK = 32
"""Weights of a block in Q4_1 and Q8_0."""
BYTES: Mapping[GGMLQuantizationType, int] = {
    GGMLQuantizationType.Q4_1: 20,
    GGMLQuantizationType.Q8_0: 34,
}
"""Bytes of a block, which begins with the distance of its levels in float16."""
GENERAL = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")
"""Fields that the writer sets."""


def weights(tensor: object, draws: np.random.Generator) -> np.ndarray:
    """A tensor's weights in float32, each moved within its cell. Raises ValueError for a type without equal cells."""
    kind, data = tensor.tensor_type, tensor.data  # type: ignore[attr-defined]
    if kind == GGMLQuantizationType.F32:
        return np.array(data)
    if kind not in BYTES:
        raise ValueError(
            f"expected tensors in Q4_1, Q8_0 and F32, found {tensor.name} in {kind.name}"  # type: ignore[attr-defined]
        )
    blocks = data.reshape(-1, BYTES[kind])
    distance = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    values = dequantize(data, kind)
    moves = draws.uniform(-0.5, 0.5, size=(len(blocks), BLOCK)).astype(np.float32) * distance
    return values + moves.reshape(values.shape)


def write(source: Path, out: Path, progress: Callable[[str], None] = print) -> None:
    """Write the copy of a GGUF file."""
    reader, draws = GGUFReader(source), np.random.default_rng(SEED)
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = GGUFWriter(out, architecture.contents())
    for name, field in reader.fields.items():
        if name in GENERAL:
            continue
        value = 0 if name == "general.file_type" else field.contents()
        part = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], part)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, weights(tensor, draws))
        progress(f"{tensor.name}: {tensor.tensor_type.name}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Move each weight of a GGUF file in its cell.")
    parser.add_argument("source", type=Path, help="a .gguf file in Q4_1")
    parser.add_argument("out", type=Path, help="the .gguf file to write, in float32")
    args = parser.parse_args()
    write(args.source, args.out, lambda line: None)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

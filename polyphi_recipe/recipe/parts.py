"""Parts of a recipe file: a language model, a vision tower or an audio encoder that exists already and stands for the
result of the stages that would train it (`stages.lineage.REPLACED`).

>>> part = open_part("vision", "google/siglip-so400m-patch14-384", Path("."), sizes.FULL.model)
>>> part.config.hidden_size
1152

    decoder   Phi-4-mini, another model of its architecture, in the layout of Microsoft or transformers, or one of the
              Llama family, also as a GGUF file; where its vocabulary uses all rows of the embedding, it gets further
              ones for placeholders
    vision    SigLIP, or SigLIP 2 of a fixed resolution, as transformers stores them; or the tower of a Phi-4-multimodal
    audio     the encoder of a Phi-4-multimodal

Only config.json and the headers of tensors are read here; tensors are mapped into memory when a stage starts from them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from polyphi.checkpoints import gguf
from polyphi.checkpoints.files import SIGLIP_TYPES, check_headers, read_json, weight_files
from polyphi.checkpoints.headers import read_config, read_quantization
from polyphi.checkpoints.read import load_checkpoint
from polyphi.hub import cache, model_card
from polyphi.hub.location import locate
from polyphi.model.config import AudioConfig, DecoderConfig, ModelConfig, VisionConfig
from polyphi.model.siglip import SiglipEncoder
from polyphi.processing.published_vocabulary import with_placeholders
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import aligned
from polyphi.quantization.quantize import EMBEDDING, UNTIED_HEAD
from polyphi.runtime.files import sha256
from polyphi.text.quantity import quantity

SIGLIP_NAMES = {"embeddings.": "", "encoder.layers.": "layers."}
"""Prefix of a tensor in transformers -> ours."""
POSITIONS = "vision.encoder.position_embedding.weight"
NEW_ROWS = 8
"""Further rows of an embedding without unused ones: for images, audio, and a user's modalities."""


@dataclass(frozen=True)
class ModelPart(Mapping[str, Tensor]):
    """A part of a recipe file: tensors by our names ("decoder.norm.weight"), each with its stored dtype, as `read`
    returns them. `source` is as the recipe file names it, `files` have the weights, `tokenizer` reads the language
    model's, `hub_name` is the repository and revision of a checkpoint of the Hub, `licence` what the checkpoint states,
    such as "apache-2.0"."""

    name: str
    source: str
    config: DecoderConfig | VisionConfig | AudioConfig
    read: Callable[[], Mapping[str, Tensor]]
    files: tuple[Path, ...] = ()
    tokenizer: Callable[[], Tokenizer] | None = None
    hub_name: tuple[str, str] | None = None
    licence: str = ""

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, mapped into memory; interpolated positions are computed."""
        prefix = "decoder." if self.name == "decoder" else f"{self.name}.encoder."
        tensors = {
            name: tensor
            for name, tensor in self.read().items()
            if name.startswith(prefix) and not _is_adapter(name)
        }
        if isinstance(self.config, DecoderConfig):
            for name in tensors.keys() & {EMBEDDING, UNTIED_HEAD}:
                tensors[name] = _with_rows(tensors[name], self.config.vocab_size)
        return tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __hash__(self) -> int:
        return hash((self.name, self.source))

    def new_tokenizer(self) -> Tokenizer:
        """The tokenizer of the language model, with placeholders of images and audio."""
        assert self.tokenizer is not None and isinstance(self.config, DecoderConfig)
        return with_placeholders(self.tokenizer(), self.config.vocab_size)

    def record(self) -> dict[str, Any]:
        """Repository, revision, configuration, and the SHA-256 of each file with weights, ready for JSON."""
        repository, revision = self.hub_name or ("", "")
        return {
            "source": self.source,
            "repository": repository,
            "revision": cache.commit_of(repository, revision) if repository else "",
            "licence": self.licence,
            "files": {f"{file.parent.name}/{file.name}": sha256(file) for file in self.files},
            "config": json.loads(json.dumps(asdict(self.config))),
        }


def open_part(name: str, source: str, folder: Path, full: ModelConfig) -> ModelPart:
    """The part `name` from a checkpoint: a folder or, of a decoder, a GGUF file (paths may be relative to `folder`), or
    a hub id. `full` has the crop size of images. Raises ValueError for a checkpoint of another architecture, or with
    shapes that don't fit."""
    if name == "decoder" and source.endswith(".gguf"):
        return _gguf_part(source, folder / Path(source).expanduser())
    is_local = (folder / source).exists()
    path = locate(folder / source if is_local else source)
    hub_name = None if is_local else cache.hub_name(source)
    if scheme := read_quantization(path):
        raise ValueError(f"{source} is quantized to {scheme}; expected unquantized weights")
    licence = model_card.licence(path)
    if name == "vision" and _siglip(path):
        assert full.vision is not None
        config = siglip_config(path, full.vision)
        read = partial(siglip_tensors, path, config)
        return ModelPart(
            name, source, config, read, tuple(weight_files(path)), None, hub_name, licence
        )
    try:
        model = read_config(path)
    except ValueError as error:
        expected = {
            "decoder": "a language model of the architecture of Phi-4-mini or of the Llama family",
            "vision": f"SigLIP ({' or '.join(SIGLIP_TYPES)}) or Phi-4-multimodal",
            "audio": "Phi-4-multimodal",
        }[name]
        raise ValueError(f"expected {expected}, found {error}") from None
    if getattr(model, name) is None:
        raise ValueError(f"{source} has no {name} encoder; expected a Phi-4-multimodal")
    config = getattr(model, name)
    if name == "decoder" and (path / "tokenizer.json").is_file():
        config = replace(config, vocab_size=_rows(Tokenizer.load(path), config.vocab_size))
    return ModelPart(
        name,
        source,
        config,
        lambda: load_checkpoint(path, adapters=False).state_dict(),
        tuple(weight_files(path)),
        partial(Tokenizer.load, path) if name == "decoder" else None,
        hub_name,
        licence,
    )


def _gguf_part(source: str, file: Path) -> ModelPart:
    """The language model of a GGUF file, dequantized to bfloat16 when it is read. Raises ValueError as
    `gguf.open_model`, and for a file without a known vocabulary or a tokenizer in its folder."""
    model = gguf.open_model(file)
    tokenizer, config = model.tokenizer(), model.config.decoder
    config = replace(config, vocab_size=_rows(tokenizer, config.vocab_size))
    read = partial(model.tensors, torch.bfloat16)
    return ModelPart(
        "decoder", source, config, read, (file,), lambda: tokenizer, licence=model.licence
    )


def _rows(tokenizer: Tokenizer, rows: int) -> int:
    """Rows of an embedding of `rows` rows with unused ones for the placeholders of images and audio: more where the
    vocabulary uses all."""
    needed = {"image", "audio"} - tokenizer.placeholders.keys()
    unused = sum(1 for id in tokenizer.unused_ids(rows) if id not in tokenizer.controls.values())
    return rows if unused >= len(needed) else aligned(rows + NEW_ROWS)


def _with_rows(tensor: Float[Tensor, "V D"], rows: int) -> Float[Tensor, "rows D"]:
    """An embedding with further rows, which are the mean of its own. Inputs take their place, and as rows of a tied
    head they have the mean of all logits."""
    if len(tensor) >= rows:
        return tensor
    mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - len(tensor), -1)])


def _is_adapter(name: str) -> bool:
    """Whether a tensor belongs to an adapter."""
    return ".lora." in name


def _siglip(folder: Path) -> bool:
    return read_json(folder / "config.json").get("model_type") in SIGLIP_TYPES


def siglip_config(folder: Path, full: VisionConfig) -> VisionConfig:
    """The configuration of a SigLIP checkpoint for crops of the size in `full`. Raises ValueError for another
    activation, a tower without its pooling head, and a crop that isn't an even number of patches."""
    values = read_json(folder / "config.json")
    values = values.get("vision_config", values)
    activation = values.get("hidden_act", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise ValueError(f"expected the activation gelu_pytorch_tanh, found {activation}")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    defaults = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    sizes = {name: values.get(name, defaults.get(name, 12)) for name in names}
    config = replace(
        full,
        **sizes,
        patch_size=values.get("patch_size", 16),
        layer_norm_eps=values.get("layer_norm_eps", 1e-6),
    )
    with torch.device("meta"):
        SiglipEncoder(config)  # raises for a crop that isn't an even number of patches
    return config


def siglip_tensors(folder: Path, config: VisionConfig) -> dict[str, Tensor]:
    """The tensors of a SigLIP checkpoint by our names, with positions for the grid of `config`. Raises ValueError for
    missing tensors and other shapes."""
    with torch.device("meta"):
        shapes = {
            f"vision.encoder.{n}": t.shape for n, t in SiglipEncoder(config).state_dict().items()
        }
    tensors: dict[str, Tensor] = {}
    files = weight_files(folder)
    check_headers(files)
    for file in files:
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  (not a mapping)
                name = key.removeprefix("vision_model.")
                for theirs, ours in SIGLIP_NAMES.items():
                    if name.startswith(theirs):
                        name = ours + name.removeprefix(theirs)
                        break
                if f"vision.encoder.{name}" in shapes and not key.startswith("text_model."):
                    tensors[f"vision.encoder.{name}"] = stored.get_tensor(key)
    if missing := sorted(set(shapes) - set(tensors)):
        raise ValueError(
            f"{folder} lacks {quantity(len(missing), 'tensor')} of SigLIP, such as "
            f"{missing[0].removeprefix('vision.encoder.')}"
        )
    tensors[POSITIONS] = interpolated_positions(tensors[POSITIONS], config.grid)
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{folder}: expected {name} of shape {list(shape)}, found {list(tensors[name].shape)}"
            )
    return tensors


def interpolated_positions(table: Float[Tensor, "Q D"], grid: int) -> Float[Tensor, "P D"]:
    """The learned positions of a square of patches for one of `grid` x `grid`, interpolated bicubically as transformers
    does it (`interpolate_pos_encoding=True`); the same table where nothing changes."""
    side = round(len(table) ** 0.5)
    if side * side != len(table):
        raise ValueError(f"expected positions of a square of patches, found {len(table)}")
    if side == grid:
        return table
    square = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype).contiguous()

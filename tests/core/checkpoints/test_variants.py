"""Fine-tunes in Microsoft's layout as people publish them: they answer as the model that was saved, each difference is
named in one line, and what would need a guess is refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import polyphi
from polyphi.api import Phi
from polyphi.checkpoints.read import load_checkpoint
from polyphi.processing.tokenizer import Tokenizer
from tests.fixtures.published import write

IDS = list(range(7, 30))
Tensors = dict[str, Tensor]
AUDIO, IMAGE = "model.embed_tokens_extend.audio_embed.", "model.embed_tokens_extend.image_embed."


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in Microsoft's layout; its config.json has no entries of ours."""
    folder = write(tmp_path_factory.mktemp("published") / "model", dtype=torch.float32)
    (folder / "preprocessor_config.json").write_text(json.dumps({"dynamic_hd": 4}))
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "fine-tune"
    copy.mkdir()
    for file in published.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def change(folder: Path, tensors: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    changed = tensors(load_file(file))
    save_file({name: t.clone().contiguous() for name, t in changed.items()}, file)


def configure(folder: Path, **entries: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def load(folder: Path, caplog: pytest.LogCaptureFixture, notes: int, **options: Any) -> Phi:
    """The model, whose loading logged so many lines."""
    with caplog.at_level(logging.WARNING, "polyphi"):
        phi = polyphi.load(folder, dtype="float32", device="cpu", **options)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == notes and all("\n" not in line for line in lines), lines
    return phi


def logits(phi: Phi, adapter: str | None) -> Tensor:
    return phi.logits(IDS, adapter=adapter)[1]


def test_the_published_layout_is_not_unusual(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(folder, caplog, notes=0)


def test_only_the_speech_adapter_was_trained(
    published: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With other auto_map and _name_or_path entries, whose code is never run."""
    change(
        folder,
        lambda tensors: {n: t * 1.5 if ".speech." in n else t for n, t in tensors.items()},
    )
    configure(
        folder,
        _name_or_path="/data/phi4mm",
        auto_map={"AutoModelForCausalLM": "someone/else--modeling_phi4mm.Phi4MMForCausalLM"},
    )
    phi, before = load(folder, caplog, notes=0), polyphi.load(published, dtype="float32")
    for adapter in (None, "vision"):
        assert torch.equal(logits(phi, adapter), logits(before, adapter))
    assert not torch.equal(logits(phi, "speech"), logits(before, "speech"))


@pytest.mark.parametrize(("tower", "adapter"), [(AUDIO, "speech"), (IMAGE, "vision")])
def test_an_encoder_and_its_adapter_were_deleted(
    published: Path, folder: Path, caplog: pytest.LogCaptureFixture, tower: str, adapter: str
) -> None:
    """As Microsoft's sample for images does, which leaves both in config.json."""
    change(
        folder,
        lambda tensors: {
            n: t for n, t in tensors.items() if tower not in n and f".{adapter}.weight" not in n
        },
    )
    phi, before = load(folder, caplog, notes=2), polyphi.load(published, dtype="float32")
    other = "vision" if adapter == "speech" else "speech"
    assert list(phi.config.adapters) == [other]
    assert (phi.config.audio is None, phi.config.vision is None) == (
        tower == AUDIO,
        tower == IMAGE,
    )
    for name in (None, other):
        assert torch.equal(logits(phi, name), logits(before, name))


@pytest.mark.parametrize("renamed", [True, False])
def test_adapters_were_merged(
    published: Path, folder: Path, caplog: pytest.LogCaptureFixture, renamed: bool
) -> None:
    def merged(tensors: Tensors) -> Tensors:
        base = {n: t for n, t in tensors.items() if ".lora_" not in n}
        return {n.replace(".base_layer", "") if renamed else n: t for n, t in base.items()}

    change(folder, merged)
    phi = load(folder, caplog, notes=2 if renamed else 3)
    assert not phi.config.adapters
    before = polyphi.load(published, dtype="float32")
    assert torch.equal(logits(phi, None), logits(before, None))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_a_wrapped_model_and_computed_buffers(
    published: Path, folder: Path, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    def wrapped(tensors: Tensors) -> Tensors:
        tensors["model.rotary_emb.inv_freq"] = torch.ones(3)
        return {prefix + n: t for n, t in tensors.items()}

    change(folder, wrapped)
    phi = load(folder, caplog, notes=1 + prefix.count("."))
    before = polyphi.load(published, dtype="float32")
    assert torch.equal(logits(phi, "speech"), logits(before, "speech"))


@pytest.mark.parametrize("quant", [None, "int8"])
def test_additional_tokens(
    folder: Path, caplog: pytest.LogCaptureFixture, quant: str | None
) -> None:
    """The embedding then has as many rows as the tokenizer has ids, which is no multiple of 64."""
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text())
    last = max(token["id"] for token in spec["added_tokens"])
    last = max(last, *spec["model"]["vocab"].values())
    template = spec["added_tokens"][0]
    spec["added_tokens"] += [
        {**template, "id": last + 1 + number, "content": name, "special": False}
        for number, name in enumerate(("<laugh>", "<noise>"))
    ]
    file.write_text(json.dumps(spec))
    rows = last + 3
    embedding = "model.embed_tokens.weight"

    def resized(tensors: Tensors) -> Tensors:
        old = tensors[embedding]
        new = torch.randn(rows, old.shape[1], generator=torch.Generator().manual_seed(0))
        new[: min(rows, len(old))] = old[:rows]
        return {**tensors, embedding: new}

    change(folder, resized)
    (folder / "preprocessor_config.json").unlink()
    phi = load(folder, caplog, notes=2, quant=quant)  # vocab_size, tokens
    assert phi.config.decoder.vocab_size == rows == phi.tokenizer.vocab_size
    assert logits(phi, "speech").shape == (len(IDS), rows)
    laugh = phi.tokenizer.controls["<laugh>"]
    assert phi.tokenizer.decode([laugh]) == "<laugh>"
    assert laugh not in phi.tokenizer.encode("<laugh>")
    sampling = polyphi.SamplingParams(max_tokens=2, logit_bias=((laugh, 100.0),))
    assert phi.generate(IDS, sampling=sampling).text == "<laugh>" * 2
    with pytest.raises(ValueError, match=str(rows - 1)):
        Tokenizer.load(folder).within(rows - 1)


def test_missing_files_of_the_processor(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The published number of crops is used; a missing tokenizer has to be named."""
    for name in ("preprocessor_config.json", "generation_config.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    raw = json.loads((folder / "config.json").read_text())
    vision = raw["polyphi"]["vision"]
    own = {"polyphi": {"audio": raw["polyphi"]["audio"], "vision": {**vision, "max_crops": None}}}
    configure(folder, **own)
    phi = load(folder, caplog, notes=0)
    assert phi.config.vision is not None and phi.config.vision.max_crops == 36
    (folder / "tokenizer.json").rename(folder.parent / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        polyphi.load(folder)
    load(folder, caplog, notes=0, tokenizer=folder.parent / "tokenizer.json")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda t: {n: x for n, x in t.items() if "lora_A.speech" in n}, "embed_tokens"),
        (lambda t: {n: x for n, x in t.items() if "lora_B.speech" not in n}, "missing"),
        (lambda t: {n: x for n, x in t.items() if f"{IMAGE}img_projection" not in n}, "missing"),
        (
            lambda t: t | {n.replace("speech", "default"): x for n, x in t.items()},
            "adapter 'default'",
        ),
        (
            lambda t: {n.replace("base_layer", "base_layer.base_layer"): x for n, x in t.items()},
            "merge_and_unload",
        ),
        (lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1}, "lm_head"),
        (lambda t: {n: x[:2] if "lora_A.speech" in n else x for n, x in t.items()}, "mis-shaped"),
    ],
)
def test_what_would_need_a_guess_is_refused(
    folder: Path, changed: Callable[[Tensors], Tensors], message: str
) -> None:
    change(folder, changed)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)

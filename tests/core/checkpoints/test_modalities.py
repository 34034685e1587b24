"""The folder of a user's modality: added to any copy of its decoder, removed again, without code."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import polyphi
from polyphi.checkpoints.headers import files_beside
from polyphi.checkpoints.modalities import SUFFIX, folders
from polyphi.checkpoints.parts import parts
from polyphi.checkpoints.processor import make_processor
from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.engines import fitted
from tests.fixtures.items import FILE, add_motion, csv, motion, series

EIGHT = SamplingParams(max_tokens=8)
QUESTION = [Message.user(series(30), "What is it?")]
FOLDER = f"motion{SUFFIX}"


@pytest.fixture
def with_motion(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> PhiModel:
    """A model with the modality, in tmp_path/plain without it, in tmp_path/model with it."""
    model = PhiModel(fitted(tiny_config, tokenizer))
    model.initialise(seed=1)
    tokenizer.save(tmp_path / "tokenizer")
    files = list((tmp_path / "tokenizer").iterdir())
    save_checkpoint(model, tmp_path / "plain", files=files)
    add_motion(model, make_processor(model.config, tokenizer))
    save_checkpoint(model, tmp_path / "model", files=files)
    return model


def answer(folder: Path, modality: Path | str = FILE, **options: str) -> polyphi.Completion:
    phi = polyphi.load(folder, device="cpu", modalities=[modality], **options)
    return phi.generate(QUESTION, sampling=EIGHT)


def test_every_tensor_comes_back(with_motion: PhiModel, tmp_path: Path) -> None:
    loaded = polyphi.load(tmp_path / "model", device="cpu", modalities=[FILE])
    state = loaded.model.state_dict()
    assert state.keys() == with_motion.state_dict().keys()
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in with_motion.state_dict().items()
    )
    assert loaded.config == with_motion.config


def test_the_folder_alone_makes_the_difference(with_motion: PhiModel, tmp_path: Path) -> None:
    plain, model = tmp_path / "plain", tmp_path / "model"
    others = [p for p in model.rglob("*") if p.is_file() and p.parent.name != FOLDER]
    for path in (p for p in others if p.name != ".polyphi.json"):
        assert path.read_bytes() == (plain / path.relative_to(model)).read_bytes()
    assert not any(p.suffix == ".py" for p in model.rglob("*"))
    expected = answer(model)
    assert answer(plain, f"{FILE}={model / FOLDER}") == expected
    shutil.copytree(model / FOLDER, plain / FOLDER)
    assert answer(plain) == expected and list(folders(plain)) == ["motion"]
    without = polyphi.load(plain, device="cpu")
    with pytest.raises(ValueError, match=r"motion.*--modality"):
        without.generate(QUESTION)
    assert without.generate([Message.user("fox")], sampling=EIGHT).tokens


@pytest.mark.parametrize("layout", ["native", "original", "mini"])
def test_every_layout(with_motion: PhiModel, tmp_path: Path, layout: str) -> None:
    files = files_beside(tmp_path / "plain", layout)
    save_checkpoint(with_motion, tmp_path / layout, layout, files=files)
    assert answer(tmp_path / layout) == answer(tmp_path / "model")


def test_a_quantized_copy(with_motion: PhiModel, tmp_path: Path, run_command) -> None:
    """Without the file that defines it: the folder is copied as it is."""
    code, _, error = run_command(
        "export", f"{tmp_path / 'model'}", "--out", f"{tmp_path / 'q8'}", "--quant", "int8"
    )
    assert code == 0, error
    for name in ("model.safetensors", "adapter_model.safetensors", "modality.json"):
        same = (tmp_path / which / FOLDER / name for which in ("q8", "model"))
        assert len({path.read_bytes() for path in same}) == 1
    stored = polyphi.load(tmp_path / "q8", device="cpu", modalities=[FILE])
    stored.generate(QUESTION, sampling=EIGHT)
    quantized = ("--quant", "int8", "--modality", f"{FILE}")
    code, _, error = run_command(
        "export", f"{tmp_path / 'model'}", "--out", f"{tmp_path / 'q8'}", *quantized
    )
    assert code == 0 and (tmp_path / "q8" / "accuracy.json").is_file(), error
    code, _, error = run_command(
        "export", f"{tmp_path / 'model'}", "--out", f"{tmp_path / 'm'}", "--merge", "vision"
    )
    assert code and "--modality FILE" in error
    merged = ("--merge", "vision", "--modality", f"{FILE}", "--dtype", "float32")
    code, _, error = run_command(
        "export", f"{tmp_path / 'model'}", "--out", f"{tmp_path / 'm'}", *merged
    )
    assert code == 0, error
    one, two = (
        polyphi.load(tmp_path / name, device="cpu", modalities=[FILE]).logits(QUESTION)[1]
        for name in ("model", "m")
    )
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)


def test_buffers_that_are_not_stored_come_from_the_file(
    with_motion: PhiModel, tmp_path: Path
) -> None:
    """As those of tables that a constructor computes."""
    plain = motion().encoder

    class Unstored(plain):  # type: ignore[misc, valid-type]
        def __init__(self, config) -> None:
            super().__init__(config)
            self.register_buffer("frequencies", self.frequencies, persistent=False)

    folder = tmp_path / "model" / FOLDER
    expected = answer(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.frequencies"]
    save_file(tensors, folder / "model.safetensors")
    assert answer(tmp_path / "model", motion(encoder=Unstored)) == expected


def test_parts_name_it(with_motion: PhiModel, tmp_path: Path, run_command) -> None:
    names = {part.name: part.parameters for part in parts(with_motion.config)}
    assert names["motion adapter"] and names["motion encoder and projector"]
    code, out, _ = run_command("inspect", f"{tmp_path / 'model'}", "--modality", f"{FILE}")
    assert code == 0 and f"{names['motion encoder and projector']:,}" in out


def test_another_decoder_is_refused(with_motion: PhiModel, tmp_path: Path) -> None:
    with torch.no_grad():
        with_motion.decoder.norm.weight.mul_(1.1)
    save_checkpoint(
        with_motion, tmp_path / "other", files=files_beside(tmp_path / "plain", "native")
    )
    with pytest.raises(ValueError, match="another decoder"):
        answer(tmp_path / "other", f"{FILE}={tmp_path / 'model' / FOLDER}")


def test_damaged_folders_are_refused(with_motion: PhiModel, tmp_path: Path) -> None:
    folder = tmp_path / "model" / FOLDER
    values = json.loads((folder / "modality.json").read_text())
    for changes, says in (
        ({"name": "steps"}, "expected the modality motion, found 'steps'"),
        ({"placeholder": {"id": 10**9}}, "expected the placeholder's id from 0 to"),
        ({"placeholder": {}}, "expected the placeholder's id from 0 to"),
        ({"config": {"depth": 3}}, "the size 'depth', which MotionConfig of motion doesn't have"),
        ({"config": {"width": 40}}, r"expected \[20\], found \[48\]"),
        ({"decoder": [1.0]}, "another decoder"),
    ):
        (folder / "modality.json").write_text(json.dumps({**values, **changes}))
        with pytest.raises(ValueError, match=says):
            answer(tmp_path / "model")
    (folder / "modality.json").write_text(json.dumps(values))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        answer(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(whole)
    tensors = load_file(folder / "model.safetensors")
    (first, *_) = tensors
    save_file({n: t for n, t in tensors.items() if n != first}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="found none"):
        answer(tmp_path / "model")
    with pytest.raises(ValueError, match=r"motion-modality"):
        answer(tmp_path / "plain")
    assert csv() and motion().name == "motion"

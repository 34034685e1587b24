"""Parts: shapes and tensors of other checkpoints, positions as transformers interpolates them, lineage."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from polyphi import cli, load
from polyphi.checkpoints.gguf_export import write_gguf
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.hub.model_card import part_origins
from polyphi.model.config import DecoderConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.model.siglip import SiglipEncoder
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.files import sha256
from polyphi.train.checkpoint import MANIFEST, TRAINED
from polyphi_recipe.graph import find
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.graph.identity import check_parts
from polyphi_recipe.recipe.parts import interpolated_positions, open_part
from polyphi_recipe.stages import sizes
from tests.fixtures import fake_hub

MICRO = sizes.MICRO.model


def siglip(folder: Path, wrapped: bool = True, **changes: int) -> torch.nn.Module:
    """A tiny SigLIP that transformers wrote; returns its vision tower."""
    transformers = pytest.importorskip("transformers")
    sizes_ = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2)
    vision = sizes_ | {"image_size": 28, "patch_size": 14} | changes
    torch.manual_seed(0)
    if not wrapped:
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision))
        model.save_pretrained(folder)
        return model.eval()
    text = sizes_ | {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config=vision)
    )
    model.save_pretrained(folder)
    return model.vision_model.eval()


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("patch", [14, 7])
def test_features_are_those_of_transformers(wrapped: bool, patch: int, tmp_path: Path) -> None:
    """With interpolated positions; float32, relative 1e-5 (measured: 2e-7)."""
    theirs = siglip(tmp_path, wrapped, patch_size=patch)
    part = open_part("vision", str(tmp_path), tmp_path, MICRO)
    tower = SiglipEncoder(part.config).eval()  # type: ignore[arg-type]
    tower.load_state_dict({n.removeprefix("vision.encoder."): t for n, t in part.items()})
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    grid = 56 // patch
    masks = torch.ones(2, grid, grid, dtype=torch.bool)
    with torch.inference_mode():
        expected = theirs(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        features, pooled = tower(pixels, masks), tower.pooled(pixels, masks)
    difference = (features - expected.hidden_states[-2]).abs().max()
    assert difference <= 1e-5 * expected.hidden_states[-2].abs().max()
    assert torch.allclose(pooled, expected.pooler_output, rtol=1e-4, atol=1e-5)


def test_positions_of_the_same_grid_stay() -> None:
    table = torch.randn(16, 8)
    assert interpolated_positions(table, 4) is table
    with pytest.raises(ValueError, match="found 15"):
        interpolated_positions(table[:15], 4)


def test_other_towers_are_refused(tmp_path: Path) -> None:
    siglip(tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    config["vision_config"]["patch_size"] = 16
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="patches of 16"):  # 56 / 16
        open_part("vision", "a", tmp_path, MICRO)
    config["vision_config"] |= {"patch_size": 14, "hidden_act": "relu"}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="found relu"):
        open_part("vision", "a", tmp_path, MICRO)
    config["vision_config"] |= {"hidden_act": "gelu_pytorch_tanh", "num_hidden_layers": 4}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks 16 tensors"):
        dict(open_part("vision", "a", tmp_path, MICRO))
    tensors = load_file(tmp_path / "a/model.safetensors")
    name = "vision_model.post_layernorm.bias"
    save_file({**tensors, name: torch.zeros(5)}, tmp_path / "a/model.safetensors")
    config["vision_config"]["num_hidden_layers"] = 3
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"shape \[32\], found \[5\]"):
        dict(open_part("vision", "a", tmp_path, MICRO))
    with pytest.raises(ValueError, match="language model of the architecture"):
        open_part("decoder", "a", tmp_path, MICRO)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model in the layout of Phi-4-mini, whose tokenizer has no placeholders, in bfloat16."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = Tokenizer.train(["one two three"] * 4, 512)
    tokenizer.save(folder / "tokenizer")
    path = folder / "tokenizer/tokenizer.json"
    spec = json.loads(path.read_text())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if "endoftext1" not in t["content"]]
    spec["model"]["vocab"] = {
        t: i for t, i in spec["model"]["vocab"].items() if "endoftext1" not in t
    }
    path.write_text(json.dumps(spec))
    end = tokenizer.control("<|endoftext|>")
    config = replace(
        MICRO.decoder,
        num_hidden_layers=3,
        vocab_size=tokenizer.vocab_size + 64,
        bos_token_id=end,
        pad_token_id=end,
        eos_token_ids=tuple(tokenizer.eos_ids),
    )
    model = PhiModel(ModelConfig(config, None, None, {}))
    model.initialise(3)
    save_checkpoint(
        model.bfloat16(), folder / "phi", "mini", files=sorted((folder / "tokenizer").iterdir())
    )
    return folder / "phi"


def test_a_decoder_brings_its_shapes_and_its_tokenizer(decoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(f'size = "micro"\n[parts]\ndecoder = "{decoder}"\n')
    lab = find.of(file)
    assert lab.size.model.decoder.num_hidden_layers == 3
    assert not {"text_1_pretrain", "text_4_align"} & set(lab.order)
    tokenizer = lab.parts["decoder"].new_tokenizer()
    assert None not in (tokenizer.image_id, tokenizer.audio_id)
    original = Tokenizer.load(decoder)
    assert original.image_id is None and original.encode("one two") == tokenizer.encode("one two")
    assert max(tokenizer.image_id or 0, tokenizer.audio_id or 0) < lab.size.model.decoder.vocab_size


def test_a_full_embedding_gets_rows_for_placeholders(decoder: Path, tmp_path: Path) -> None:
    """New rows are the mean of the others, which keep their bits."""
    tokenizer = Tokenizer.train(["one two three"] * 4, 512)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext1", "<|unknown"))
    used = 1 + max(
        [*tokenizer.controls.values(), *tokenizer.specification["model"]["vocab"].values()]
    )
    model = load_checkpoint(decoder)
    config = replace(model.config.decoder, vocab_size=used)
    full = PhiModel(ModelConfig(config, None, None, {}))
    state = model.state_dict()
    table = state["decoder.embed_tokens.weight"] = state["decoder.embed_tokens.weight"][:used]
    full.load_state_dict(state)
    files = [path, tmp_path / "tokenizer_config.json"]
    save_checkpoint(full.bfloat16(), tmp_path / "full", "mini", files=files)
    part = open_part("decoder", "full", tmp_path, MICRO)
    rows = part["decoder.embed_tokens.weight"]
    assert isinstance(part.config, DecoderConfig) and part.config.vocab_size == len(rows) > used
    assert torch.equal(rows[:used], table)
    torch.testing.assert_close(rows[used].float(), table.float().mean(0), atol=1e-3, rtol=0)
    extended = part.new_tokenizer()
    assert used <= min(extended.image_id or 0, extended.audio_id or 0)


def test_a_gguf_is_the_same_part_as_the_model_it_was_written_from(
    decoder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "phi.gguf"
    write_gguf(load_checkpoint(decoder), file, decoder, name="phi", dtype=torch.bfloat16)
    source, part = (open_part("decoder", str(path), tmp_path, MICRO) for path in (decoder, file))
    assert part.record()["files"] == {f"{tmp_path.name}/phi.gguf": sha256(file)}
    assert part.keys() == source.keys()
    assert all(torch.equal(part[name], tensor) for name, tensor in source.items())
    assert isinstance(part.config, DecoderConfig) and isinstance(source.config, DecoderConfig)
    assert part.config.eos_token_ids == source.config.eos_token_ids
    assert part.config.vocab_size == source.config.vocab_size
    ids = [p.new_tokenizer().encode("one two three") for p in (source, part)]
    assert ids[0] == ids[1]
    with pytest.raises(ValueError, match="No such file"):
        open_part("decoder", "another.gguf", tmp_path, MICRO)


def test_tensors_of_a_part_keep_their_bits_and_dtype(decoder: Path, tmp_path: Path) -> None:
    siglip(tmp_path / "siglip")
    file = tmp_path / "lab.toml"
    file.write_text(f'size = "micro"\n[parts]\ndecoder = "{decoder}"\nvision = "siglip"\n')
    lab = find.of(file)
    stage = lab.stages["vision_1_align"]
    tokenizer = lab.parts["decoder"].new_tokenizer()
    config = lab.lineage.configuration(stage, lab.size.model, tokenizer)
    model, origins = lab.lineage.assemble(stage, config, tmp_path, 0)
    stored = load_file(decoder / "model.safetensors")
    name = "decoder.layers.1.mlp.down_proj.weight"
    tensor = dict(model.named_parameters())[name]
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor, stored[name.replace("decoder.", "model.")])
    assert origins[name] == "decoder" and origins["vision.projector.up.weight"] == "fresh"
    assert origins["vision.encoder.post_layernorm.bias"] == "vision"
    with torch.no_grad():
        tensor.zero_()  # a model of its own
    assert lab.parts["decoder"][name].any()


def with_parts(decoder: Path, folder: Path) -> Run:
    """A run on a decoder in bfloat16 and a SigLIP in float32."""
    siglip(folder / "siglip")
    file = folder / "lab.toml"
    file.write_text(f'size = "micro"\n[parts]\ndecoder = "{decoder}"\nvision = "siglip"\n')
    return Run(file, folder / "run", console=Console(quiet=True))


def finish_stage(run: Run, name: str) -> dict[str, torch.Tensor]:
    """A stage's folder as training leaves it; returns its trained tensors, in float32."""
    stage = run.recipe.lineage.stage(name)
    config = run.recipe.lineage.configuration(stage, run.recipe.size.model, run.processor.tokenizer)
    model, _ = run.recipe.lineage.assemble(stage, config, run.folder.stages, 0)
    parameters = dict(model.named_parameters())
    trained = {n: parameters[n].detach().float() + 1 for n in stage.trained(parameters)}
    (run.folder.stages / name).mkdir(parents=True)
    save_file(trained, run.folder.stages / name / TRAINED)
    (run.folder.stages / name / MANIFEST).write_text('{"steps": 1}')
    check_parts(run.folder.path, run.recipe)
    return trained


def test_a_model_is_exported_in_the_dtype_of_its_decoder(decoder: Path, tmp_path: Path) -> None:
    """Whatever the dtypes of other parts and of trained tensors, so that it computes; the decoder keeps its bits. It
    is exported and described as far as it is trained, and anew when it has more stages."""
    run = with_parts(decoder, tmp_path)
    with pytest.raises(ValueError, match="found none"):
        run.finish()
    finish_stage(run, "vision_1_align")
    run.finish()
    tensors = load_checkpoint(run.folder.path / "model").state_dict()
    stored = load_checkpoint(decoder).state_dict()
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert all(torch.equal(t, tensors[n]) for n, t in stored.items())
    image = Image.new("RGB", (64, 64))
    for phi in (load(run.folder.path), run.models.phi("vision_1_align")):
        phi.generate("one", images=[image], max_tokens=1)
    trained = finish_stage(run, "vision_2_joint")
    cli.main(["reproduce", str(tmp_path / "lab.toml"), "--out", str(run.folder.path), "--finish"])
    summary = json.loads((run.folder.path / "report.json").read_text())["summary"]
    assert summary["stages_done"] == 2 < summary["stages"]
    tensors = load_checkpoint(run.folder.path / "model").state_dict()
    assert all(torch.equal(t.bfloat16(), tensors[n]) for n, t in trained.items())


def test_the_record_of_a_part_has_the_hash_of_its_files(decoder: Path, tmp_path: Path) -> None:
    part = open_part("decoder", str(decoder), tmp_path, MICRO)
    record = part.record()
    assert record["repository"] == record["licence"] == "" and set(record["files"]) == {
        "phi/model.safetensors"
    }
    assert record["config"]["num_hidden_layers"] == 3


def test_the_licence_of_a_part_stands_beside_its_origin(decoder: Path, tmp_path: Path) -> None:
    folder = copytree(decoder, tmp_path / "phi")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: x\n")
    record = open_part("decoder", "phi", tmp_path, MICRO).record()
    assert part_origins({"decoder": record}) == {
        "decoder": "a checkpoint named phi, licence apache-2.0"
    }


def test_parts_of_the_hub_name_their_revision(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    siglip(tmp_path / "siglip")
    with fake_hub.clean_hub(monkeypatch, tmp_path) as server:
        server.add("lab/phi", decoder)
        server.add("lab/siglip", tmp_path / "siglip")
        for name, repository in (("decoder", "lab/phi"), ("vision", "lab/siglip")):
            record = open_part(name, repository, tmp_path, MICRO).record()
            assert record["repository"] == repository
            folder = decoder if name == "decoder" else tmp_path / "siglip"
            assert record["revision"] == fake_hub.commit(fake_hub.folder_files(folder))
            (digest,) = record["files"].values()
            assert digest == sha256(folder / "model.safetensors")


@pytest.mark.long
def test_a_stage_of_another_run_is_a_part(tmp_path: Path) -> None:
    run = Run("micro", tmp_path / "run", console=Console(quiet=True))
    run.train("speech_1_pretrain")
    file = tmp_path / "lab.toml"
    file.write_text(
        'size = "micro"\n[parts]\ndecoder = "run/stages/text_4_align"\naudio = "run/stages/speech_1_pretrain"\n'
    )
    lab = find.of(file)
    assert {"text_4_align", "speech_0_aed"}.isdisjoint(lab.order)
    trained = load_file(run.folder.stages / "speech_1_pretrain/trained.safetensors")
    for name in (n for n in trained if n.startswith("audio.encoder.")):
        assert torch.equal(lab.parts["audio"][name], trained[name])
    assert not [name for name in lab.parts["decoder"] if ".lora." in name]
    assert "speech_1_pretrain/trained.safetensors" in lab.parts["audio"].record()["files"]
    assert lab.parts["decoder"].new_tokenizer().encode("one") == run.processor.tokenizer.encode(
        "one"
    )

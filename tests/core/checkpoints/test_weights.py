"""Reading and writing checkpoints: every invalid one raises one clear error; writing is atomic."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyphi.checkpoints import config as public_config
from polyphi.checkpoints import write
from polyphi.checkpoints.headers import files_beside, read_config
from polyphi.checkpoints.names import _PATTERNS, RENAMES
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.hub.location import locate
from polyphi.model.adapters import add_adapter
from polyphi.model.config import AdapterConfig, ModelConfig
from polyphi.model.multimodal import PhiModel
from tests.fixtures import forked
from tests.fixtures.command_line import Refused
from tests.fixtures.variants import few


@pytest.fixture
def folder(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    model = PhiModel(tiny_config)
    model.initialise(seed=0)
    save_checkpoint(model, tmp_path / "model", "original")
    return tmp_path / "model"


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    config_json = json.loads(path.read_text())
    change(config_json)
    path.write_text(json.dumps(config_json))


def edit_tensors(path: Path, change: Callable[[dict], object]) -> None:
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def test_missing_unexpected_and_misshaped_tensors_are_all_named(folder: Path) -> None:
    def spoil(tensors: dict) -> None:
        del tensors["model.norm.weight"]
        tensors["model.extra.weight"] = torch.zeros(1)
        tensors["model.layers.1.input_layernorm.weight"] = torch.ones(95)

    edit_tensors(folder / "model.safetensors", spoil)
    with pytest.raises(ValueError) as error:
        load_checkpoint(folder)
    text = str(error.value)
    assert "1 missing: model.norm.weight" in text
    assert "1 unexpected: model.extra.weight" in text
    assert "1 mis-shaped: model.layers.1.input_layernorm.weight expected [96] found [95]" in text


def test_long_lists_are_cut_with_a_count(folder: Path) -> None:
    edit_tensors(
        folder / "model.safetensors",
        lambda t: [t.pop(n) for n in list(t) if "encoder.encoders.1." in n],
    )
    with pytest.raises(ValueError, match=r"missing: .* \.\.\. and \d+ more") as error:
        load_checkpoint(folder)
    assert len(str(error.value)) < 4000


def configured(**entries: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(entries))


def written_as(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut_to(size: int) -> Callable[[Path], object]:
    """The weights without their end, or without all but `size` bytes."""
    return lambda folder: os.truncate(
        file := folder / "model.safetensors", size if size >= 0 else file.stat().st_size + size
    )


SHORT = {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}
UNREADABLE: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "config.json").unlink(), r"config\.json"),
    *((written_as("config.json", text), r"config\.json") for text in ("{", "[]", "\x00")),
    (configured(model_type="mixtral"), "'mixtral'.*experts"),
    (configured(rope_scaling={"type": "yarn"}), "'yarn'"),
    (configured(rope_scaling=SHORT), "need 6 factors"),
    (configured(sliding_window=100), "sliding window of 100"),
    *((cut_to(size), "complete") for size in (0, 7, 100, 10_000, -1)),
    (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"pytorch_model\.bin",
    ),
]
"""What is done to a checkpoint's folder, and what the error names."""


@pytest.mark.parametrize(("spoil", "message"), UNREADABLE)
def test_an_unreadable_checkpoint_is_an_error(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing .*config\.json"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(ValueError, match="hub id"):
        locate(tmp_path / "nothing")


def test_missing_shard(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = PhiModel(tiny_config)
    model.initialise()
    save_checkpoint(model, tmp_path / "model", "original", max_shard_bytes=500_000)
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    with pytest.raises(ValueError, match=f"1 aren't here: {shards[-1].name}"):
        load_checkpoint(tmp_path / "model")


def test_unusual_adapters_are_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = PhiModel(tiny_config)
    model.initialise()
    save_checkpoint(model, tmp_path / "model", "native")
    adapter_folder = tmp_path / "model/vision-lora"
    edit_json(adapter_folder / "adapter_config.json", lambda c: c.update(use_rslora=True))
    with pytest.raises(ValueError, match="use_rslora"):
        load_checkpoint(tmp_path / "model")
    (adapter_folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="r and lora_alpha"):
        load_checkpoint(tmp_path / "model")
    shutil.rmtree(adapter_folder)
    assert load_checkpoint(tmp_path / "model").config.adapters.keys() == {"speech"}


def test_sizes_come_from_shapes_where_the_config_has_none(
    folder: Path, tiny_config: ModelConfig
) -> None:
    """The published original config.json has neither the tower's keys nor ours."""

    def silence(values: dict) -> None:
        values["polyphi"] = {"vision": {"num_attention_heads": 4}, "audio": {"audio_token_id": 11}}
        values["polyphi"]["vision"]["image_token_id"] = 10
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_key_value_heads",
        ):
            del values[key]

    edit_json(folder / "config.json", silence)
    assert read_config(folder) == tiny_config


@pytest.mark.parametrize("width", [16, 144, 576, 1152, 1536])
def test_the_original_layout_has_sixteen_vision_heads(width: int) -> None:
    """Microsoft's config.json has no number of vision heads: its code always builds 16."""
    raw_config = public_config.write(ModelConfig(), "original")
    del raw_config["polyphi"]
    tensor = "vision.encoder.patch_embedding.weight"
    shapes = {tensor: (width, 3, 14, 14)}
    sources = {"generation": {}, "preprocessor": {}, "adapters": {}, "shape": shapes.get}
    config = public_config.parse(raw_config, "original", **sources)
    assert config.vision
    assert (config.vision.hidden_size, config.vision.num_attention_heads) == (width, 16)
    with pytest.raises(ValueError, match=r"hidden_size 24 .* found 16"):
        shapes[tensor] = (24, 3, 14, 14)
        public_config.parse(raw_config, "original", **sources)
    raw_config["polyphi"] = {"vision": {"num_attention_heads": 4}}
    assert public_config.parse(raw_config, "original", **sources).vision.num_attention_heads == 4


def test_cast_and_device(folder: Path) -> None:
    model = load_checkpoint(folder, dtype=torch.bfloat16)
    assert {t.dtype for t in model.state_dict().values()} == {torch.bfloat16}
    assert not model.training


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_loaded_parameters_are_the_mapped_file_but_private(folder: Path) -> None:
    """No copy on load, and training them in place doesn't write to the checkpoint."""
    before = (folder / "model.safetensors").read_bytes()
    model = load_checkpoint(folder)
    mapped = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in line
    ]
    spans = [(int(start, 16), int(end, 16)) for start, end in mapped]
    assert all(any(start <= p.data_ptr() < end for start, end in spans) for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


def test_saving_over_the_checkpoint_one_was_loaded_from(folder: Path) -> None:
    model = load_checkpoint(folder)
    with torch.no_grad():
        model.decoder.norm.weight.fill_(3)
    save_checkpoint(model, folder, "native")
    again = load_checkpoint(folder).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_failed_save_leaves_the_old_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_checkpoint(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(model, folder, "native")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["config.json", "thesis.tex", "sub/dear.txt", "empty/", "link"])
def test_a_folder_with_files_of_others_is_not_overwritten(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """Not even with a config.json, nor where the files were added to a checkpoint of ours, or changed in it."""
    model, other = load_checkpoint(folder), tmp_path / "other"
    for saved_before in (False, True):
        if saved_before:
            save_checkpoint(model, other)
            save_checkpoint(model, other, "mini")  # what we wrote is replaced
        path = other / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "link":
            path.symlink_to(folder)
        elif name.endswith("/"):
            path.mkdir()
        else:
            path.write_text("{}")
        before = sorted(other.rglob("*"))
        with pytest.raises(ValueError, match=f"didn't write.*{name.rstrip('/')}"):
            save_checkpoint(model, other)
        assert sorted(other.rglob("*")) == before
        shutil.rmtree(other)


def test_an_equal_file_of_the_user_is_kept_and_stays_theirs(folder: Path, tmp_path: Path) -> None:
    model, out, card = load_checkpoint(folder), tmp_path / "out", tmp_path / "README.md"
    save_checkpoint(model, out)
    for path in (out / "README.md", card):
        path.write_text("my own")
    for _ in range(2):
        save_checkpoint(model, out, files=[card])
        assert (out / "README.md").read_text() == "my own"
        with pytest.raises(ValueError, match=r"README\.md"):
            save_checkpoint(model, out)


EXPORT = """
import sys, torch
from pathlib import Path
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
model = load_checkpoint(Path(sys.argv[1]))
written = next(load_checkpoint(Path(sys.argv[2])).parameters()).dtype
while True:
    written = torch.bfloat16 if written == torch.float32 else torch.float32
    save_checkpoint(model, sys.argv[2], dtype=written, max_shard_bytes=100_000)
    print(written, flush=True)
"""


def dtype_of(folder: Path) -> torch.dtype:
    (dtype,) = {tensor.dtype for tensor in load_checkpoint(folder).state_dict().values()}
    return dtype


@pytest.mark.parametrize("kills", few([3, 50], 1))
def test_a_killed_export_leaves_the_old_or_the_new_checkpoint(
    folder: Path, tmp_path: Path, kills: int
) -> None:
    out = tmp_path / "out"
    expected = load_checkpoint(folder).state_dict()
    save_checkpoint(load_checkpoint(folder), out)
    (tmp_path / "thesis.tex").write_text("1,000 lines")
    log = tmp_path / "log"
    for _ in range(2):  # the first also starts the process that they are forked from
        log.unlink(missing_ok=True)
        started = time.monotonic()
        process = forked.start(EXPORT, str(folder), str(out), out=log)
        while not log.exists() or not log.read_text():
            assert process.is_alive()
            time.sleep(0.01)
        within = 2 * (time.monotonic() - started)  # so that most are killed in or after a write
        process.kill()
        process.join()
    for _ in forked.killed(EXPORT, str(folder), str(out), times=kills, within=within):
        state, dtype = load_checkpoint(out).state_dict(), dtype_of(out)
        assert all(torch.equal(state[name], expected[name].to(dtype)) for name in expected)
        assert (tmp_path / "thesis.tex").read_text() == "1,000 lines"
    save_checkpoint(load_checkpoint(folder), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "model", "out", "thesis.tex"]


def test_an_export_does_not_rewrite_its_source(folder: Path, refused: Refused) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "model itself" in refused("export", str(folder), "--out", str(folder / "../model"))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_layout_that_can_not_hold_the_model_is_refused(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    model = PhiModel(tiny_config)
    model.initialise()
    add_adapter(model, "medical", AdapterConfig(2, 4.0))
    for layout, message in (("original", "medical"), ("tf", "'tf'")):
        with pytest.raises(ValueError, match=message):
            save_checkpoint(model, tmp_path / "no", layout)
    assert not (tmp_path / "no").exists()
    save_checkpoint(model, tmp_path / "mini", "mini")  # only the language model
    assert read_config(tmp_path / "mini").adapters == {}


def test_the_original_layout_has_what_servers_require(
    folder: Path, tiny_config: ModelConfig
) -> None:
    assert tiny_config.audio
    encoder = json.loads((folder / "config.json").read_text())["audio_processor"]["config"]
    assert encoder["encoder_embedding_config"] == {"input_size": tiny_config.audio.input_size}


def test_files_to_copy(folder: Path) -> None:
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja", "code.py"):
        (folder / name).write_text("{}")
    copied = {
        layout: {p.name for p in files_beside(folder, layout)} for layout in ("original", "native")
    }
    assert copied["native"] == {"tokenizer.json", "chat_template.jinja"}
    assert copied["original"] == copied["native"] | {"preprocessor_config.json"}


@pytest.mark.parametrize("target", ["../ssh/id_rsa", "inner/id_rsa", "first"])
def test_a_link_out_of_the_folder_is_not_copied(folder: Path, tmp_path: Path, target: str) -> None:
    """Nor through another link, or a part of the path that is one."""
    secret = tmp_path / "ssh" / "id_rsa"
    secret.parent.mkdir()
    secret.write_text("a private key")
    (folder / "first").symlink_to(secret)
    (folder / "inner").symlink_to(secret.parent)
    (folder / "tokenizer.json").symlink_to(target)
    with pytest.raises(ValueError, match=f"tokenizer.json .*{secret}"):
        files_beside(folder, "original")


def test_links_within_the_folder_and_those_of_the_hub_are_copied(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "named.json").write_text("{}")
    (folder / "tokenizer.json").symlink_to("named.json")
    repository = tmp_path / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    (repository / "blobs" / ("0a" * 20)).write_text("{}")
    (snapshot / "vocab.json").symlink_to(f"../../blobs/{'0a' * 20}")
    names = [p.name for p in files_beside(snapshot, "original")]
    assert names == ["named.json", "tokenizer.json", "vocab.json"]
    (repository / "id_rsa").write_text("a private key")
    (snapshot / "merges.txt").symlink_to("../../id_rsa")
    with pytest.raises(ValueError, match="id_rsa"):
        files_beside(snapshot, "original")
    (repository / "blobs").rename(tmp_path / "elsewhere")
    (repository / "blobs").symlink_to(tmp_path / "elsewhere")  # of a hostile archive
    (snapshot / "merges.txt").unlink()
    with pytest.raises(ValueError, match="vocab"):
        files_beside(snapshot, "original")


def test_new_files_have_the_permissions_of_the_umask_which_never_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread would otherwise open files that everybody may write."""
    model = load_checkpoint(folder)
    earlier = os.umask(0o027)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
            save_checkpoint(model, tmp_path / "copy")
    finally:
        os.umask(earlier)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    assert modes == {0o640}


def test_every_rename_is_used(tiny_config: ModelConfig) -> None:
    """A rule that no tensor needs would mislead readers of the table."""
    used = set()
    decoder = replace(tiny_config.decoder, tie_word_embeddings=False)
    for ours in PhiModel(replace(tiny_config, decoder=decoder)).state_dict():
        used.add(next(i for i, (pattern, _) in enumerate(_PATTERNS) if pattern.match(ours)))
    assert used == set(range(len(RENAMES)))

"""Downloads from a local Hub and quantized models: what is fetched, what counts as complete, what a user receives."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from polyphi.checkpoints import write
from polyphi.checkpoints.headers import read_quantization
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.hub import cache, download, pull, removal
from polyphi.hub.location import locate
from polyphi.runtime.files import sha256
from tests.fixtures import fake_hub, published
from tests.fixtures.fake_hub import Hub

LAYOUTS = {"mini": "owner/mini", "original": "owner/original", "native": "owner/native"}
MINI = LAYOUTS["mini"]
CLOSED = "http://127.0.0.1:9"
OTHERS = (("native", "int4"), ("mini", "int8-all"), ("original", "int8-all"), ("native", "int8"))
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: published.write(root / layout, layout) for layout, name in LAYOUTS.items()}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 4 MB, which no model has."""
    folder = tmp_path_factory.mktemp("big")
    (folder / "config.json").write_text('{"model_type": "phi3"}')
    for number, name in enumerate(SHARDS):
        save_file({f"t{number}": torch.randn(1_000_000)}, folder / name)
    index = {"weight_map": {f"t{number}": name for number, name in enumerate(SHARDS)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with fake_hub.clean_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def models(server: Hub, folders: dict[str, Path]) -> Hub:
    for name, folder in folders.items():
        server.add(name, folder)
    return server


def blobs(repository: str) -> list[Path]:
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    return sorted(folder.glob("*"))


# Downloads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS.values())
def test_a_hub_id_loads_as_its_folder_does(
    models: Hub, folders: dict[str, Path], name: str
) -> None:
    state, expected = (
        load_checkpoint(locate(source)).state_dict() for source in (name, folders[name])
    )
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())


def test_only_files_of_the_model_are_fetched(
    models: Hub, folders: dict[str, Path], tmp_path: Path
) -> None:
    others = [
        "pytorch_model.bin",
        "onnx/model.onnx",
        "figures/a.json",
        "sample.py",
        "docs/README.md",
    ]
    copies = ["vision-lora/adapter_model.safetensors", "vision-lora/adapter_config.json"]
    for name in (LAYOUTS["original"], LAYOUTS["native"]):
        shutil.copytree(folders[name], tmp_path / name)
        for path in ("README.md", *others, *copies):
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            if not (tmp_path / name / path).exists():
                (tmp_path / name / path).write_bytes(b"0")
        models.add(name, tmp_path / name)
        models.sent.clear()
        locate(name)
        adapters = {path for path in models.sent if path.endswith("adapter_model.safetensors")}
        assert set(models.sent) & {*others} == set()
        assert "README.md" in models.sent  # which states the licence
        assert len(adapters) == (2 if name == LAYOUTS["native"] else 0)


def test_a_stored_model_needs_no_connection(models: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull.find(MINI)
    count = len(models.requests)
    assert pull.find(MINI) == folder == locate(MINI) == locate(f"hf:{MINI}")
    assert len(models.requests) == count
    fake_hub.connect(monkeypatch, CLOSED)
    assert locate(MINI) == folder
    assert pull.pull(*split(MINI)) == folder  # asks, and uses what is there


def split(name: str) -> tuple[str, str]:
    names = cache.hub_name(name)
    assert names is not None
    return names


def test_a_revision_stays_until_the_next_pull(
    models: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    older = locate(MINI)
    files = models.repositories[MINI]["files"]
    models.repositories[MINI]["revisions"] = {"v1": files}
    models.repositories[MINI]["files"] = {**files, "extra.json": b"{}"}
    assert locate(MINI) == older
    newer = pull.pull(MINI)
    assert newer != older
    assert locate(MINI) == newer
    models.sent.clear()
    assert locate(f"{MINI}@v1") == older == locate(f"{MINI}@{older.name}")
    assert locate(f"{MINI}@{older.name[:12]}") == older
    assert not models.sent
    names = [row.name for row in cache.entries()]
    assert names == sorted(f"{MINI}@{path.name[:12]}" for path in (older, newer))
    removal.remove(f"{MINI}@{older.name[:12]}")
    assert [row.path for row in cache.entries()] == [newer]
    fake_hub.connect(monkeypatch, CLOSED)
    assert locate(MINI) == newer


def test_a_cut_connection_is_resumed(server: Hub, big: Path) -> None:
    server.add("owner/big", big)
    server.cuts = {SHARDS[0]: [1_000_000], SHARDS[1]: [3_000_000]}
    folder = locate("owner/big")
    for name in SHARDS:
        assert sha256(folder / name) == sha256(big / name)
        lost = server.sent[name] - (big / name).stat().st_size
        assert 0 <= lost < fake_hub.PIECE  # of the piece that was cut


DOWNLOAD = """
import sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
from polyphi.hub import download
try:
    print(download.locate("owner/big"))
except (OSError, ValueError) as error:
    sys.exit(str(error))
"""


def process(
    server: Hub, tmp_path: Path, cache_name: str = "cache", **options: Any
) -> "subprocess.Popen[str]":
    """Another process that downloads into the caches of this test, or with another one of ours."""
    hub = {"HF_ENDPOINT": server.address, "HF_HUB_CACHE": str(tmp_path / "hub")}
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD],
        env=os.environ | hub | {"POLYPHI_CACHE": str(tmp_path / cache_name)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def incomplete_bytes(name: str) -> int:
    """Bytes of the files that are being downloaded; one may be complete, and renamed, before its size is read."""
    total = 0
    for path in blobs(name):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if ".incomplete" in path.name else 0
    return total


def test_a_killed_download_is_resumed(server: Hub, big: Path, tmp_path: Path) -> None:
    server.add("owner/big", big)
    server.rate = 2_000_000
    killed = process(server, tmp_path)
    while incomplete_bytes("owner/big") < 1_000_000:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    parts = incomplete_bytes("owner/big")
    (row,) = cache.entries()
    assert row.fault
    assert row.bytes >= parts
    assert download.stored("owner/big") is None
    server.rate = None
    server.sent.clear()
    folder = locate("owner/big")
    assert all(sha256(folder / name) == sha256(big / name) for name in SHARDS)
    total = sum((big / name).stat().st_size for name in SHARDS)
    again = sum(server.sent[name] for name in SHARDS) - (total - parts)
    assert 0 <= again <= 4 * fake_hub.PIECE  # which were on their way to the killed process
    assert not [p for p in blobs("owner/big") if ".incomplete" in p.name]


@pytest.mark.long
def test_a_disk_that_becomes_full_ends_a_download(server: Hub, big: Path, tmp_path: Path) -> None:
    server.add("owner/big", big)
    limit = 2_000_000  # bytes of a file: the system refuses to write more, as on a full disk
    full = process(
        server,
        tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, text = full.communicate()
    assert full.returncode == 1
    assert "full" in text
    assert "Traceback" not in text
    assert cache.commit_of("owner/big", "main") is None
    server.sent.clear()
    folder = locate("owner/big")
    assert all(sha256(folder / name) == sha256(big / name) for name in SHARDS)
    assert sum(server.sent[name] for name in SHARDS) < 2 * 4_000_000 - limit + 200_000


def test_a_disk_that_is_too_small_is_reported_before_a_download(
    server: Hub, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("owner/big", big)
    usage = type(shutil.disk_usage("/"))(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"8\.0 MB, 1\.0 MB") as error:
        locate("owner/big")
    assert error.value.errno == errno.ENOSPC
    assert not [name for name in server.sent if name.endswith(".safetensors")]


def test_a_damaged_download_does_not_count(models: Hub) -> None:
    models.damaged = {"model.safetensors"}
    with pytest.raises(OSError, match=r"model.safetensors .*damaged"):
        locate(MINI)
    assert cache.commit_of(MINI, "main") is None
    models.damaged = {"preprocessor_config.json"}
    with pytest.raises(OSError, match=r"preprocessor_config.json"):
        locate(LAYOUTS["native"])
    assert cache.commit_of(LAYOUTS["native"], "main") is None
    models.damaged = set()
    folder = locate(MINI)
    assert cache.commit_of(MINI, "main") == folder.name


def test_pull_repairs_what_the_disk_damaged(models: Hub, folders: dict[str, Path]) -> None:
    folder = locate(MINI)
    file = (folder / "model.safetensors").resolve()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    models.sent.clear()
    assert pull.pull(MINI) == folder
    assert sha256(folder / "model.safetensors") == sha256(folders[MINI] / "model.safetensors")
    assert set(models.sent) == {"model.safetensors"}
    file.write_bytes(content[:1000])  # so short that every start notices
    assert load_checkpoint(locate(MINI)) is not None


def test_parallel_downloads_fetch_once(server: Hub, big: Path) -> None:
    server.add("owner/big", big)
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(locate("owner/big"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert len(set(results)) == 1
    assert all(server.sent[name] == (big / name).stat().st_size for name in SHARDS)


def test_two_caches_of_ours_over_one_of_the_hub_fetch_once(
    server: Hub, big: Path, tmp_path: Path
) -> None:
    server.add("owner/big", big)
    server.rate = 2_000_000  # so that each begins while the other one downloads
    processes = [process(server, tmp_path, name) for name in ("first", "second")]
    for each in processes:
        _, errors = each.communicate()
        assert each.returncode == 0, errors
    assert all(server.sent[name] == (big / name).stat().st_size for name in SHARDS)
    folder = download.stored("owner/big", fake_hub.commit(fake_hub.folder_files(big)))
    assert folder is not None
    assert all(sha256(folder / name) == sha256(big / name) for name in SHARDS)


def test_a_model_is_not_removed_while_a_process_with_another_cache_downloads_it(
    models: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = locate(MINI)
    with cache.lock(MINI, wait=True):
        monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path / "another"))
        with pytest.raises(ValueError, match="another process"):
            removal.remove(MINI)
    assert download.stored(MINI, folder.name) == folder


@pytest.mark.parametrize("read_only", ["hub", "cache"])
def test_a_read_only_cache_is_not_locked(
    models: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read_only: str
) -> None:
    """The other one still is."""
    folder = locate(MINI)
    shutil.rmtree(tmp_path / "cache")
    open_file, make_folder = Path.open, Path.mkdir

    def refused(method: Any) -> Any:
        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            if path.is_relative_to(tmp_path / read_only) and not path.is_file():
                raise OSError(errno.EROFS, "Read-only file system")
            return method(path, *arguments, **options)

        return call

    shutil.rmtree(tmp_path / "hub" / ".locks")
    monkeypatch.setattr(Path, "open", refused(open_file))
    monkeypatch.setattr(Path, "mkdir", refused(make_folder))
    with cache.lock(MINI, wait=False) as free, cache.lock(MINI, wait=False) as second:
        assert (free, second) == (True, False)
    assert pull.pull(MINI) == folder == locate(MINI)


def test_a_file_system_without_links_has_the_files_themselves(
    models: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    folder = locate(LAYOUTS["native"])
    source = folders[LAYOUTS["native"]]
    assert all(
        sha256(folder / name) == sha256(source / name) for name in fake_hub.folder_files(source)
    )
    models.sent.clear()
    assert pull.pull(LAYOUTS["native"]) == folder
    assert not models.sent


def test_progress_of_a_download(server: Hub, big: Path) -> None:
    server.add("owner/big", big)
    shares: list[float | None] = []
    download.locate("owner/big", progress=lambda stage, share: shares.append(share))
    known = [share for share in shares if share is not None]
    assert known == sorted(known)
    assert known[-1] == 1.0


class Case(NamedTuple):
    model: str
    message: str
    token: str | None = None


@pytest.mark.parametrize(
    "case",
    [
        Case("owner/absent", "has no such model, or it is private"),
        Case("owner/absent", "has no such model", fake_hub.READS),
        Case("owner/private", "has no such model, or it is private"),
        Case("owner/gated", r"accept its conditions at .*/owner/gated"),
        Case("owner/gated", "gated", fake_hub.READS),
        Case(f"{MINI}@v9", r"no revision 'v9'; it has main"),
        Case(MINI, "doesn't accept the token", "hf_unknown"),
        Case("owner/mixtral", "'mixtral'.*experts"),
        Case("owner/pickle", "has no safetensors"),
        Case("owner/text", "has no config.json"),
    ],
)
def test_repositories_that_cannot_be_read(
    models: Hub, folders: dict[str, Path], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.add("owner/private", folders[MINI], private=True)
    models.add("owner/gated", folders[MINI], gated=True)
    config = (folders[MINI] / "config.json").read_bytes()
    for name, files in {
        "owner/mixtral": {"config.json": b'{"model_type": "mixtral"}', "model.safetensors": b"0"},
        "owner/pickle": {"config.json": config, "pytorch_model.bin": b"0"},
        "owner/text": {"README.md": b"text"},
    }.items():
        models.repositories[name] = {"private": False, "files": files}
    if case.token:
        monkeypatch.setenv("HF_TOKEN", case.token)
    with pytest.raises((ValueError, OSError), match=case.message) as error:
        locate(case.model)
    assert "\n" not in str(error.value)
    assert not [name for name in models.sent if name.endswith((".safetensors", ".bin"))]
    assert not cache.entries() or case.model == "owner/pickle"


def test_gated_and_private_models_with_a_token(
    models: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    models.add("owner/closed", folders[MINI], gated=True, private=True)
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    assert load_checkpoint(locate("owner/closed")) is not None


@pytest.mark.parametrize("variable", [True, False])
def test_offline_errors_name_what_to_copy(
    models: Hub, monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    fake_hub.connect(monkeypatch, CLOSED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", variable)
    reason = "HF_HUB_OFFLINE is set" if variable else "can't be reached"
    with pytest.raises(ValueError, match=rf"{reason}.*hf download {MINI} --local-dir mini"):
        locate(MINI)


def test_downloads_of_other_programs_work_offline(
    models: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(MINI))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(MINI) == folder
    assert read_quantization(pull.find(MINI, "int4")) == "int4"


def test_other_programs_find_our_downloads(models: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

    folder = locate(LAYOUTS["native"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Path(snapshot_download(LAYOUTS["native"], local_files_only=True)) == folder
    adapter = "vision-lora/adapter_config.json"
    path = try_to_load_from_cache(LAYOUTS["native"], adapter, revision="main")
    assert path == str(folder / adapter)
    assert not scan_cache_dir(constants.HF_HUB_CACHE).warnings


# Quantized models --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "scheme"),
    [
        ("mini", "int4"),
        ("original", "int4"),
        ("native", "int8-all"),
        *(pytest.param(*case, marks=pytest.mark.long) for case in OTHERS),
    ],
)
def test_a_model_is_quantized_once(
    models: Hub, folders: dict[str, Path], layout: str, scheme: str, tmp_path: Path
) -> None:
    name = LAYOUTS[layout]
    folder = pull.find(name, scheme)
    written_layout = "mini" if layout == "mini" else "native"
    model = load_checkpoint(folders[name])
    save_checkpoint(model, tmp_path / "exported", written_layout, quant=scheme)
    for file in ("model.safetensors", "config.json"):
        assert sha256(folder / file) == sha256(tmp_path / "exported" / file)
    assert (folder / "tokenizer.json").is_file()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    count = len(models.requests)
    assert pull.find(name, scheme) == folder
    assert len(models.requests) == count
    assert pull.pull(name, quant=scheme) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_quantized_model_needs_no_download(models: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull.pull(MINI, quant="int4")
    assert {row.name for row in cache.entries()} == {MINI, f"{MINI}:int4"}
    removal.remove(MINI)
    assert [row.name for row in cache.entries()] == [f"{MINI}:int4"]
    models.sent.clear()
    assert pull.pull(MINI, quant="int4") == folder
    assert not models.sent
    fake_hub.connect(monkeypatch, CLOSED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull.find(MINI, "int4") == folder
    with pytest.raises(ValueError, match="int4"):
        pull.find(MINI)
    removal.remove(f"{MINI}:int4")
    assert not cache.entries()
    assert not folder.parents[1].exists()
    with pytest.raises(ValueError, match=MINI):
        removal.remove(MINI)


def test_an_interrupted_quantization_leaves_nothing(
    models: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = locate(MINI)
    target = pull.find(MINI, "int4")
    shutil.rmtree(target)
    stale = target.parent / ".int4-v1.1.1.partial"  # as a killed process leaves it
    stale.mkdir()
    save = write._save_aligned

    def full(tensors: Any, path: Path) -> None:
        save(tensors, path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "_save_aligned", full)
    with pytest.raises(OSError, match="POLYPHI_CACHE") as error:
        pull.find(MINI, "int4")
    assert error.value.errno == errno.ENOSPC
    assert list(target.parent.iterdir()) == []
    assert [row.path for row in cache.entries()] == [folder]
    monkeypatch.setattr(write, "_save_aligned", save)
    assert pull.find(MINI, "int4") == target


def test_a_read_only_cache_means_quantizing_at_each_start(
    models: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = locate(MINI)

    def refused(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(pull, "write_checkpoint", refused)
    assert pull.find(MINI, "int4") == folder


def test_quantized_repositories_are_used_as_they_are(
    models: Hub, folders: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = folders[MINI] / "tokenizer.json"
    model = load_checkpoint(folders[MINI])
    save_checkpoint(model, tmp_path / "small", quant="int4", files=[tokenizer])
    models.add("owner/small", tmp_path / "small")
    assert pull.find("owner/small", "int4") == pull.find("owner/small") == locate("owner/small")
    with pytest.raises(ValueError, match="int4"):
        pull.find("owner/small", "int8")


def test_unknown_schemes_are_refused_before_a_download(models: Hub) -> None:
    for call in (pull.find, lambda name, quant: pull.pull(name, quant=quant)):
        with pytest.raises(ValueError, match="'int3'"):
            call(MINI, "int3")
    assert not models.sent


def test_local_folders_are_never_looked_up(
    models: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[MINI].parent.parent)
    local = f"{folders[MINI].parent.name}/mini"
    assert pull.find(local, "int4").resolve() == folders[MINI]
    assert not models.requests
    for name in ("absent", "a/b/c", "./a/b", "owner/na me"):
        with pytest.raises(ValueError, match="no folder"):
            locate(name)


class Typed(NamedTuple):
    """A name without `hf:` that looks like a path, and what the error suggests."""

    name: str
    suggestion: str | None = None


@pytest.mark.parametrize(
    "case",
    [
        Typed("runs/nnao", "runs/nano"),  # a typing error in the name
        Typed("rusn/nano", "runs/nano"),  # in the owner's
        Typed("runs/calls"),  # not there
        Typed("runs/nnao@v1", "runs/nano"),
        Typed("exported/mine"),  # our commands write there, and it isn't here
    ],
)
def test_a_name_that_looks_like_a_path_needs_hf(
    models: Hub,
    folders: dict[str, Path],
    case: Typed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "here" / "runs" / "nano").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    models.add(case.name.partition("@")[0], folders[MINI])  # a stranger's model
    for call in (locate, pull.find, lambda name: pull.find(name, "int4")):
        with pytest.raises(ValueError, match=f"hf:{case.name}") as error:
            call(case.name)
        assert ("did you mean" in str(error.value)) == (case.suggestion is not None)
        assert (case.suggestion or "") in str(error.value)
    assert not models.requests


def test_hf_and_stored_models_need_no_guess(
    models: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here" / "runs" / "micro").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    models.add("runs/nano", folders[MINI])
    folder = locate("hf:runs/nano")
    assert locate("runs/nano") == folder  # was named before
    shutil.rmtree(tmp_path / "cache")
    assert locate("runs/nano") == folder
    (tmp_path / "here" / "micro" / "Phi-4-mini").mkdir(parents=True)
    models.add("microsoft/Phi-4-mini-instruct", folders[MINI])
    assert locate("microsoft/Phi-4-mini-instruct").is_dir()
    run = tmp_path / "here" / "runs" / "micro"
    shutil.copytree(folders[MINI], run / "model")
    assert locate("runs/micro").resolve() == run / "model"


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYPHI_CACHE", str(tmp_path / "ours"))
    assert cache.models_folder() == tmp_path / "ours" / "models"
    monkeypatch.delenv("POLYPHI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.models_folder() == tmp_path / "xdg" / "polyphi" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.models_folder() == tmp_path / ".cache" / "polyphi" / "models"


def test_an_entry_as_json(models: Hub) -> None:
    pull.find(MINI, "int4")
    row = cache.entries()[1].as_json()
    assert json.loads(json.dumps(row)) == row
    assert (row["name"], row["quant"], row["fault"]) == (f"{MINI}:int4", "int4", None)
    assert row["bytes"] > 10_000
    assert abs(row["last_used"] - time.time()) < 3600
    assert row["refs"] == ["main"]

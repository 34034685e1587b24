"""Checkpoints are atomic: damage is detected, a full disk leaves the one before, unfinished ones are removed."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from polyphi.runtime.files import write_json
from polyphi.train import checkpoint
from tests.fixtures.variants import few


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"parameter/a": torch.full((3, 2), value), "step/a": torch.tensor(value)}


def read(folder: Path) -> tuple[int, float]:
    """Step and value of the checkpoint from which a run would resume; all its tensors hold that value."""
    stored = checkpoint.Checkpoints(folder).find()
    values = tensors(-1.0)
    assert stored.names == sorted(values)
    stored.read(values)
    assert len({float(v) for t in values.values() for v in t.flatten()}) == 1
    return stored.state["step"], float(values["step/a"])


@pytest.fixture(params=[False, True], ids=["at once", "in the background"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[checkpoint.Checkpoints]:
    with closing(checkpoint.Checkpoints(tmp_path / "checkpoints", request.param)) as instance:
        yield instance


def test_the_latest_is_read_and_one_before_it_stays(checkpoints: checkpoint.Checkpoints) -> None:
    assert checkpoints.find() is None
    for step in (1, 2, 3):
        checkpoints.save(step, tensors(step), {"draws": 10 * step})
    checkpoints.wait()
    assert checkpoints.find().state["draws"] == 30
    assert read(checkpoints.folder) == (3, 3.0)
    names = sorted(p.name for p in checkpoints.folder.iterdir())
    assert names == ["latest", "step_00000002", "step_00000003"]


def test_a_checkpoint_holds_the_values_of_the_moment_of_saving(
    checkpoints: checkpoint.Checkpoints,
) -> None:
    """The optimiser changes the tensors directly afterwards."""
    live = {"parameter/a": torch.ones(512, 1024), "step/a": torch.tensor(1.0)}
    for step in range(1, 6):
        for tensor in live.values():
            tensor.fill_(step)
        checkpoints.save(step, live, {})
        for _ in range(20):
            for tensor in live.values():
                tensor.add_(1)
    checkpoints.wait()
    loaded = {name: torch.zeros_like(t) for name, t in live.items()}
    checkpoints.find().read(loaded)
    assert all(bool((t == 5).all()) for t in loaded.values())


def test_leftovers_of_a_killed_run_are_no_checkpoint(checkpoints: checkpoint.Checkpoints) -> None:
    checkpoints.save(1, tensors(1), {})
    checkpoints.wait()
    (checkpoints.folder / ".step_00000002.partial").mkdir()
    (checkpoints.folder / "step_00000003").mkdir()  # renamed, but `latest` hadn't moved
    assert read(checkpoints.folder) == (1, 1.0)
    checkpoints.save(3, tensors(3), {})
    checkpoints.wait()
    assert read(checkpoints.folder) == (3, 3.0)
    names = sorted(p.name for p in checkpoints.folder.iterdir())
    assert names == ["latest", "step_00000001", "step_00000003"]


def test_damage_is_detected_and_the_one_before_is_used(tmp_path: Path) -> None:
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tensors(step), {})
    (path,) = (tmp_path / "step_00000002").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert read(tmp_path) == (1, 1.0)
    shutil.rmtree(tmp_path / "step_00000001")
    with pytest.raises(ValueError, match=r"is damaged: .*expected SHA-256"):
        checkpoints.find()
    path.unlink()
    with pytest.raises(ValueError, match=r"is damaged: .*safetensors.*remove .* to start"):
        checkpoints.find()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: .* free some space"),
        (
            RuntimeError("I/O error: No space left on device"),
            "the disk is full: .* free some space",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "can't be written: .* make its folder"),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            "can't be written: .* make its folder",
        ),
    ],
)
@pytest.mark.parametrize("where", ["tensors", "small files", "the folder"])
def test_a_disk_that_refuses_leaves_the_checkpoint_before(
    checkpoints: checkpoint.Checkpoints,
    error: Exception,
    message: str,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoints.save(1, tensors(1), {})
    checkpoints.wait()

    def refuses(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        match where:
            case "tensors":
                patch.setattr(checkpoint.distributed_checkpoint, "save", refuses)
            case "small files":
                patch.setattr(checkpoint, "write_json", refuses)
            case "the folder":
                patch.setattr(Path, "mkdir", refuses)
        with pytest.raises(OSError, match=message):
            checkpoints.save(2, tensors(2), {})
            checkpoints.wait()
    assert read(checkpoints.folder) == (1, 1.0)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["latest", "step_00000001"]
    checkpoints.save(2, tensors(2), {})
    checkpoints.wait()
    assert read(checkpoints.folder) == (2, 2.0)


def test_a_folder_that_cannot_be_written_to_says_so(tmp_path: Path) -> None:
    """A real one: /proc takes no files, not even from root."""
    checkpoints = checkpoint.Checkpoints(Path("/proc/checkpoints"))
    with pytest.raises(OSError, match="checkpoints"):
        checkpoints.save(1, tensors(1), {})


@pytest.mark.parametrize(
    ("background", "moments"), few([(False, 4), (True, 4), (False, 25), (True, 25)], 2)
)
def test_killed_at_any_moment_of_saving(background: bool, moments: int, tmp_path: Path) -> None:
    """kill -9 at random moments (of either way): the latest is always whole, and none is lost."""
    random = np.random.default_rng(int(background))
    latest, longest = 0, None
    for moment in range(moments):
        saved, write = os.pipe()
        child = os.fork()  # quicker than a fresh interpreter by the seconds that torch takes
        if child == 0:
            _save_forever(tmp_path, latest + 1, background, write)
        os.close(write)
        os.read(saved, 1)  # it has begun
        saves = 0
        if longest is None:  # three times what a checkpoint takes on this machine now
            saves = len(os.read(saved, 1))
            began = time.monotonic()
            saves += len(os.read(saved, 1))
            longest = 3 * (time.monotonic() - began)
        elif moment % 2:  # after at least one checkpoint, however busy the machine is
            saves += len(os.read(saved, 1))
        time.sleep(random.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(saved, "rb") as pipe:
            saves += len(pipe.read())
        stored = checkpoint.Checkpoints(tmp_path).find()
        step = stored.state["step"] if stored is not None else 0
        # Each byte is a checkpoint that is saved; in the background, but for the one that is being written.
        assert step >= latest + saves - background
        if stored is not None:
            values = {"parameter/a": torch.zeros(300, 200), "step/a": torch.tensor(0.0)}
            stored.read(values)
            assert all(bool((t == step).all()) for t in values.values())
        latest = step
    assert latest >= moments // 4, "hardly any was saved"


def _save_forever(folder: Path, step: int, background: bool, pipe: int) -> None:
    try:
        torch.set_num_threads(1)  # the others weren't forked
        checkpoints = checkpoint.Checkpoints(folder, background)
        os.write(pipe, b"!")
        for value in range(step, 1_000_000):
            tensors = {"parameter/a": torch.full((300, 200), float(value))}
            checkpoints.save(value, {**tensors, "step/a": torch.tensor(float(value))}, {})
            os.write(pipe, b".")
    finally:
        os._exit(1)


def test_digests_see_type_shape_and_bits() -> None:
    a = torch.zeros(2, 3)
    seen = {
        checkpoint.digest(t) for t in (a, a.t(), a.bfloat16(), a.view(6), -a, torch.tensor(0.0))
    }
    assert len(seen) == 6
    assert checkpoint.digest(a) == checkpoint.digest(torch.zeros(4, 3)[:2])


def test_a_trained_tensor_that_rotted_is_told(tmp_path: Path) -> None:
    values = {"a": torch.arange(6.0), "b": torch.ones(2)}
    checkpoint.write_tensors(tmp_path / checkpoint.TRAINED, values)
    write_json(tmp_path / checkpoint.MANIFEST, {"trained": checkpoint.digests(values.items())})
    assert torch.equal(checkpoint.read_trained(tmp_path)["a"], values["a"])
    content = bytearray((tmp_path / checkpoint.TRAINED).read_bytes())
    content[-1] ^= 1  # of b, the last tensor
    (tmp_path / checkpoint.TRAINED).write_bytes(content)
    assert list(checkpoint.read_trained(tmp_path, ["a"])) == ["a"]
    with pytest.raises(ValueError, match=r"damaged: expected b with SHA-256 .*run the stage again"):
        checkpoint.read_trained(tmp_path)
    (tmp_path / checkpoint.TRAINED).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"trained\.safetensors is damaged"):
        checkpoint.read_trained(tmp_path)

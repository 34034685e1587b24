"""Checkpoints are whole or absent: damage is found, a full disk leaves the one before, leftovers go."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from polyphi.train import checkpoint


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"parameter/a": torch.full((3, 2), value), "step/a": torch.tensor(value)}


def test_the_latest_is_read_and_older_ones_go(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(step), {"draws": 10 * step})
    found, state = checkpoint.load(tmp_path)
    assert torch.equal(found["parameter/a"], tensors(2)["parameter/a"]) and found["step/a"] == 2
    assert (state["step"], state["draws"]) == (2, 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000002"]


def test_leftovers_of_a_killed_run_are_no_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})
    (tmp_path / ".step_00000002.partial").mkdir()
    (tmp_path / "step_00000003").mkdir()  # renamed, but `latest` hadn't moved
    assert checkpoint.load(tmp_path)[1]["step"] == 1
    checkpoint.save(tmp_path, 3, tensors(3), {})
    assert checkpoint.load(tmp_path)[1]["step"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000003"]


def test_damage_is_found(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})
    path = tmp_path / "step_00000001" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: expected SHA-256"):
        checkpoint.load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"is damaged: .*tensors\.safetensors"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
    ],
)
def test_a_full_disk_leaves_the_checkpoint_before(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})

    def full(tensors: dict, path: Path, metadata: dict | None = None) -> None:
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        OSError, match=r"the disk is full: .* free some space and run again"
    ) as raised:
        checkpoint.save(tmp_path, 2, tensors(2), {})
    assert raised.value.errno == errno.ENOSPC
    assert checkpoint.load(tmp_path)[1]["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000001"]


def test_a_full_disk_in_the_small_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="the disk is full"):
        checkpoint.save(tmp_path, 2, tensors(2), {})
    assert checkpoint.load(tmp_path)[1]["step"] == 1


def test_digests_see_type_shape_and_bits() -> None:
    a = torch.zeros(2, 3)
    seen = {
        checkpoint.digest(t) for t in (a, a.t(), a.bfloat16(), a.view(6), -a, torch.tensor(0.0))
    }
    assert len(seen) == 6
    assert checkpoint.digest(a) == checkpoint.digest(torch.zeros(4, 3)[:2])

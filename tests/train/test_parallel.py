"""One process = two processes (gloo), replicas and shards."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train import small

from polyphi.train.parallel import clip_gradients


def together(out: Path, corpora: Path, *options: str) -> None:
    """Two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, small.__file__, str(out), str(corpora), *options]
    started = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=100) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize("options", [("--stage", "everything"), ("--stage", "language", "--shard")])
def test_two_processes_give_the_numbers_of_one(
    options: tuple[str, ...], corpora: Path, tmp_path: Path
) -> None:
    stage = {"everything": small.EVERYTHING, "language": small.LANGUAGE}[options[1]]
    small.run(tmp_path / "one", corpora, stage)
    together(tmp_path / "two", corpora, *options)
    one, two = small.told(tmp_path / "one"), small.told(tmp_path / "two")
    assert [r[:2] for r in one] == [r[:2] for r in two]
    assert [r[2] for r in one] == pytest.approx([r[2] for r in two], rel=1e-5)
    assert [r[3] for r in one] == pytest.approx([r[3] for r in two], rel=1e-3)
    first, second = (load_file(tmp_path / name / "trained.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # AdamW's first steps are of the rate's size whatever the gradient's: where it is near zero, rounding shows.
        torch.testing.assert_close(tensor, second[name], atol=1e-3, rtol=1e-3)


def test_clipping_is_torchs() -> None:
    torch.manual_seed(0)
    grads = [torch.randn(3, 4), torch.randn(5)]
    ours, theirs = ([torch.nn.Parameter(torch.zeros_like(g)) for g in grads] for _ in range(2))
    for p, q, g in zip(ours, theirs, grads, strict=True):
        p.grad, q.grad = g * 10, g.clone()
    norm = clip_gradients([*ours, torch.nn.Parameter(torch.zeros(2))], 0.1, 1.0)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, 1.0))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_shards_resume(corpora: Path, tmp_path: Path) -> None:
    """A process group of one is enough to cut tensors, gather them for a checkpoint, and cut them again."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        small.run(tmp_path / "whole", corpora, small.LANGUAGE)
        small.run(tmp_path / "straight", corpora, small.LANGUAGE, shard=True)
        stage = replace(small.LANGUAGE, objective=small.Fails(2))
        with pytest.raises(RuntimeError, match="bad luck"):
            small.run(tmp_path / "half", corpora, stage, shard=True, checkpoint_seconds=0.0)
        small.run(tmp_path / "half", corpora, small.LANGUAGE, shard=True)
    finally:
        torch.distributed.destroy_process_group()
    assert small.told(tmp_path / "half") == small.told(tmp_path / "straight")
    whole, half = small.told(tmp_path / "whole"), small.told(tmp_path / "half")
    assert [r[2] for r in half] == pytest.approx([r[2] for r in whole], rel=1e-6)


def test_sharding_is_refused_where_adapters_learn(corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stages of the language model; .*lora"):
        small.run(tmp_path, corpora, small.EVERYTHING, shard=True)

"""docs/multinode.md and the batch file: their commands on two nodes of one process each, both on this machine."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.fixtures import published
from tests.fixtures.processes import free_port

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TINY = ["--steps", "2", "--batch-tokens", "300", "--lr-factor", "100", "--precision", "fp32"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    published.write(desk / "phi", "native")
    published.write_data(desk)
    (desk / "clips.jsonl").rename(desk / "calls.jsonl")
    (desk / "examples").symlink_to(ROOT / "examples")
    return desk


def environment() -> dict[str, str]:
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def check(run: Path, model: Path) -> None:
    """The run was made by two processes, and its model is that of a single process."""
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["environment"]["processes"] == 2
    assert (run / "model" / "model.safetensors").exists() and (run / "report.html").exists()
    single = run.with_name(f"{run.name}-single")
    command = [sys.executable, "-m", "polyphi.cli", "finetune", "speech"]
    command += ["--model", str(model), "--data", "calls.jsonl", "--out", str(single), *TINY]
    subprocess.run(command, cwd=model.parent, env=environment(), check=True)
    one, two = (load_file(folder / "trained.safetensors") for folder in (run, single))
    assert one.keys() == two.keys()
    assert all((one[name] - two[name]).abs().max() < 1e-3 for name in one)


@pytest.mark.long
def test_the_command_of_the_page_on_two_nodes(desk: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "multinode.md").read_text()
    (block,) = re.findall(r"(?s)```\n(torchrun .*?)```", page)
    command = shlex.split(block.replace("\\\n", " "))
    assert command[0] == "torchrun" and command[command.index("--nproc-per-node") + 1] == "8"
    command[command.index("--nproc-per-node") + 1] = "1"
    command[command.index("--rdzv-endpoint") + 1] = f"127.0.0.1:{free_port()}"
    command[command.index("--out") + 1] = str(tmp_path / "run")
    own = ["--local-addr", "127.0.0.1"]
    command = [*TORCHRUN, *own, *command[1:], "--model", str(desk / "phi"), *TINY]
    nodes = [subprocess.Popen(command, cwd=desk, env=environment()) for _ in range(2)]
    try:
        assert [node.wait(500) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    check(tmp_path / "run", desk / "phi")


SRUN = """#!/bin/bash
# Slurm's srun on two nodes: its options, then the command of each node
shift
"$@" & first=$!
"$@" & second=$!
wait $first && wait $second
"""


@pytest.mark.long
def test_the_batch_file_on_two_nodes(desk: Path, tmp_path: Path) -> None:
    """`srun`, `scontrol` and `torchrun` are programs of this test; the file runs as it is."""
    programs = {
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho 127.0.0.1\necho 127.0.0.2\n",
        "torchrun": f'#!/bin/bash\nexec {shlex.join(TORCHRUN)} --local-addr 127.0.0.1 "$@"\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
        "GPUS_PER_NODE": "1",
        "PORT": str(free_port()),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    arguments = ["speech", "--model", str(desk / "phi"), *TINY]
    arguments += ["--data", "calls.jsonl", "--out", str(tmp_path / "run")]
    subprocess.run(
        ["bash", "examples/finetune.sbatch", *arguments],
        cwd=desk,
        env=environment() | slurm,
        timeout=500,
        check=True,
    )
    check(tmp_path / "run", desk / "phi")

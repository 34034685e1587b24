"""The whole recipe at micro size: every stage, an interrupted run that resumes, a model that loads and answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from polyphi.train.options import TrainOptions
from polyphi_recipe import stages
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.stages import sizes


@pytest.fixture
def run(micro_run: Path) -> Path:
    return micro_run


def test_a_run_writes_its_files(run: Path) -> None:
    names = ("report.html", "report.json", "model", "mini", "reasoning", "recogniser")
    for name in (*names, "benchmarks/report.html", "benchmarks/figures.html"):
        assert (run / name).exists(), name
    for stage in stages.ORDER:
        assert (run / "stages" / stage / "manifest.json").exists(), stage
    timings = json.loads((run / "timings.json").read_text())
    assert timings["peak_bytes"] > 1e8 and timings["seconds"]["total"] > 1


def test_the_language_model_stayed_frozen(run: Path) -> None:
    entries = json.loads((run / "freeze.json").read_text())
    assert {e["stage"] for e in entries} == {
        s for s in stages.ORDER if s.split("_")[0] in ("vision", "speech", "joint")
    }
    assert all(e["logits_sha256_before"] == e["logits_sha256_after"] for e in entries)
    # Speech 0 and vision 0 run while the language model is trained: one contains a fresh one, the other that of text 1.
    beside = ("speech_0_aed", "vision_0_encoder")
    others = {e["logits_sha256_after"] for e in entries if e["stage"] not in beside}
    assert len(others) == 1


def test_frozen_tensors_have_the_same_hash_before_and_after(run: Path) -> None:
    for stage in stages.ORDER:
        manifest = json.loads((run / "stages" / stage / "manifest.json").read_text())
        assert all(before == after for before, after in manifest["frozen"].values())


def test_media_reached_the_encoders(run: Path) -> None:
    def counters(stage: str) -> dict[str, int]:
        return json.loads((run / "stages" / stage / "manifest.json").read_text())["counters"]

    assert counters("vision_3_generative")["crops"] > 0
    assert counters("speech_2_post")["frames"] > 0
    assert counters("joint_1_vision_speech")["crops"] > 0
    assert counters("joint_1_vision_speech")["frames"] > 0


def test_stages_trained_on_fresh_samples_where_the_size_has_them(run: Path) -> None:
    for name in ("text_3_post", "vision_3_generative"):
        data = json.loads((run / "stages" / name / "manifest.json").read_text())["data"]
        fresh = {corpus for corpus, known in data.items() if "fresh" in known}
        assert fresh == set(data) & set(sizes.MICRO.fresh) != set(), name


def test_transformers_reads_the_mini_model_to_the_same_logits(run: Path) -> None:
    from transformers import Phi3ForCausalLM

    import polyphi

    phi = polyphi.load(run / "model")
    ids, ours = phi.logits([{"role": "user", "content": "How much is 3 plus 4?"}])
    model = Phi3ForCausalLM.from_pretrained(run / "mini", attn_implementation="eager").float()
    with torch.inference_mode():
        theirs = model(ids[None]).logits[0]
    assert torch.allclose(ours, theirs, atol=2e-4), (ours - theirs).abs().max()


def test_a_finished_run_has_nothing_to_do(run: Path) -> None:
    before = (run / "stages" / "joint_1_vision_speech" / "manifest.json").stat().st_mtime_ns
    Run("micro", run, options=TrainOptions(precision="fp32")).train("joint_1_vision_speech")
    assert (run / "stages" / "joint_1_vision_speech" / "manifest.json").stat().st_mtime_ns == before


def test_a_folder_belongs_to_one_run(run: Path) -> None:
    with pytest.raises(ValueError, match="choose another --out"):
        Run("micro", run, options=TrainOptions(seed=1))


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_interrupted_in_every_stage_it_ends_the_same(run: Path, tmp_path: Path, name: str) -> None:
    """Stopped once in each of the sixteen stages, the run's losses equal those of the run that was never stopped."""
    out = tmp_path / "micro"
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    command = f"-m polyphi.cli reproduce micro --out {out} --precision fp32".split()
    stopped: set[str] = set()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    stop = getattr(signal, name)
    while (code := _until_a_stage_runs(command, environment, out, stopped, stop)) is None:
        pass
    assert code == 0 and stopped == set(stages.ORDER)

    def losses(folder: Path, stage: str) -> list[float]:
        lines = (folder / "stages" / stage / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    for stage in stages.ORDER:
        assert losses(out, stage) == pytest.approx(losses(run, stage), rel=1e-5), stage


SLOW = """
import time

from polyphi.runtime.progress import Metrics

write = Metrics.write


def slowly(self, record):
    write(self, record)
    time.sleep(0.3)


Metrics.write = slowly
"""
"""Every Python process that finds this rests after each step, so that it can be met there."""


def _until_a_stage_runs(
    command: list[str],
    environment: dict[str, str],
    out: Path,
    stopped: set[str],
    stop: signal.Signals,
) -> int | None:
    """Start the command and stop it when a stage that isn't among `stopped` has made its first step; its exit code
    where it comes to its end before that."""
    process = subprocess.Popen([sys.executable, *command], env=environment)
    while process.poll() is None:
        running = {
            path.parent.name
            for path in (out / "stages").glob("*/metrics.jsonl")
            if path.stat().st_size and not path.with_name("manifest.json").exists()
        }
        if new := running - stopped:
            process.send_signal(stop)
            process.wait(60)
            stopped |= new
            return None
        time.sleep(0.005)
    return process.returncode

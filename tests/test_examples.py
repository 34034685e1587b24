"""Every example is a command that works: the loss falls, what rests is untouched, the exported model answers."""

import json
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from safetensors.torch import load_file

import polyphi
from polyphi import Audio, Image, Message, SamplingParams, cli
from polyphi.checkpoints.read import load_checkpoint
from polyphi.runtime.progress import read_metrics

EXAMPLES = Path(__file__).parents[1] / "examples"
SPEECH = ("audio.projector.speech.", ".lora.speech.")
VISION = ("vision.projector.", ".lora.vision.")
# file -> corpora (the mix's name -> file) and what stands in the names of all that learns
CASES = {
    "finetune_speech": ({"calls": "clips.jsonl"}, SPEECH),
    "finetune_vision": ({"receipts": "pictures.jsonl"}, VISION),
    "finetune_both": ({"desk": "pictures.jsonl clips.jsonl"}, (*SPEECH, *VISION)),
    "finetune_sibling": ({"scans": "pictures.jsonl"}, (".lora.medical.",)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both public layouts of a tiny model in bfloat16, and data."""
    source = tmp_path_factory.mktemp("published")
    for layout in ("original", "native"):
        published.write(source / layout, layout)
    published.write_data(source / "data")
    return source


def test_every_example_is_here() -> None:
    assert {p.stem for p in EXAMPLES.glob("finetune_*.py")} == set(CASES)


@pytest.mark.parametrize("layout", ["original", "native"])
@pytest.mark.parametrize("name", CASES)
def test_example(name: str, layout: str, source: Path, tmp_path: Path) -> None:
    corpora, learning = CASES[name]
    command = ["train", str(EXAMPLES / f"{name}.py"), "--model", str(source / layout)]
    for corpus, files in corpora.items():
        for file in files.split():
            command += ["--data", f"{corpus}={source / 'data' / file}"]
    # a tiny model needs larger rates
    command += ["--out", str(tmp_path), "--steps", "10", "--batch-tokens", "200", "--rate", "200"]
    cli.main(command)
    losses = [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3]), losses

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert all(before == after for before, after in manifest["frozen"].values())
    before, after = (load_checkpoint(p).state_dict() for p in (source / layout, tmp_path / "model"))
    changed = {n for n in after if n not in before or not torch.equal(before[n], after[n])}
    assert {part for n in changed for part in learning if part in n} == set(learning)
    assert all(any(part in n for part in learning) for n in changed)
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    trained = load_file(tmp_path / "trained.safetensors")
    assert changed <= set(trained)
    assert {t.dtype for t in trained.values()} == {torch.float32}

    phi = polyphi.load(tmp_path / "model")
    adapter = "medical" if "medical" in phi.config.adapters else "auto"
    picture, clip = Image(source / "data/1.png"), Audio(source / "data/1.wav")
    for media in ((picture,), (clip,), (picture, clip), ()):
        messages = [Message.user(*media, "which colour is it")]
        answer = phi.generate(messages, sampling=SamplingParams(max_tokens=4), adapter=adapter)
        called_for = "vision" if picture in media else "speech" if media else None
        assert answer.adapter == ("medical" if adapter == "medical" else called_for)

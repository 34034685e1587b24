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
from polyphi.logs import read_metrics
from polyphi.model import weights

EXAMPLES = Path(__file__).parents[1] / "examples"
# file -> data, a prefix of every name that learns
CASES = {
    "finetune_speech": (["clips.jsonl"], ("audio.projector.speech.", ".lora.speech.")),
    "finetune_vision": (["pictures.jsonl"], ("vision.projector.", ".lora.vision.")),
    "finetune_both": (
        ["pictures=pictures.jsonl", "clips=clips.jsonl"],
        ("audio.projector.speech.", ".lora.speech.", "vision.projector.", ".lora.vision."),
    ),
    "finetune_sibling": (["pictures.jsonl"], (".lora.medical.",)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both public layouts of a tiny model in bfloat16, and data."""
    place = tmp_path_factory.mktemp("published")
    for layout in ("original", "native"):
        published.write(place / layout, layout)
    published.write_data(place / "data")
    return place


def test_every_example_is_here() -> None:
    assert {p.stem for p in EXAMPLES.glob("finetune_*.py")} == set(CASES)


@pytest.mark.parametrize("layout", ["original", "native"])
@pytest.mark.parametrize("name", CASES)
def test_example(name: str, layout: str, place: Path, tmp_path: Path) -> None:
    sources, learning = CASES[name]
    data = [
        f"{n}={place / 'data' / p}" if n else str(place / "data" / p)
        for n, p in (s.split("=") if "=" in s else ("", s) for s in sources)
    ]
    out = tmp_path / "run"
    options = ["--steps", "20", "--batch-tokens", "400", "--rate", "300", "--precision", "bf16"]
    cli.main(
        ["train", str(EXAMPLES / f"{name}.py"), "--model", str(place / layout), "--out", str(out)]
        + options
        + [x for d in data for x in ("--data", d)]
    )
    losses = [r["loss"] for r in read_metrics(out / "metrics.jsonl")]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3]), losses

    manifest = json.loads((out / "manifest.json").read_text())
    assert all(before == after for before, after in manifest["frozen"].values())
    before, after = (weights.load(f).state_dict() for f in (place / layout, out / "model"))
    changed = {n for n in after if n not in before or not torch.equal(before[n], after[n])}
    assert changed and all(any(part in n for part in learning) for n in changed), changed
    assert all(t.dtype == torch.bfloat16 for t in after.values())
    trained = load_file(out / "trained.safetensors")
    assert changed <= set(trained)
    assert all(t.dtype == torch.float32 for t in trained.values())

    phi = polyphi.load(out / "model")
    sibling = "medical" if "sibling" in name else "auto"
    picture, clip = Image(place / "data/1.png"), Audio(place / "data/1.wav")
    for media in ((picture,), (clip,), (picture, clip), ()):
        messages = [Message.user(*media, "which colour is it")]
        answer = phi.generate(messages, sampling=SamplingParams(max_tokens=4), adapter=sibling)
        assert answer.tokens
        assert sibling == "auto" or answer.adapter == "medical"

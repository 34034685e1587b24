"""Cached outputs of a frozen encoder: the same results, computed once, also with damaged files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyphi.prepared.prepare import prepare
from polyphi.train.features import Features, cached_features
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from tests.core.train.small import BUDGET, EVERYTHING, make_model, make_processor, run, trajectory

LONG = replace(BUDGET, steps=8)
FROZEN = replace(
    EVERYTHING,
    trainable={n: lr for n, lr in EVERYTHING.trainable.items() if ".encoder." not in n},
)


def test_the_numbers_stay_the_same(corpora: Path, tmp_path: Path) -> None:
    run(tmp_path / "plain", corpora, FROZEN, LONG)
    stored: dict[str, list[int]] = {}
    for name in ("first", "again"):  # the second has all outputs cached
        run(tmp_path / name, corpora, FROZEN, LONG, features=tmp_path / "features")
        for one, other in zip(
            trajectory(tmp_path / "plain"), trajectory(tmp_path / name), strict=True
        ):
            assert one[:2] == other[:2]
            assert one[2:] == pytest.approx(other[2:], rel=1e-5)
        sizes = [file.stat().st_size for file in sorted((tmp_path / "features").glob("*/*.bin"))]
        assert len(sizes) == 2 and all(sizes), "one encoder each"
        assert sizes == stored.setdefault("sizes", sizes), "the second run computes nothing"


def test_outputs_of_a_trainable_encoder_are_not_cached(corpora: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", corpora, replace(EVERYTHING), BUDGET, features=tmp_path / "features")
    assert len(list((tmp_path / "features").iterdir())) == 1, "of the frozen vision encoder alone"


def test_each_clip_is_encoded_once_and_alone(tmp_path: Path) -> None:
    model = prepare(make_model(make_processor()).requires_grad_(False))
    tower, calls = model.audio, []
    tower.encoder.subsampling.register_forward_hook(lambda _, inputs, __: calls.append(inputs[1]))
    mels = torch.randn(40 + 24 + 40, 80)
    mels[64:] = mels[:40]
    layouts = (AudioLayout(40, "speech"), AudioLayout(24, "vision"), AudioLayout(40, "vision"))
    clips = AudioInput(layouts=layouts, mels=mels)
    expected = tower(clips)
    calls.clear()
    with cached_features(model, tmp_path, "fp32"):
        for _ in range(2):
            torch.testing.assert_close(tower(clips), expected, atol=1e-5, rtol=1e-5)
    assert calls == [[40, 24]]
    with cached_features(model, tmp_path, "bf16"):
        tower(clips)
    with torch.no_grad():
        tower.encoder.global_mean += 1
    with cached_features(model, tmp_path, "fp32"):
        tower(clips)
    assert len(calls) == 3, "another precision and other weights have other features"


def test_a_killed_process_leaves_complete_entries(tmp_path: Path) -> None:
    features = Features(tmp_path)
    tensors = [torch.randn(3, 2), torch.randn(5).bfloat16()]
    features.of(["a", "b"], lambda missing: [tensors[i] for i in missing])
    index, data = tmp_path / "0.jsonl", tmp_path / "0.bin"
    index.write_bytes(index.read_bytes() + b'{"key": "c", "sta')
    data.write_bytes(data.read_bytes() + b"half")
    again = Features(tmp_path)
    fresh = torch.randn(4)
    outputs = again.of(["a", "b", "c"], lambda missing: [fresh] * len(missing))
    for one, other in zip(outputs, [*tensors, fresh], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    data.write_bytes(data.read_bytes()[:20])  # power went before the data reached the disk
    last = Features(tmp_path)
    (zero,) = last.of(["a"], lambda missing: [torch.zeros(1)])
    assert torch.equal(zero, torch.zeros(1)) and last.misses == 1

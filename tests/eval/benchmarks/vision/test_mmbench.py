"""MMBench: rotations of a question, and circular accuracy."""

from pathlib import Path

from polyphi.types.messages import media
from polyphi.types.parts import Image
from polyphi_eval.benchmarks.vision import mmbench
from polyphi_eval.sources import Data


def test_rotations_have_the_image_of_their_question(tmp_path: Path) -> None:
    mmbench.benchmark.write_fixtures(tmp_path)
    samples = list(mmbench.load(Data(tmp_path)))
    assert [s.meta["rotation"] for s in samples] == [0, 1, 2, 0, 1]
    images = [media(s.prompt, Image)[0].source for s in samples]
    assert images[0] == images[1] == images[2] != images[3] == images[4]
    assert {s.meta["options"]["ABCD".index(s.answer)] for s in samples[:3]} == {"red"}


def test_circular_accuracy_needs_every_rotation_to_be_right(tmp_path: Path) -> None:
    mmbench.benchmark.write_fixtures(tmp_path)
    samples = list(mmbench.load(Data(tmp_path)))
    pairs = [([s.answer], s) for s in samples]
    pairs[1] = ([samples[0].answer], samples[1])  # the unrotated question's letter
    scores = mmbench.score_many(pairs)
    assert [s.value for s in scores] == [1, 0, 1, 1, 1]
    assert [s.parts["circular"] for s in scores] == [0, 0, 0, 1, 1]
    # A question without all its rotations has no circular score.
    assert "circular" not in mmbench.score_many(pairs[:2])[0].parts

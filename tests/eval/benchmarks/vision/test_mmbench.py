"""MMBench: rotations of a question, and being right under all of them."""

from pathlib import Path

from polyphi.eval.benchmarks.vision import mmbench
from polyphi.eval.sources import Data
from polyphi.messages import Image, media


def test_rotations_have_the_picture_of_their_question(tmp_path: Path) -> None:
    mmbench.benchmark.write_fixtures(tmp_path)
    samples = list(mmbench.load(Data(tmp_path)))
    assert [s.meta["rotation"] for s in samples] == [0, 1, 2, 0, 1]
    pictures = [media(s.prompt, Image)[0].source for s in samples]
    assert pictures[0] == pictures[1] == pictures[2] != pictures[3] == pictures[4]
    assert {s.meta["options"]["ABCD".index(s.answer)] for s in samples[:3]} == {"red"}


def test_circular_accuracy_needs_every_rotation_to_be_right(tmp_path: Path) -> None:
    mmbench.benchmark.write_fixtures(tmp_path)
    samples = list(mmbench.load(Data(tmp_path)))
    given = [([s.answer], s) for s in samples]
    given[1] = ([samples[0].answer], samples[1])  # the same letter, whatever stands there
    scores = mmbench.score_many(given)
    assert [s.value for s in scores] == [1, 0, 1, 1, 1]
    assert [s.parts["circular"] for s in scores] == [0, 0, 0, 1, 1]
    # Of a question that wasn't asked under all of them nothing is said.
    assert "circular" not in mmbench.score_many(given[:2])[0].parts

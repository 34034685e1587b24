"""Questions about scenes, bars and letters in words: the description has the answer, and the splits are apart."""

import re
from collections import Counter
from random import Random

import pytest

from polyphi_recipe.synthetic import described_scenes
from polyphi_recipe.synthetic.qa import QA


def draws(split: str, count: int = 400) -> list[QA]:
    rng = Random(0)
    return [described_scenes.scenes(rng, split) for _ in range(count)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_about_scenes_is_in_their_description(split: str) -> None:
    kinds: Counter[str] = Counter()
    for qa in draws(split):
        text, question = qa.question.split("\n")
        scenes = [caption.split() for caption in re.findall(r"Scene \d: (.*?)\.", text)]
        thing = question.rstrip("?").split()[-1]
        showing = [i for i, words in enumerate(scenes, 1) if thing in words]
        kind = " ".join(question.split()[:2])
        kinds[kind] += 1
        if kind == "Which scene":
            assert [str(i) for i in showing] == [qa.answer], qa
        elif kind == "How many":
            assert str(len(showing)) == qa.answer, qa
        elif kind == "Is it":
            at = {"shape": -1, "colour": -2, "digit": -1}[thing]
            assert (scenes[0][at] == scenes[1][at]) == (qa.answer == "yes"), qa
        else:
            first, last = scenes[0][-1], scenes[-1][-1]
            assert {"up": "top", "down": "bottom"}.get(qa.answer, qa.answer) == last != first, qa
    assert kinds.keys() == {"Which scene", "How many", "Is it", "Which way", "Where does"}
    assert min(kinds.values()) >= 10


def test_bars_and_letters_have_their_answers() -> None:
    rng = Random(1)
    for _ in range(200):
        qa = described_scenes.bars(rng, "train")
        values = {name: int(n) for name, n in re.findall(r"(\w+) (\d)", qa.question)}
        if qa.answer.isdigit():
            assert values[qa.question.split()[-2]] == int(qa.answer)
        elif "highest" in qa.question or "longest" in qa.question:
            assert values[qa.answer] == max(values.values())
        else:
            assert values[qa.answer] == min(values.values())
        qa = described_scenes.letters(rng, "train", ("en", "fr", "de"))
        spelled = re.match(r"Letters: (.*)\.\n", qa.question)
        assert spelled and spelled[1].replace(" ", "") == qa.answer


def test_the_splits_are_apart() -> None:
    train, test = ({qa.question.split("\n")[0] for qa in draws(s)} for s in ("train", "test"))
    assert not train & test and len(test) > 100

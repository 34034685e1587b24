"""Scorers of questions about images, on pairs with known scores."""

from collections.abc import Callable

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Image, Text
from polyphi_eval import vqa
from polyphi_eval.benchmark import LENIENT, Score
from polyphi_eval.benchmarks.vision import mathvista, mmmu, ocrbench, pope

CATS = ["a dog", "a cat", "both A and B", "the red one"]
BOTH = (1.0, 1.0)
NEITHER = (0.0, 0.0)
LENIENTLY = (0.0, 1.0)


def sample(reference: str, **meta: object) -> Sample:
    return Sample(
        "s", (Message.user("?"), Message.assistant(reference)), "made up", "MIT", dict(meta)
    )


def values(score: Score) -> tuple[float, float]:
    return score.value, score.parts[LENIENT]


def test_images_come_first_and_options_have_letters() -> None:
    image = Image(b"x")
    message = vqa.ask(vqa.with_options("Which?", ["red", "blue"]), [image], vqa.CHOOSE)
    assert message.parts == (image, Text(f"Which?\nA. red\nB. blue\n{vqa.CHOOSE}"))


def test_images_of_mmmu_are_interleaved() -> None:
    one, two = Image(b"1"), Image(b"2")
    message = vqa.interleaved(
        "Is <image 2> as <image 1>, <image 2> or <image 7>?", {1: one, 2: two}
    )
    assert message.parts == (
        *(Text("Is "), two, Text(" as "), one, Text(", "), two),
        *(Text(" or "), Text("<image 7>"), Text("?")),
    )


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("B", BOTH),
        (" (b).", BOTH),
        ("B. a cat", BOTH),
        ("B: a cat", BOTH),
        ("**B**", BOTH),
        ("B\nbecause it purrs", BOTH),
        ("A cat", LENIENTLY),  # an article, not a letter; leniently the text of an option
        ("a cat", LENIENTLY),
        ("The answer is B", LENIENTLY),
        ("The answer is (B).", LENIENTLY),
        ("A dog is in picture B", LENIENTLY),
        ("A. a cat", NEITHER),
        ("E", NEITHER),
        ("Before noon", NEITHER),
        ("", NEITHER),
    ],
)
def test_letters(answer: str, score: tuple[float, float]) -> None:
    assert values(vqa.letter(answer, sample("B", options=CATS))) == score


def test_a_spoken_question_may_be_answered_with_the_text_of_an_option() -> None:
    expected = sample("B", options=CATS)
    assert values(vqa.letter_or_text("A cat.", expected)) == BOTH
    assert values(vqa.letter_or_text("b", expected)) == BOTH
    assert values(vqa.letter_or_text("a cow", expected)) == NEITHER
    twice = sample("B", options=["cat", "Cat"])
    assert values(vqa.letter_or_text("cat", twice)) == NEITHER


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(A) looks right, but (C) is", "C"),
        ("It may be A or B", "B"),
        ("The answer is D.", "D"),
        ("C", "C"),
        ("B. because of A", "A"),  # "B." counts only where no letter has a space behind it
        ("I think it must be the red one here", "D"),
        ("the red one", ""),  # five words or fewer name no option
        ("I have no idea at all, sorry", ""),  # where the parser would draw one at random
        ("", ""),
    ],
)
def test_mmmu_parsing(answer: str, letter: str) -> None:
    assert vqa.mmmu_letter(answer, CATS) == letter
    assert vqa.mmmu_choice(answer, sample("E", options=CATS)).value == 0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("7", "7", True),
        ("So the sum is 7.", "7", True),
        ("x = 3.14159", "3.14", True),
        ("1,000 in all", "1000", True),
        ("It is 24/7", "['24/7', '3.429']", True),
        ("3.429", "['24/7', '3.429']", True),
        ("the answer is a Doric column", "Doric", True),
        ("17", "7", False),
        ("Ionic", "Doric", False),
        ("", "7", False),
    ],
)
def test_open_questions_of_mmmu(answer: str, reference: str, right: bool) -> None:
    assert mmmu.score(answer, sample(reference, kind="open", options=[])).value == right


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("95", "100", BOTH),
        ("94.9", "100", NEITHER),
        ("5%", "0.05", BOTH),
        ("5 %", "5%", BOTH),
        ("5", "5%", NEITHER),  # the per cent sign is a factor
        ("Yes", "yes", BOTH),
        ("Yes.", "yes", LENIENTLY),
        ("0", "0", BOTH),
        ("0.0", "0", NEITHER),  # nothing is within 5 % of 0: text decides
        ("1,000", "1000", LENIENTLY),
        ("It is $41.", "40", LENIENTLY),
        ("It is dark blue.", "Dark blue", LENIENTLY),
        ("bluebell", "blue", NEITHER),
        ("9" * 400, "5", NEITHER),
        ("", "red", NEITHER),
    ],
)
def test_relaxed_accuracy(answer: str, reference: str, score: tuple[float, float]) -> None:
    assert values(vqa.relaxed(answer, sample(reference))) == score


@pytest.mark.parametrize(
    ("answer", "references", "value", "lenient"),
    [
        ("Mr. Hansen", ["mr. hansen", "Hansen"], 1, 1),
        ("  MR.   Hansen ", ["mr. hansen"], 1, 1),
        ("Hanson", ["hansen"], 5 / 6, 5 / 6),
        ("ab", ["abcd"], 0.5, 0.5),
        ("a", ["abcd"], 0, 0),
        ("It is Hansen.", ["Hansen"], 0, 1),
        ("", ["Hansen"], 0, 0),
        ("x" * 1_000_000, ["Hansen"], 0, 0),
    ],
)
def test_anls(answer: str, references: list[str], value: float, lenient: float) -> None:
    score = vqa.anls(answer, sample(references[0], answers=references))
    assert values(score) == pytest.approx((value, lenient))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The Stop-sign!", "stop sign"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("it's", "it 's"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("3.5 m.", "3.5 m"),
        ("1,000", "1000"),
        ("a/b", "b"),  # the article goes once the slash is a space
        ("(red) car", "red car"),
        ("no\nentry", "no entry"),
    ],
)
def test_evalai_normalization(text: str, left: str) -> None:
    assert vqa.evalai_normalize(text) == left


def test_vqa_accuracy_leaves_each_person_out() -> None:
    people = ["stop"] * 3 + ["the stop"] + ["a stop sign"] * 2 + ["go"] * 4
    expected = sample("stop", answers=people)
    assert vqa.vqa_accuracy("Stop.", expected).value == 1  # four gave it, any three of them suffice
    # Two people gave this one: each of them sees one other, the eight others see two.
    result = vqa.vqa_accuracy("stop sign", expected).value
    assert result == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert values(vqa.vqa_accuracy("it says go", expected)) == LENIENTLY
    assert values(vqa.vqa_accuracy("left", expected)) == NEITHER


@pytest.mark.parametrize(
    ("answer", "reference", "score", "counts"),
    [
        ("Yes.", "yes", BOTH, (1, 0, 0)),
        ("yes, there is", "yes", BOTH, (1, 0, 0)),
        ("No", "yes", NEITHER, (0, 0, 1)),
        ("Yes", "no", NEITHER, (0, 1, 0)),
        ("no.", "no", BOTH, (0, 0, 0)),
        ("The answer is yes", "yes", LENIENTLY, (0, 0, 1)),
        ("Yesterday", "yes", NEITHER, (0, 0, 1)),
        ("", "no", NEITHER, (0, 0, 0)),
    ],
)
def test_pope(
    answer: str, reference: str, score: tuple[float, float], counts: tuple[int, int, int]
) -> None:
    result = pope.score(answer, sample(reference))
    assert values(result) == score
    assert tuple(result.parts[name] for name in ("tp", "fp", "fn")) == counts


@pytest.mark.parametrize(
    ("answer", "answers", "dataset", "right"),
    [
        ("The word is HOUSE.", ["house"], "IIIT5K", True),
        ("hous", ["house"], "IIIT5K", False),
        ("a\nb", ["a b"], "SROIE", True),
        ("19.00 EUR", ["20", "19.00"], "SROIE", True),
        ("x+y = 2", ["x + y=2"], "HME100k", True),
        ("X + y = 2", ["x + y = 2"], "HME100k", False),
        ("x+y", ["x + y"], "IIIT5K", False),
        ("", ["house"], "IIIT5K", False),
    ],
)
def test_ocrbench(answer: str, answers: list[str], dataset: str, right: bool) -> None:
    expected = sample(answers[0], answers=answers, dataset=dataset)
    assert ocrbench.contains(answer, expected).value == right


@pytest.mark.parametrize(
    ("answer", "kind", "decimals", "reference", "score"),
    [
        ("14", "integer", 0, "14", BOTH),
        ("The number missing in the sequence is 14.", "integer", 0, "14", BOTH),
        ("**Answer: 14**", "integer", 0, "14", BOTH),
        ("3 + 11 = 14", "integer", 0, "14", BOTH),
        ("14 units", "integer", 0, "14", LENIENTLY),  # the hint asks for the value at the end
        ("14.0", "integer", 0, "14", BOTH),
        ("1,400", "integer", 0, "1400", BOTH),
        ("1.447", "float", 2, "1.45", BOTH),
        ("Luca needs $1.45", "float", 2, "1.45", BOTH),
        ("1.4", "float", 2, "1.45", NEITHER),
        ("[2007, 2008]", "list", 0, "[2007, 2008]", BOTH),
        ("Between [2007,2008].", "list", 0, "[2007, 2008]", BOTH),
        ("2007 and 2008", "list", 0, "[2007, 2008]", NEITHER),
        ("1e999", "integer", 0, "14", NEITHER),
        ("", "integer", 0, "14", NEITHER),
    ],
)
def test_numbers_of_mathvista(
    answer: str, kind: str, decimals: int, reference: str, score: tuple[float, float]
) -> None:
    expected = sample(reference, kind=kind, decimals=decimals, options=[])
    assert values(mathvista.score(answer, expected)) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("B", BOTH),
        ("The correct answer is (B) 8/11.", BOTH),
        ("8/11", BOTH),
        ("8/ 11", BOTH),  # the option that it is most like
        ("It shows (A), so\nanswer: B", BOTH),
        ("(C)", NEITHER),
        ("I can't say which of these it might be", NEITHER),  # like none of them
        ("", NEITHER),
    ],
)
def test_choices_of_mathvista(answer: str, score: tuple[float, float]) -> None:
    expected = sample("8/11", kind="choice", decimals=0, options=["3/11", "8/11", "6/11", "3/5"])
    assert values(mathvista.score(answer, expected)) == score


SCORERS: dict[str, tuple[Callable[[str, Sample], Score], Sample]] = {
    "letter": (vqa.letter, sample("B", options=CATS)),
    "letter or text": (vqa.letter_or_text, sample("B", options=CATS)),
    "mmmu": (vqa.mmmu_choice, sample("B", options=CATS)),
    "open": (mmmu.open_answer, sample("7")),
    "relaxed": (vqa.relaxed, sample("7")),
    "anls": (vqa.anls, sample("seven")),
    "vqa": (vqa.vqa_accuracy, sample("7", answers=["7"] * 10)),
    "pope": (pope.score, sample("yes")),
    "ocrbench": (ocrbench.contains, sample("7", answers=["7"], dataset="x")),
    "integer": (mathvista.score, sample("7", kind="integer", decimals=0)),
    "list": (mathvista.score, sample("[7, 8]", kind="list", decimals=0)),
    "choice": (mathvista.score, sample("a cat", kind="choice", decimals=0, options=CATS)),
}


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(
    "answer",
    [
        "." * 300_000,
        "[" * 300_000,
        "A " * 200_000,
        "is " * 200_000,
        "9" * 20_000,
        "\ud800",
        "((A",
        "nan",
    ],
    ids=["marks", "brackets", "letters", "words", "digits", "half a pair", "open bracket", "nan"],
)
def test_no_answer_stops_a_scorer(name: str, answer: str) -> None:
    scorer, expected = SCORERS[name]
    assert scorer(answer, expected).value == 0

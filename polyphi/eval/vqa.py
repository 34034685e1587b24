"""Prompts of questions about images, and scorers of their answers: option letters, short answers, similarity.

>>> letter("B. a cat", sample).value               # reference "B"; meta: options ["a dog", "a cat"]
1.0

Instructions are LLaVA-1.5's, as the Phi-3 report has them and the report reuses them (section 4.1.1). A score's value
is the benchmark's own strict rule; its part `lenient` is what a reader would take the same answer for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import LENIENT, Score
from polyphi.eval.scorers import references
from polyphi.eval.sources import Source
from polyphi.messages import Image, Message, Text

CHOOSE = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
TOLERANCE = 0.05
"""Of relaxed accuracy (ChartQA)."""
TAU = 0.5
"""Answers less alike than this to all references score nothing (ANLS: DocVQA, InfoVQA)."""
AGREE = 3
"""People, besides the one left out, who must have given an answer for it to be wholly right (TextVQA)."""
READ = 10_000
"""Characters of an answer that lenient readings look at."""
MARKS = ".,;:!?\"'()[]{}*`"


# ---------------------------------------------------------------------- prompts


def ask(question: str, images: Sequence[Image], instruction: str) -> Message:
    """Pictures first, then the question and how to answer it, without a system prompt."""
    return Message.user(*images, Text(f"{question}\n{instruction}"))


def letters(options: Sequence[str]) -> dict[str, str]:
    """Options by their letters."""
    return {chr(ord("A") + i): str(option) for i, option in enumerate(options)}


def lettered(question: str, options: Sequence[str]) -> str:
    """A question and its options, one a line: "A. ..."."""
    return "\n".join([question, *(f"{a}. {o}" for a, o in letters(options).items())])


@dataclass(frozen=True)
class Question:
    """A question about images with options, which are listed below it unless its text holds them (`list_options`)."""

    id: str
    images: Sequence[Image]
    text: str
    options: Sequence[str]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    list_options: bool = True

    def sample(self, source: Source) -> Sample:
        text = lettered(self.text, self.options) if self.list_options else self.text
        prompt, meta = ask(text, self.images, CHOOSE), {**self.meta, "options": self.options}
        return source.sample(self.id, prompt, self.answer, meta)


def interleaved(text: str, images: Mapping[int, Image]) -> Message:
    """A question in which "<image 2>" stands for an image, with the images in their places (MMMU)."""
    parts: list[Text | Image] = []
    for piece in re.split(r"(<image \d+>)", text):
        number = re.fullmatch(r"<image (\d+)>", piece)
        if number and int(number[1]) in images:
            parts.append(images[int(number[1])])
        elif piece:
            parts.append(Text(piece))
    return Message.user(*parts)


# ---------------------------------------------------------------------- choices


def letter(answer: str, sample: Sample) -> Score:
    """The option's letter, alone or at the beginning ("B", "(b)", "B. a cat"), equals the reference's;
    `meta["options"]` has the options. Lenient: an option's text, or a letter anywhere."""
    options = sample.meta["options"]
    return _chosen(first_letter(answer, options), answer, sample)


def letter_or_text(answer: str, sample: Sample) -> Score:
    """As `letter`, or the option's text without its letter: what a spoken question may be answered with."""
    options = sample.meta["options"]
    return _chosen(first_letter(answer, options) or _named(answer, options), answer, sample)


def mmmu_choice(answer: str, sample: Sample) -> Score:
    """The letter that MMMU's parser finds equals the reference's; where that one would draw at random, none."""
    return _chosen(mmmu_letter(answer, sample.meta["options"]), answer, sample)


def _chosen(strict: str, answer: str, sample: Sample) -> Score:
    lenient = strict or meant_letter(answer, sample.meta["options"])
    return Score(float(strict == sample.answer), strict, {LENIENT: float(lenient == sample.answer)})


def first_letter(answer: str, options: Sequence[str]) -> str:
    """The letter that an answer consists of, or begins with before a mark; "" if there is none of an option."""
    # "A dog" begins with an article, not with a letter: what follows must be a mark or the end.
    match = re.fullmatch(r"\W*([A-Za-z])\W*", answer) or re.match(
        r"[\s(\[*\"']*([A-Z])[.):\]\n]", answer
    )
    letter = match[1].upper() if match else ""
    return letter if letter in letters(options) else ""


def mmmu_letter(answer: str, options: Sequence[str]) -> str:
    """The letter as MMMU's parser finds it: the last "(B)", else "B " or "B.", else, in more than five words, the text
    of an option that comes last; "" where there is none."""
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    text, known = f" {answer} ", letters(options)
    if bracketed := [a for a in known if f"({a})" in text]:
        return max(bracketed, key=lambda a: text.rfind(f"({a})"))
    # The parser's own rule: a letter counts at the end of a longer word too, but is placed where it stands alone.
    for mark in (" ", "."):
        if matches := [a for a in known if a + mark in text]:
            return max(matches, key=lambda a: text.rfind(f" {a} "))
    if len(text.split()) > 5:
        lowered, texts = text.lower(), {a: o.lower() for a, o in known.items() if o}
        if matches := [a for a, o in texts.items() if o in lowered]:
            return max(matches, key=lambda a: lowered.rfind(texts[a]))
    return ""


def meant_letter(answer: str, options: Sequence[str]) -> str:
    """The letter that a reader would find: that of the option whose text it is, or the last that stands alone."""
    # "A" and "I" are words too: they count in brackets, before a mark or at the end.
    last = re.findall(r"(?<![\w'])(?:[B-HJ-Z](?![\w'])|[AI](?=[.,;:)\]!?*]|\s*$))", answer[-READ:])
    return _named(answer, options) or (last[-1] if last and last[-1] in letters(options) else "")


def _named(answer: str, options: Sequence[str]) -> str:
    """The letter of the only option whose text the answer is."""
    text = plain(answer)
    matches = [a for a, o in letters(options).items() if text and plain(o) == text]
    return matches[0] if len(matches) == 1 else ""


def plain(text: str) -> str:
    """Words without regard to case and to marks around them."""
    words = (word.strip(MARKS) for word in text[:READ].casefold().split())
    return " ".join(word for word in words if word)


def stands(phrase: str, text: str) -> bool:
    """Whether a phrase stands in a text, as whole words; both `plain`."""
    return bool(phrase) and f" {phrase} " in f" {text} "


# ---------------------------------------------------------------------- short answers


def relaxed(answer: str, sample: Sample) -> Score:
    """Equal without regard to case, or for numbers within 5 % (ChartQA, as Qwen-VL has it: a per cent sign is a factor,
    and with a full stop a word is another one). Lenient: so is a word of it, or the reference stands in it."""
    text, accepted = answer.strip(), references(sample)
    right = max(_relaxed(text, reference) for reference in accepted)
    words = {word.strip(MARKS + "$").replace(",", "") for word in [text, *text[:READ].split()]}
    readings = [_relaxed(word, reference) for word in words for reference in accepted]
    readings += [float(stands(plain(reference), plain(text))) for reference in accepted]
    return Score(right, text, {LENIENT: max([right, *readings])})


def _relaxed(answer: str, reference: str) -> float:
    a, r = _number(answer), _number(reference)
    if a is not None and r:
        return float(abs(a - r) / abs(r) <= TOLERANCE)
    return float(answer.lower() == reference.lower())


def _number(text: str) -> float | None:
    digits = text.rstrip("%").strip()
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", digits):
        return None
    return float(digits) / (100 if text.endswith("%") else 1)


def anls(answer: str, sample: Sample) -> Score:
    """Similarity of the answer to the most similar reference, by characters; 0 below a half (DocVQA's average
    normalized Levenshtein similarity). Lenient: 1 where a reference stands in it."""
    text = " ".join(answer.lower().split())
    accepted = [" ".join(reference.lower().split()) for reference in references(sample)]
    value = max(similarity(text, reference) for reference in accepted)
    contained = any(stands(plain(reference), plain(text)) for reference in accepted)
    return Score(value, text, {LENIENT: max(value, float(contained))})


def similarity(a: str, b: str) -> float:
    """1 less edits over the length of the longer text; 0 where that is below a half."""
    length = max(len(a), len(b))
    # So many edits at least: of a long answer there is nothing to compute.
    if length - min(len(a), len(b)) > (1 - TAU) * length:
        return 0.0
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as e:
        raise ValueError(
            "text similarity needs rapidfuzz, which is not installed; pip install 'polyphi[eval]'"
        ) from e
    value = 1 - Levenshtein.distance(a, b) / length if length else 1.0
    return value if value >= TAU else 0.0


# Words that EvalAI's processor writes with their apostrophes: forms that lack one are completed. Its table holds these.
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _APOSTROPHES.split()
    for i, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMERALS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}


def processed(text: str) -> str:
    """An answer as EvalAI's processor leaves it, by which VQA accuracy compares (TextVQA): without case, marks and
    articles, numerals to ten as digits, contractions with their apostrophes."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = before = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in ';/[]"{}()=+\\_-><@`!':
        beside = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if beside else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [NUMERALS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(w, w) for w in words if w not in ("a", "an", "the"))


def vqa_accuracy(answer: str, sample: Sample) -> Score:
    """The mean, over the people who answered, of min(1, n / 3), n of the others having given this answer;
    `meta["answers"]` are theirs. Lenient: the best of their answers that stand in it."""
    people = [processed(a) for a in sample.meta["answers"]]
    text = processed(answer[:READ])

    def agreement(text: str) -> float:
        others = [people.count(text) - (left_out == text) for left_out in people]
        return sum(min(1.0, n / AGREE) for n in others) / max(1, len(others))

    value = agreement(text)
    contained = [agreement(a) for a in set(people) if stands(a, text)]
    return Score(value, text, {LENIENT: max([value, *contained])})

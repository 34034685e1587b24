"""Prompts for questions about images, and scorers of their answers: option letters, short answers, similarity.

>>> letter("B. a cat", sample).value               # reference "B"; meta: options ["a dog", "a cat"]
1.0

The instructions are LLaVA-1.5's, which the Phi-3 report and the report (section 4.1.1) use. A score's value follows the
benchmark's strict rule; its part `lenient` also accepts other forms of the same answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyphi.data.sample import Sample
from polyphi.runtime.installation import pip_install
from polyphi.types.messages import Message
from polyphi.types.parts import Image, Text
from polyphi_eval.benchmark import LENIENT, Score
from polyphi_eval.scorers import references
from polyphi_eval.sources import BenchmarkSource

CHOOSE = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
TOLERANCE = 0.05
"""Relative tolerance of relaxed accuracy (ChartQA)."""
TAU = 0.5
"""Similarities below this threshold count as 0 (ANLS: DocVQA, InfoVQA)."""
AGREE = 3
"""Annotators, without the one left out, who must agree with an answer for full accuracy (TextVQA)."""
MAX_CHARACTERS = 10_000
"""Characters of an answer that lenient scores use."""
MARKS = ".,;:!?\"'()[]{}*`"


# ---------------------------------------------------------------------- prompts


def ask(question: str, images: Sequence[Image], instruction: str) -> Message:
    """Return a prompt: the images, the question and the instruction, without a system prompt."""
    return Message.user(*images, Text(f"{question}\n{instruction}"))


def letters(options: Sequence[str]) -> dict[str, str]:
    """Return the options by letter."""
    return {chr(ord("A") + i): str(option) for i, option in enumerate(options)}


def with_options(question: str, options: Sequence[str]) -> str:
    """Return a question and its options, one per line: "A. ..."."""
    return "\n".join([question, *(f"{a}. {o}" for a, o in letters(options).items())])


@dataclass(frozen=True)
class Question:
    """A multiple-choice question about images; `list_options` appends the options to its text."""

    id: str
    images: Sequence[Image]
    text: str
    options: Sequence[str]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    list_options: bool = True

    def sample(self, source: BenchmarkSource) -> Sample:
        text = with_options(self.text, self.options) if self.list_options else self.text
        prompt, meta = ask(text, self.images, CHOOSE), {**self.meta, "options": self.options}
        return source.sample(self.id, prompt, self.answer, meta)


def interleaved(text: str, images: Mapping[int, Image]) -> Message:
    """Return a question with images in place of "<image 2>" (MMMU)."""
    parts: list[Text | Image] = []
    for part in re.split(r"(<image \d+>)", text):
        number = re.fullmatch(r"<image (\d+)>", part)
        if number and int(number[1]) in images:
            parts.append(images[int(number[1])])
        elif part:
            parts.append(Text(part))
    return Message.user(*parts)


# ---------------------------------------------------------------------- choices


def letter(answer: str, sample: Sample) -> Score:
    """Score 1 if the answer's letter, alone or at the beginning ("B", "(b)", "B. a cat"), is the reference;
    `meta["options"]` has the options. Lenient: an option's text, or a letter anywhere."""
    options = sample.meta["options"]
    return _letter_score(first_letter(answer, options), answer, sample)


def letter_or_text(answer: str, sample: Sample) -> Score:
    """Score as `letter`, but also accept the option's text without its letter (for spoken questions)."""
    options = sample.meta["options"]
    option = first_letter(answer, options) or _letter_of_text(answer, options)
    return _letter_score(option, answer, sample)


def mmmu_choice(answer: str, sample: Sample) -> Score:
    """Score 1 if MMMU's parser extracts the reference's letter; where that parser draws at random, 0."""
    return _letter_score(mmmu_letter(answer, sample.meta["options"]), answer, sample)


def _letter_score(strict: str, answer: str, sample: Sample) -> Score:
    lenient = strict or lenient_letter(answer, sample.meta["options"])
    return Score(float(strict == sample.answer), strict, {LENIENT: float(lenient == sample.answer)})


def first_letter(answer: str, options: Sequence[str]) -> str:
    """Return the option letter that is the answer, or its beginning before a punctuation mark; "" if there is none."""
    # Punctuation or the end must follow, since "A dog" begins with an article.
    match = re.fullmatch(r"\W*([A-Za-z])\W*", answer) or re.match(
        r"[\s(\[*\"']*([A-Z])[.):\]\n]", answer
    )
    letter = match[1].upper() if match else ""
    return letter if letter in letters(options) else ""


def mmmu_letter(answer: str, options: Sequence[str]) -> str:
    """Return the letter that MMMU's parser extracts: the last "(B)", else "B " or "B.", else, in answers of more than
    five words, that of the last option text; "" if there is none."""
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    text, known = f" {answer} ", letters(options)
    if bracketed := [a for a in known if f"({a})" in text]:
        return max(bracketed, key=lambda a: text.rfind(f"({a})"))
    # As in MMMU's parser, a letter may be the end of a word, but its position is that of the separate letter.
    for mark in (" ", "."):
        if matches := [a for a in known if a + mark in text]:
            return max(matches, key=lambda a: text.rfind(f" {a} "))
    if len(text.split()) > 5:
        lowered, texts = text.lower(), {a: o.lower() for a, o in known.items() if o}
        if matches := [a for a, o in texts.items() if o in lowered]:
            return max(matches, key=lambda a: lowered.rfind(texts[a]))
    return ""


def lenient_letter(answer: str, options: Sequence[str]) -> str:
    """Return the letter of the option whose text is the answer, or the last separate letter."""
    # "A" and "I" are also words, so they count only in brackets, before punctuation or at the end.
    pattern = r"(?<![\w'])(?:[B-HJ-Z](?![\w'])|[AI](?=[.,;:)\]!?*]|\s*$))"
    last = "".join(re.findall(pattern, answer[-MAX_CHARACTERS:])[-1:])
    return _letter_of_text(answer, options) or (last if last in letters(options) else "")


def _letter_of_text(answer: str, options: Sequence[str]) -> str:
    """Return the letter of the only option whose text is the answer; "" if there are none or several."""
    text = plain(answer)
    matches = [a for a, o in letters(options).items() if text and plain(o) == text]
    return matches[0] if len(matches) == 1 else ""


def plain(text: str) -> str:
    """Return the words of a text, casefolded and without surrounding marks."""
    words = (word.strip(MARKS) for word in text[:MAX_CHARACTERS].casefold().split())
    return " ".join(word for word in words if word)


def contains_phrase(phrase: str, text: str) -> bool:
    """Whether a text contains a phrase as whole words; both are `plain`."""
    return bool(phrase) and f" {phrase} " in f" {text} "


# ---------------------------------------------------------------------- short answers


def relaxed(answer: str, sample: Sample) -> Score:
    """Score 1 if equal except for case, or, for numbers, within 5 % (ChartQA's metric in Qwen-VL: a per cent sign is a
    factor, punctuation matters). Lenient: a word of the answer is, or it contains the reference."""
    text, accepted = answer.strip(), references(sample)
    right = max(_relaxed(text, reference) for reference in accepted)
    parts = [text, *text[:MAX_CHARACTERS].split()]
    words = {part.strip(MARKS + "$").replace(",", "") for part in parts}
    lenient = [_relaxed(word, reference) for word in words for reference in accepted]
    lenient += [float(contains_phrase(plain(reference), plain(text))) for reference in accepted]
    return Score(right, text, {LENIENT: max([right, *lenient])})


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
    """Score by the similarity to the most similar reference, 0 below `TAU` (DocVQA's average normalized Levenshtein
    similarity). Lenient: 1 if the answer contains a reference."""
    text = " ".join(answer.lower().split())
    accepted = [" ".join(reference.lower().split()) for reference in references(sample)]
    value = max(similarity(text, reference) for reference in accepted)
    contained = any(contains_phrase(plain(reference), plain(text)) for reference in accepted)
    return Score(value, text, {LENIENT: max(value, float(contained))})


def similarity(a: str, b: str) -> float:
    """Return 1 - edits / length of the longer text; 0 if that is below `TAU`."""
    length = max(len(a), len(b))
    # A lower bound of the edits, which avoids the computation for long answers.
    if length - min(len(a), len(b)) > (1 - TAU) * length:
        return 0.0
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as e:
        raise ValueError(
            f"text similarity needs rapidfuzz, which is not installed; {pip_install('eval')}"
        ) from e
    value = 1 - Levenshtein.distance(a, b) / length if length else 1.0
    return value if value >= TAU else 0.0


# EvalAI's table of words with apostrophes: its processor restores a missing one.
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


def evalai_normalize(text: str) -> str:
    """Normalize an answer as EvalAI's processor does for VQA accuracy (TextVQA): lower case, no punctuation and
    articles, numerals to ten as digits, contractions with their apostrophes."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = original = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in ';/[]"{}()=+\\_-><@`!':
        next_to_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if next_to_space else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [NUMERALS.get(word, word) for word in text.split()]
    return " ".join(CONTRACTIONS.get(w, w) for w in words if w not in ("a", "an", "the"))


def vqa_accuracy(answer: str, sample: Sample) -> Score:
    """Score by the mean of min(1, n / 3) over the annotators, where n of the others gave this answer; `meta["answers"]`
    has their answers. Lenient: the best of their answers that this one contains."""
    annotations = [evalai_normalize(a) for a in sample.meta["answers"]]
    text = evalai_normalize(answer[:MAX_CHARACTERS])

    def agreement(text: str) -> float:
        others = [annotations.count(text) - (left_out == text) for left_out in annotations]
        return sum(min(1.0, n / AGREE) for n in others) / max(1, len(others))

    value = agreement(text)
    contained = [agreement(a) for a in set(annotations) if contains_phrase(a, text)]
    return Score(value, text, {LENIENT: max([value, *contained])})

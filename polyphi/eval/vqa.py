"""How questions about pictures are asked and their answers scored: letters of choices, short answers, numbers.

Instructions are LLaVA-1.5's, as the Phi-3 report has them and the report reuses them (section 4.1.1).
"""

import re
from collections.abc import Sequence

from polyphi.chat import Image, Message, Text
from polyphi.data.shards import Sample
from polyphi.eval.scorers import references
from polyphi.eval.suite import LENIENT
from polyphi.eval.task import Score

CHOOSE = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
TOLERANCE = 0.05
"""Of relaxed accuracy (ChartQA)."""


def ask(question: str, images: Sequence[Image], instruction: str) -> Message:
    """Pictures first, then the question and how to answer it, without a system prompt."""
    return Message.user(*images, Text(f"{question}\n{instruction}"))


def relaxed(answer: str, sample: Sample) -> Score:
    """Equal without regard to case, or for numbers within 5 % (ChartQA; per cent signs are read as a factor)."""
    text = answer.strip().removesuffix(".")
    right = max(_relaxed(text, reference) for reference in references(sample))
    found = [_relaxed(word.strip(".,;:"), r) for word in text.split() for r in references(sample)]
    return Score(right, text, {LENIENT: max([right, *found])})


def _relaxed(answer: str, reference: str) -> float:
    a, r = _number(answer), _number(reference)
    if a is not None and r:
        return float(abs(a - r) / abs(r) <= TOLERANCE)
    return float(answer.lower() == reference.lower())


def _number(text: str) -> float | None:
    text = text.strip()
    percent = text.endswith("%")
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text.rstrip("%")):
        return None
    return float(text.rstrip("%")) / (100 if percent else 1)

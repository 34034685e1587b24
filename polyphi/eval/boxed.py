"""Answers in mathematics: asked for in a box, compared by math-verify.

>>> verified("So it is $\\\\boxed{0.5}$.", sample).value       # the reference is \\frac{1}{2}
1.0
"""

import logging
import threading

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import LENIENT, Score
from polyphi.eval.scorers import references
from polyphi.messages import Message

ASK = "Please reason step by step, and put your final answer within \\boxed{}."
"""Our own words: the report prints none."""
SECONDS = 2
"""That reading or comparing an expression may take (9^{9^{9^9}} takes any time). It's an alarm, so that there is no
such bound in other threads than the main one."""
LONGEST_BOX = 500
LONGEST_END = 2000
"""Characters that are parsed, at most: of a box, and of the end of an answer without one."""


def ask(problem: str) -> Message:
    return Message.user(f"{problem.strip()}\n\n{ASK}")


def last_box(text: str) -> str | None:
    """What stands in the last \\boxed{...} of a text; None where none is closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None


def verified(answer: str, sample: Sample) -> Score:
    """What the last box holds equals the reference; generously, where there is no box, what the answer's end says."""
    box, reference = last_box(answer), references(sample)[0]
    if box is None:
        return Score(0.0, "", {LENIENT: float(equal(reference, answer[-LONGEST_END:]))})
    right = float(len(box) <= LONGEST_BOX and equal(reference, f"${box}$"))
    return Score(right, box[:LONGEST_BOX], {LENIENT: right})


def equal(reference: str, text: str) -> bool:
    """Whether a text gives the wanted expression (LaTeX without dollars), by math-verify."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # what takes too long is wrong
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else 0
    try:
        expressions = [parse(t, parsing_timeout=seconds) for t in (f"${reference}$", text)]
        return bool(verify(*expressions, timeout_seconds=seconds))
    except Exception:  # what sympy meets in answers is not for it to refuse: wrong
        return False

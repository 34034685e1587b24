"""Verifiers: rules that say whether an answer is right, and why not.

>>> number(12)("3 + 9 = 12\\nAnswer: 12").right
True
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from polyphi.services import sandbox

LIMITS = sandbox.Limits()


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why. The model reads the reason when it answers anew, so it never tells what
    would have been right."""

    right: bool
    reason: str


Verify = Callable[[str], Verdict]
READ = 4000
"""Characters at the end of an answer that math-verify reads: it logs what takes it too long."""


def final(text: str) -> str:
    """What an answer ends in: the last \\boxed{...}, else what follows the last "Answer:" in its line, else its last
    line."""
    at = text.rfind("\\boxed{")
    if at >= 0:
        start, depth = at + len("\\boxed{"), 1
        for i in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if not depth:
                return text[start:i].strip()
    *_, last = text.strip().split("\n")
    if marks := [m.end() for m in re.finditer("answer:", text, re.IGNORECASE)]:
        last = text[marks[-1] :].strip().partition("\n")[0]
    return last.strip()


def exact(*wanted: str) -> Verify:
    """The end of the answer (`final`) is one of `wanted`, whatever its case, white space and final stop."""

    def plain(text: str) -> str:
        return " ".join(text.casefold().split()).strip(" .!。")

    allowed = {plain(text) for text in wanted}

    def verify(text: str) -> Verdict:
        found = final(text)
        return verdict_on(plain(found) in allowed, found)

    return verify


_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")


def number(wanted: int | float | str, tolerance: float = 0.0) -> Verify:
    """The last number at the end of the answer (`final`) is `wanted`, within `tolerance`: 1,234 and 1234.0 are equal,
    and so are 1/2 and 0.5."""
    target = Fraction(str(wanted))

    def verify(text: str) -> Verdict:
        found = _NUMBER.findall(final(text).replace("\u2212", "-")[-1000:])
        if not found:
            return Verdict(False, "it doesn't end in a number")
        try:
            value = Fraction(found[-1].replace(",", ""))
        except (ValueError, ZeroDivisionError):
            return Verdict(False, f"{found[-1]} is no number")
        return verdict_on(abs(value - target) <= Fraction(str(tolerance)), found[-1])

    return verify


def mathematics(wanted: str) -> Verify:
    """The answer equals `wanted`, mathematically (math-verify): LaTeX or plain, an expression, a set, an interval.
    Main thread only: math-verify stops long computations by a signal."""
    try:
        from math_verify import parse
        from math_verify import verify as equal
    except ImportError:
        raise ValueError(
            "verifying mathematics needs math-verify, which is not installed; pip install 'polyphi[curate]'"
        ) from None
    # Without dollars only the last number of a formula would be read.
    gold = parse(wanted if "$" in wanted or "\\boxed" in wanted else f"${wanted}$")
    if not gold:
        raise ValueError(
            f"expected a mathematical expression as the right answer, found {wanted!r}"
        )

    def verify(text: str) -> Verdict:
        found = parse(text[-READ:])
        if not found:
            return Verdict(False, "no mathematical answer can be read in it")
        return verdict_on(equal(gold, found), str(found[-1]))

    return verify


def program(text: str) -> str:
    """The code in an answer: its last fenced block, or all of it where there is none."""
    blocks = re.findall(
        r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", text, re.DOTALL | re.IGNORECASE
    )
    return str(blocks[-1]) if blocks else text


def tests(asserts: str, limits: sandbox.Limits = LIMITS, *, weak: bool = False) -> Verify:
    """The answer's code runs, and then `asserts` after it in the same process, to their end. An early exit is no pass;
    code that looks for what tells the end could still fake it: where that matters, use `outputs`."""
    done = hashlib.sha256(asserts.encode()).hexdigest()

    def verify(text: str) -> Verdict:
        code = f"{program(text)}\n\n{asserts}\n\nprint()\nprint({done!r})\n"
        result = sandbox.run(code, limits=limits, weak=weak)
        if result.ended == "ok":
            if result.stdout.rstrip().endswith(done):
                return Verdict(True, "its code passes all tests")
            return Verdict(False, "its code ends before the tests do")
        return Verdict(False, _failure(result))

    return verify


def outputs(
    cases: Sequence[tuple[str, str]],
    limits: sandbox.Limits = LIMITS,
    *,
    weak: bool = False,
) -> Verify:
    """For each (input, output) the answer's code, given the input on stdin, prints the output (white space at the ends
    of lines and of all aside). The right output never enters the sandbox."""

    def plain(text: str) -> list[str]:
        return [line.rstrip() for line in text.rstrip().split("\n")]

    def verify(text: str) -> Verdict:
        for given, wanted in cases:
            result = sandbox.run(program(text), stdin=given, limits=limits, weak=weak)
            if result.ended != "ok":
                return Verdict(False, _failure(result))
            if plain(result.stdout) != plain(wanted):
                return Verdict(
                    False, f"for the input {given!r:.200} its code prints {result.stdout!r:.200}"
                )
        return Verdict(True, f"its code prints what it should for {len(cases)} inputs")

    return verify


def _failure(result: sandbox.Result) -> str:
    ends = {
        "timeout": "its code takes too long",
        "memory": "its code takes too much memory",
        "output": "its code prints too much",
        "killed": "its code was killed",
    }
    last = result.stderr.rstrip().rpartition("\n")[2]
    return ends.get(result.ended, f"its code fails: {last:.300}")


def every(*verifiers: Verify) -> Verify:
    """Right where all say so, asked in order; the first that doesn't gives the reason."""
    assert verifiers

    def verify(text: str) -> Verdict:
        for one in verifiers:
            verdict = one(text)
            if not verdict.right:
                break
        return verdict

    return verify


def verdict_on(right: bool, found: str) -> Verdict:
    """The verdict of a comparison, with what was compared."""
    return Verdict(right, f"{found!r:.200} is {'right' if right else 'not right'}")

"""Verifiers: functions that check whether an answer is right, with a reason.

>>> number(12)("3 + 9 = 12\\nAnswer: 12").right
True
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from polyphi.runtime.installation import pip_install
from polyphi_eval.services import sandbox

LIMITS = sandbox.Limits()


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the reason. The model sees the reason before a new attempt, so it never contains
    the right answer."""

    right: bool
    reason: str


Verify = Callable[[str], Verdict]
READ = 4000
"""Maximum characters at the end of an answer that math-verify parses: it logs texts that take too long."""


def final(text: str) -> str:
    """The final answer in a text: the last \\boxed{...}, else the text after the last "Answer:" in its line, else the
    last line."""
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


def exact(*expected: str) -> Verify:
    """Checks that the final answer (`final`) is one of `expected`, ignoring case, white space and a final stop."""

    def plain(text: str) -> str:
        return " ".join(text.casefold().split()).strip(" .!。")

    allowed = {plain(text) for text in expected}

    def verify(text: str) -> Verdict:
        answer = final(text)
        return verdict_on(plain(answer) in allowed, answer)

    return verify


_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")


def number(expected: int | float | str, tolerance: float = 0.0) -> Verify:
    """Checks that the last number of the final answer (`final`) is `expected`, within `tolerance`: 1,234 and 1234.0 are
    equal, and so are 1/2 and 0.5."""
    target = Fraction(str(expected))

    def verify(text: str) -> Verdict:
        numbers = _NUMBER.findall(final(text).replace("\u2212", "-")[-1000:])
        if not numbers:
            return Verdict(False, "it doesn't end in a number")
        try:
            value = Fraction(numbers[-1].replace(",", ""))
        except (ValueError, ZeroDivisionError):
            return Verdict(False, f"{numbers[-1]} is no number")
        return verdict_on(abs(value - target) <= Fraction(str(tolerance)), numbers[-1])

    return verify


_EQUATION = re.compile(
    r"(?<![\d.,(-])(?<![-+*/x÷×^=(] )(\d+(?: [-+x] \d+)+) = (\d+)(?![.,]?\d| [-+*/x÷×=])"
)


def equations(text: str) -> list[tuple[str, bool]]:
    """The equations between whole numbers in a text, such as 3 + 4 x 2 = 11, each with whether it is right. Those with
    fractions, brackets or other signs are left out."""
    return [
        (f"{left} = {result}", _value(left) == int(result))
        for left, result in _EQUATION.findall(text)
    ]


def _value(expression: str) -> int:
    """The value of an expression with +, - and x, products first."""
    total = 0
    for sign, term in re.findall(r"(?:^|([-+]) )(\d+(?: x \d+)*)", expression):
        value = 1
        for factor in term.split(" x "):
            value *= int(factor)
        total += -value if sign == "-" else value
    return total


def mathematics(expected: str) -> Verify:
    """Checks that the answer equals `expected` mathematically (math-verify): LaTeX or plain text, an expression, a set,
    an interval. Main thread only: math-verify stops long computations by a signal."""
    try:
        from math_verify import parse
        from math_verify import verify as equal
    except ImportError:
        raise ValueError(
            f"verifying mathematics needs math-verify, which is not installed; {pip_install('curate')}"
        ) from None
    # Without dollar signs math-verify parses only the last number of a formula.
    gold = parse(expected if "$" in expected or "\\boxed" in expected else f"${expected}$")
    if not gold:
        raise ValueError(
            f"expected a mathematical expression as the right answer, found {expected!r}"
        )

    def verify(text: str) -> Verdict:
        parsed = parse(text[-READ:])
        if not parsed:
            return Verdict(False, "no mathematical answer can be read in it")
        return verdict_on(equal(gold, parsed), str(parsed[-1]))

    return verify


def program(text: str) -> str:
    """The code in an answer: its last fenced block, or the whole text without one."""
    blocks = re.findall(
        r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", text, re.DOTALL | re.IGNORECASE
    )
    return str(blocks[-1]) if blocks else text


def tests(asserts: str, limits: sandbox.Limits = LIMITS, *, weak: bool = False) -> Verify:
    """Checks that the answer's code and then `asserts` run to the end, in one process. An early exit fails. Code that
    searches for the end marker could fake a pass: where that matters, use `outputs`."""
    end_marker = hashlib.sha256(asserts.encode()).hexdigest()

    def verify(text: str) -> Verdict:
        code = f"{program(text)}\n\n{asserts}\n\nprint()\nprint({end_marker!r})\n"
        result = sandbox.run(code, limits=limits, weak=weak)
        if result.ended == "ok":
            if result.stdout.rstrip().endswith(end_marker):
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
    """Checks for each (input, output) that the answer's code prints the output for the input on stdin, ignoring white
    space at the ends of lines and of the text. The right output never enters the sandbox."""

    def plain(text: str) -> list[str]:
        return [line.rstrip() for line in text.rstrip().split("\n")]

    def verify(text: str) -> Verdict:
        for stdin, expected in cases:
            result = sandbox.run(program(text), stdin=stdin, limits=limits, weak=weak)
            if result.ended != "ok":
                return Verdict(False, _failure(result))
            if plain(result.stdout) != plain(expected):
                return Verdict(
                    False, f"for the input {stdin!r:.200} its code prints {result.stdout!r:.200}"
                )
        return Verdict(True, f"its code prints what it should for {len(cases)} inputs")

    return verify


def _failure(result: sandbox.SandboxResult) -> str:
    ends = {
        "timeout": "its code takes too long",
        "memory": "its code takes too much memory",
        "output": "its code prints too much",
        "disk": "its code writes too many or too large files",
        "killed": "its code was killed",
    }
    last = result.stderr.rstrip().rpartition("\n")[2]
    return ends.get(result.ended, f"its code fails: {last:.300}")


def every(*verifiers: Verify) -> Verify:
    """Checks with all verifiers in order; the first failure gives the reason."""
    assert verifiers

    def verify(text: str) -> Verdict:
        for verifier in verifiers:
            verdict = verifier(text)
            if not verdict.right:
                break
        return verdict

    return verify


def verdict_on(right: bool, answer: str) -> Verdict:
    """The verdict of a comparison, with the compared answer as the reason."""
    return Verdict(right, f"{answer!r:.200} is {'right' if right else 'not right'}")

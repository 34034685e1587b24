"""Problems with step-by-step solutions that rules can verify: sums, chains, word problems, letters, comparisons.

>>> problem = draw(Random(0), "add", 3)
>>> print(f"{problem.question}\\n{problem.solution}")
347 + 285
7 + 5 = 12, write 2, carry 1.
4 + 8 + 1 = 13, write 3, carry 1.
3 + 2 + 1 = 6, write 6.
Answer: 632
>>> verify(problem, problem.solution), verify(problem, corrupt(problem, Random(0)))
(True, False)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

from polyphi.types.messages import Message
from polyphi_eval.services import verifiers
from polyphi_eval.services.verifiers import Verdict
from polyphi_recipe.raw.packages import SOURCES
from polyphi_recipe.raw.real_text import in_split
from polyphi_recipe.syntheses import judge
from polyphi_recipe.text.lexicon import NOUNS


@dataclass(frozen=True)
class ReasoningProblem:
    """A question, the steps of its solution, and the answer. `level` is the difficulty: number of digits, or of
    operations in a chain."""

    family: str
    level: int
    question: str
    steps: tuple[str, ...]
    answer: int
    language: str = "en"

    @property
    def solution(self) -> str:
        return "\n".join((*self.steps, f"Answer: {self.answer}"))


FAMILIES = {
    "add": (2, 3, 4),
    "subtract": (2, 3),
    "multiply": (2, 3),
    "chain": (2, 3),
    "story": (2,),
    "letters": (1,),
    "compare": (2,),
}
"""Family -> its levels."""
SUMS = ("add", "subtract", "multiply", "chain", "compare")


def draw(rng: Random, family: str | None = None, level: int | None = None) -> ReasoningProblem:
    """Return a random problem; `family` and `level` are random unless given."""
    family = family or rng.choice(sorted(FAMILIES))
    level = level or rng.choice(FAMILIES[family])
    return _DRAW[family](rng, level)


def _number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _add(rng: Random, level: int) -> ReasoningProblem:
    a, b = _number(rng, level), _number(rng, level)
    return ReasoningProblem("add", level, f"{a} + {b}", tuple(addition_steps(a, b)), a + b)


def addition_steps(a: int, b: int) -> list[str]:
    """Return the steps of column addition from the right: "7 + 5 = 12, write 2, carry 1."."""
    steps, carry, digit_count = [], 0, max(len(str(a)), len(str(b)))
    for column in range(digit_count):
        x, y = a // 10**column % 10, b // 10**column % 10
        total = x + y + carry
        equation = f"{x} + {y} + {carry} = {total}" if carry else f"{x} + {y} = {total}"
        last = column == digit_count - 1
        carry = total // 10
        steps.append(
            f"{equation}, write {total}."
            if last or not carry
            else f"{equation}, write {total % 10}, carry {carry}."
        )
    return steps


def _subtract(rng: Random, level: int) -> ReasoningProblem:
    a, b = sorted((_number(rng, level), _number(rng, level)), reverse=True)
    return ReasoningProblem("subtract", level, f"{a} - {b}", tuple(subtraction_steps(a, b)), a - b)


def subtraction_steps(a: int, b: int) -> list[str]:
    """Return the steps of column subtraction from the right: "13 - 7 = 6, write 6, borrow 1."."""
    steps, borrowed = [], 0
    for column in range(len(str(a))):
        x, y = a // 10**column % 10, b // 10**column % 10
        borrow = int(x - y - borrowed < 0)
        difference = x + 10 * borrow - y - borrowed
        equation = f"{x + 10 * borrow} - {y}" + (f" - {borrowed}" if borrowed else "")
        steps.append(
            f"{equation} = {difference}, write {difference}" + (", borrow 1." if borrow else ".")
        )
        borrowed = borrow
    return steps


def _multiply(rng: Random, level: int) -> ReasoningProblem:
    a, b = _number(rng, level), rng.randrange(2, 10)
    steps, carry = [], 0
    for column in range(level):
        x = a // 10**column % 10
        total = x * b + carry
        equation = f"{x} x {b} + {carry} = {total}" if carry else f"{x} x {b} = {total}"
        last, carry = column == level - 1, total // 10
        steps.append(
            f"{equation}, write {total}."
            if last or not carry
            else f"{equation}, write {total % 10}, carry {carry}."
        )
    return ReasoningProblem("multiply", level, f"{a} x {b}", tuple(steps), a * b)


def _chain(rng: Random, level: int) -> ReasoningProblem:
    value = rng.randrange(2, 20)
    question, steps = str(value), []
    for _ in range(level):
        operand, plus = rng.randrange(1, 10), rng.random() < 0.5
        plus = plus or operand > value
        after = value + operand if plus else value - operand
        sign = "+" if plus else "-"
        question += f" {sign} {operand}"
        steps.append(f"{value} {sign} {operand} = {after}.")
        value = after
    return ReasoningProblem("chain", level, question, tuple(steps), value)


# Word problems with two changes to a number of things {x}: {a} at first, {b} added, {c} removed.
_STORIES: dict[str, str] = {
    "en": "There are {a} {x} in a box. We add {b} and take away {c}. How many {x} are left?",
    "fr": "Il y a {a} {x} dans une boîte. On ajoute {b} et on enlève {c}. Combien de {x} reste-t-il ?",
    "de": "In einer Kiste sind {a} {x}. Wir legen {b} dazu und nehmen {c} weg. Wie viele {x} bleiben?",
    "it": "In una scatola ci sono {a} {x}. Ne aggiungiamo {b} e ne togliamo {c}. Quante {x} restano?",
    "pt": "Há {a} {x} numa caixa. Colocamos {b} e tiramos {c}. Quantas {x} ficam?",
    "es": "Hay {a} {x} en una caja. Ponemos {b} y quitamos {c}. ¿Cuántas {x} quedan?",
    "zh": "盒子里有{a}个{x}。放进{b}个，拿走{c}个。还剩几个{x}？",
    "ja": "はこに{x}が{a}こあります。{b}こいれて、{c}ことります。{x}はなんこのこりますか？",
}
# Plurals that agree with the gender and the counter of the story above.
_THINGS: dict[str, str] = {
    "en": "apples books balls eggs keys hats",
    "fr": "pommes livres ballons tasses clés fleurs",
    "de": "Äpfel Bücher Bälle Eier Schlüssel Hüte",
    "it": "mele palle tazze chiavi banane sedie",
    "pt": "bolas maçãs chaves xícaras flores bananas",
    "es": "manzanas pelotas llaves tazas flores sillas",
    "zh": "苹果 球 鸡蛋 杯子 香蕉 帽子",
    "ja": "りんご たまご ボール バナナ カップ かぎ",
}


def _story(rng: Random, level: int) -> ReasoningProblem:
    language = rng.choice(sorted(_STORIES))
    a, b = rng.randrange(3, 30), rng.randrange(2, 10)
    c = rng.randrange(1, min(10, a + b))
    question = _STORIES[language].format(a=a, b=b, c=c, x=rng.choice(_THINGS[language].split()))
    steps = (f"{a} + {b} = {a + b}.", f"{a + b} - {c} = {a + b - c}.")
    return ReasoningProblem("story", level, question, steps, a + b - c, language)


def _letters(rng: Random, level: int) -> ReasoningProblem:
    word = rng.choice([w for w in sorted(NOUNS) if len(w) >= 4])
    # Most questions are about letters of the word, repeated ones more often.
    letter = rng.choice(sorted(word) if rng.random() < 0.7 else sorted(set(word) | set("aeos")))
    steps, count = [], 0
    for c in word:
        count += c == letter
        steps.append(f"{c} {count}")
    return ReasoningProblem(
        "letters", level, f"How many times is {letter} in {word}?", tuple(steps), count
    )


def _compare(rng: Random, level: int) -> ReasoningProblem:
    sums: list[tuple[int, str, int, int]] = []
    while len(sums) < 2 or sums[0][3] == sums[1][3]:
        a, b, sign = rng.randrange(10, 60), rng.randrange(2, 10), rng.choice("+-")
        sums = [*sums[-1:], (a, sign, b, a + b if sign == "+" else a - b)]
    question = "Which is larger, {} or {}?".format(*(f"{a} {sign} {b}" for a, sign, b, _ in sums))
    steps = tuple(f"{a} {sign} {b} = {value}." for a, sign, b, value in sums)
    return ReasoningProblem("compare", level, question, steps, max(sums[0][3], sums[1][3]))


_DRAW = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "chain": _chain,
    "story": _story,
    "letters": _letters,
    "compare": _compare,
}

_ANSWER = re.compile(r"(?:^|\n)Answer: (\d+)\s*$")


def verify(problem: ReasoningProblem, text: str) -> bool:
    """Return whether a solution is right: it ends in the right answer and contains no wrong equation."""
    return verdict(problem, text).right


def verdict(problem: ReasoningProblem, text: str) -> Verdict:
    """Return the result of `verify` with the reason. Solutions of "letters" must be ours verbatim."""
    answer = _ANSWER.search(text)
    if not answer:
        return Verdict(False, 'it doesn\'t end in a line "Answer: " and a number')
    if int(answer[1]) != problem.answer:
        return Verdict(False, f"{answer[1]} is not right")
    if problem.family == "letters":
        complete = text.strip() == problem.solution
        return Verdict(complete, f"the letters are {'told' if complete else 'not told one by one'}")
    equations = verifiers.equations(text)
    for equation, right in equations:
        if not right:
            return Verdict(False, f"{equation} is not right")
    return Verdict(bool(equations), "the steps are right" if equations else "it shows no steps")


def corrupt(problem: ReasoningProblem, rng: Random) -> str:
    """Return a solution with one error: a step's result and the answer are off by one or two. `verify` rejects it."""
    steps = list(problem.steps)
    at = rng.randrange(len(steps))
    result = re.search(r"= (\d+)" if "=" in steps[at] else r"(\d+)", steps[at])
    assert result
    # Results stay at zero or above, so that the error is always visible.
    slip = rng.choice((-2, -1, 1, 2) if int(result[1]) >= 2 else (1, 2))
    if "=" in steps[at]:
        steps[at] = re.sub(r"= (\d+)", lambda m: f"= {int(m[1]) + slip}", steps[at])
        if problem.family in ("add", "multiply", "subtract"):
            written = re.search(r"= (\d+)", steps[at])
            assert written
            digit = written[1] if at == len(steps) - 1 else written[1][-1]
            steps[at] = re.sub(r"write \d+", f"write {digit}", steps[at])
            slip *= 10**at
    else:
        steps[at] = re.sub(r"\d+", lambda m: str(int(m[0]) + slip), steps[at])
    wrong = abs(problem.answer + slip)
    return "\n".join(
        (*steps, f"Answer: {wrong if wrong != problem.answer else problem.answer + 1}")
    )


def draw_problems(split: str, rng: Random) -> Iterator[ReasoningProblem]:
    """Yield random problems of a split without end, families in turn; in training sums come twice as often as stories
    and letters. A test split has no duplicates as long as there are new problems."""
    questions: set[str] = set()
    while True:
        for family in (*FAMILIES, *SUMS) if split == "train" else FAMILIES:
            for _ in range(200):
                problem = draw(rng, family)
                operands = re.findall(r"\d+", problem.question) or [problem.question]
                new = split == "train" or problem.question not in questions
                if new and in_split(
                    split, "cot", *operands, percent=20 if family == "letters" else 10
                ):
                    questions.add(problem.question)
                    yield problem
                    break


def conversation(
    problem: ReasoningProblem, solution: str
) -> tuple[tuple[Message, ...], dict[str, object]]:
    """Return a problem as a chat that requests the steps, and its meta: the task is "cot_story" for stories and
    letters, else "cot_arithmetic"."""
    task = "cot_story" if problem.family in ("story", "letters") else "cot_arithmetic"
    meta = {
        "task": task,
        "language": problem.language,
        "answer": str(problem.answer),
        "family": problem.family,
        "level": problem.level,
    }
    return (
        Message.user(f"Solve step by step: {problem.question}"),
        Message.assistant(solution),
    ), meta


def sampling_problem(problem: ReasoningProblem, id: str) -> judge.Problem:
    """Return the problem for rejection sampling (judge.py), as a chat and verified by `verdict`."""
    messages, meta = conversation(problem, "")
    return judge.Problem(
        id, messages[:1], partial(verdict, problem), "polyphi", SOURCES["polyphi"].licence, meta
    )

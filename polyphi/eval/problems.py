"""A few programming problems of our own, which stand in for the public ones in every form that those come in.

>>> code = PROBLEMS[0].prompt + PROBLEMS[0].body
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A function. `calls` are tests that anyone would write, (arguments, result) pairs; `more` are harder arguments,
    `tolerance` the absolute one of its results."""

    name: str
    parameters: str
    text: str
    body: str
    calls: Sequence[tuple[tuple[Any, ...], Any]]
    more: Sequence[tuple[Any, ...]]
    tolerance: float = 0.0

    @property
    def signature(self) -> str:
        return f"def {self.name}({self.parameters}):\n"

    @property
    def prompt(self) -> str:
        """Its beginning, as HumanEval has it."""
        args, result = self.calls[0]
        example = f">>> {self.call(args)}\n    {result!r}"
        return f'{self.signature}    """{self.text}\n\n    {example}\n    """\n'

    @property
    def code(self) -> str:
        return self.signature + self.body

    def call(self, args: Sequence[Any]) -> str:
        return f"{self.name}({', '.join(map(repr, args))})"

    @property
    def asserts(self) -> list[str]:
        return [f"assert {self.call(args)} == {result!r}" for args, result in self.calls]

    @property
    def program(self) -> str:
        """It as a program that reads JSON arguments, one a line, and prints its result as JSON."""
        reads = "arguments = [json.loads(line) for line in sys.stdin]\n"
        return f"import json\nimport sys\n\n{self.code}\n{reads}print(json.dumps({self.name}(*arguments)))\n"

    @property
    def method(self) -> str:
        """It as a method, as LeetCode asks for it."""
        head = self.signature.replace("(", "(self, ")
        return f"class Solution:\n{indent(head + self.body, '    ')}"

    @property
    def cases(self) -> list[dict[str, str]]:
        return [
            {"input": "\n".join(map(json.dumps, args)), "output": json.dumps(result)}
            for args, result in self.calls
        ]


PROBLEMS = (
    Problem(
        "double_all",
        "numbers",
        "Return the list of all numbers, doubled.",
        "    return [2 * n for n in numbers]\n",
        [(([1, 2, 3],), [2, 4, 6]), (([],), []), (([-4],), [-8])],
        [([0] * 5,), ([10**30],)],
    ),
    Problem(
        "largest_gap",
        "numbers",
        "Return the largest difference between two numbers that stand beside each other, 0 if there are no two.",
        "    gaps = [abs(a - b) for a, b in zip(numbers, numbers[1:])]\n    return max(gaps, default=0)\n",
        [(([1, 5, 4],), 4), (([2, 2],), 0), (([7, 1],), 6)],
        [([3],), ([],), ([-5, 5, 6],)],
    ),
    Problem(
        "average",
        "numbers",
        "Return the mean of some numbers.",
        "    return sum(numbers) / len(numbers)\n",
        [(([1, 2, 3],), 2.0), (([4],), 4.0), (([1, 2],), 1.5)],
        [([0.1, 0.2, 0.4],), ([1, 1, 2],)],
        1e-6,
    ),
)

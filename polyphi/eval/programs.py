"""Programs in answers: extracted, run with their tests in the sandbox, and scored.

>>> trial = Trial(code="def f(x): return x + 1", tests={"kind": "asserts", "tests": "assert f(1) == 2"})
>>> [verdict.found for verdict in judged([trial])]
[{'passed': True}]

What a model wrote is never run anywhere else. Its tests run in another process than the code (trial.py says what that
keeps it from, and what not). On a machine that can't isolate code, nothing is run unless the environment variable
POLYPHI_RUN_CODE_UNPROTECTED is 1.

The program of an answer is found as EvalPlus finds it (`extracted`), so that both give the same scores.
"""

import ast
import io
import json
import os
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import indent
from typing import Any, TypeVar

from polyphi.data.shards import Sample
from polyphi.eval import trial, values
from polyphi.eval.benchmark import LENIENT, Score
from polyphi.eval.sources import Data
from polyphi.messages import Message
from polyphi.services import sandbox

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = max(1, min(8, os.cpu_count() or 1))
LIMITS = sandbox.Limits(seconds=20.0, cpu_seconds=3, memory_bytes=1 << 30)
"""Processor time is what counts (the original HumanEval stops after 3 s by the clock), so that busy machines judge as
idle ones do."""
UNPROTECTED = "POLYPHI_RUN_CODE_UNPROTECTED"
LONGEST = 100_000
"""Characters of an answer that are looked at."""
PARSED = 8_000_000
"""Characters that are parsed to find an answer's longest program, before only its fenced blocks are looked at."""
MOST_LINES = 1000
SHOWN = 20_000
"""Characters of a program that stand in the results."""


def unable(data: Data | None = None) -> str | None:
    """Why code that a model wrote isn't run here, or None, whatever the data."""
    why = sandbox.unavailable()
    if why is None or os.environ.get(UNPROTECTED) == "1":
        return None
    return (
        f"it runs code that a model wrote, and this machine can't isolate that ({why}); a container may need "
        f"--security-opt seccomp=unconfined; {UNPROTECTED}=1 runs it with limits alone, which is no protection from "
        "code that means harm"
    )


# ------------------------------------------------------------------------------ prompts

SYSTEM = "You are a helpful assistant good at coding."
ASK = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
MAX_TOKENS = 768
"""What EvalPlus sends to an OpenAI-compatible endpoint, so that it and we ask the same."""


def prompt_messages(prompt: str, shots: Sequence[tuple[str, str]] = ()) -> tuple[Message, Message]:
    """EvalPlus' prompt, after solved problems of the same form."""
    solved = [f"{_problem(shot)}\n\n{fenced(code)}\n\n" for shot, code in shots]
    return Message.system(SYSTEM), Message.user("".join(solved) + _problem(prompt))


def _problem(prompt: str) -> str:
    return f"{ASK}\n{fenced(prompt)}"


def fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


# ------------------------------------------------------------------------------ programs in answers


def extracted(answer: str, entry: str | None = None) -> str:
    """The longest run of an answer's lines that is Python; with `entry`, of that what it needs: imports, and the
    definitions that `entry` reaches (EvalPlus' reading)."""
    code = longest_program(answer)
    if entry is None:
        return code
    return _reached(code, entry).strip() or code


def longest_program(answer: str) -> str:
    """The run of at least two lines with the most lines that aren't empty, the first one of several; the first line
    where there is none."""
    lines = answer[:LONGEST].split("\n")
    if len(lines) > MOST_LINES:
        return max(blocks(answer), key=len, default=lines[0])
    filled = [0]
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    spans = sorted(
        (filled[i] - filled[j], i, j) for i in range(len(lines)) for j in _ends(lines, i)
    )
    left = PARSED
    for count, i, j in spans:
        text = "\n".join(lines[i:j])
        left -= len(text)
        if left < 0:
            return max(blocks(answer), key=len, default=lines[0])
        if count and parsed(text):
            return text
    return lines[0]


def _ends(lines: Sequence[str], start: int) -> Iterator[int]:
    """Where a program that begins at a line may end: before a fence that stands in no text in triple quotes."""
    quotes = 0
    for end in range(start, len(lines)):
        if lines[end].lstrip().startswith("```") and not quotes % 2:
            return
        quotes += lines[end].count('"""') + lines[end].count("'''")
        if end > start:
            yield end + 1


def parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def blocks(answer: str) -> list[str]:
    """What stands between fences that name Python or nothing; one that isn't closed goes on to the end."""
    matches = re.findall(
        r"```(?:python|py|Python)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", answer[:LONGEST], re.S
    )
    return [text for text in matches if text.strip()]


def last_block(answer: str) -> str:
    """Between the last two lines with fences (LiveCodeBench's reading), or nothing."""
    lines = answer[:LONGEST].split("\n")
    fences = [n for n, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def _reached(code: str, entry: str) -> str:
    tree = parsed(code)
    if tree is None:
        return ""
    imports, definitions = [], dict[str, str]()
    for node in tree.body:
        text = _source(code, node)
        if isinstance(node, ast.Import) or (
            isinstance(node, ast.ImportFrom) and node.module != "__future__"
        ):
            imports.append(text)
        elif name := _defined(node):
            definitions.setdefault(name, text)
    queue, reached = [entry], {entry}
    while queue:
        for name in _names(definitions.get(queue.pop(), "")) & set(definitions) - reached:
            reached.add(name)
            queue.append(name)
    return "\n".join([*imports, *(text for name, text in definitions.items() if name in reached)])


def _source(code: str, node: ast.stmt) -> str:
    return ast.get_source_segment(code, node) or ""


def _defined(node: ast.stmt) -> str | None:
    """What a statement at the top defines; functions that return nothing and decorated things are passed over."""
    if isinstance(node, ast.ClassDef) and not node.decorator_list:
        return node.name
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
        return node.name if any(isinstance(n, ast.Return) for n in ast.walk(node)) else None
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def _names(text: str) -> set[str]:
    names = set[str]()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                names.add(token.string)
    except (tokenize.TokenError, SyntaxError):
        pass
    return names


# ------------------------------------------------------------------------------ execution


@dataclass(frozen=True)
class Trial:
    """A program and its tests, as trial.py takes them (`tests["kind"]` is one of its KINDS). `before` runs in front of
    the program. `python` is an environment's, for problems that need more packages than ours."""

    code: str
    tests: Mapping[str, Any]
    before: str = ""
    limits: sandbox.Limits = LIMITS
    python: Path | None = None

    def stdin(self) -> str:
        code = json.dumps({"text": self.code, "before": self.before})
        return f"{len(code)}\n{code}{json.dumps(self.tests)}"


@dataclass(frozen=True)
class Verdict:
    """`found`: by its parts (mostly "passed" alone) whether tests passed; empty where they never came to an end, of
    which `why` tells."""

    found: Mapping[str, bool] = field(default_factory=dict)
    why: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.found) and all(self.found.values())


def judged(trials: Sequence[Trial]) -> list[Verdict]:
    """All of them run, some at once; the same ones once. Raises ValueError where code can't be isolated."""
    if trials and (why := unable()):
        raise ValueError(f"no program can be judged: {why}")
    unique = {_key(t): t for t in trials}
    verdicts = dict(zip(unique, in_turns(_judge, unique.values()), strict=True))
    return [verdicts[_key(t)] for t in trials]


def in_turns(run: Callable[[T], R], what: Iterable[T]) -> list[R]:
    """`run` of each, as many at a time as there are processors."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(run, what))


def _key(t: Trial) -> tuple[str, str]:
    return t.stdin(), str(t.python)


@cache
def sandboxed_program() -> str:
    """What runs in the sandbox: values.py and trial.py as one file, since our package isn't there."""
    first, second = (Path(str(m.__file__)).read_text(encoding="utf-8") for m in (values, trial))
    head, imports, rest = second.partition("from polyphi.eval.values import ")
    assert imports, "trial.py imports values.py by one line"
    return f"{first}\n{head}{rest.partition(chr(10))[2]}"


def _judge(t: Trial) -> Verdict:
    if not t.code.strip() or parsed(t.code) is None:
        return Verdict(why="no program")
    result = sandbox.run(
        sandboxed_program(),
        stdin=t.stdin(),
        limits=t.limits,
        weak=sandbox.unavailable() is not None,
        python=t.python,
    )
    try:
        verdict = json.loads(result.stdout.rstrip("\n").rpartition("\n")[2])
        results = {str(k): v is True for k, v in verdict["found"].items()}
        return Verdict(results if result.ended == "ok" else {}, str(verdict["why"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Verdict(why=result.ended)


# ------------------------------------------------------------------------------ scores


def scores(
    pairs: Sequence[tuple[Sequence[str], Sample]],
    trial_of: Callable[[str, Sample], Trial],
    strict: Callable[[str, Sample], str],
    lenient: Callable[[str, Sample], Iterable[str]],
    parts: Sequence[str] = (),
) -> list[Score]:
    """The last answers' programs, run. Where the program of the strict reading fails, those of the lenient ones are
    tried in turn. `parts` are those of the verdicts that scores carry too."""
    last = [(answers[-1] if answers else "", sample) for answers, sample in pairs]
    trials = [trial_of(strict(answer, sample), sample) for answer, sample in last]
    verdicts = judged(trials)
    right = [verdict.passed for verdict in verdicts]
    trying = {
        n: (trial_of(code, sample) for code in lenient(answer, sample))
        for n, (answer, sample) in enumerate(last)
        if not right[n]
    }
    while trying:
        now = {n: t for n, readings in trying.items() if (t := next(readings, None)) is not None}
        trying = {n: trying[n] for n in now}
        for n, verdict in zip(now, judged(list(now.values())), strict=True):
            if verdict.passed:
                right[n] = True
                del trying[n]
    return [
        Score(
            float(verdict.passed),
            (t.code[:SHOWN] + (f"\n# {verdict.why}" if verdict.why else "")).strip(),
            {
                **{name: float(verdict.found.get(name, False)) for name in parts},
                LENIENT: float(right[n]),
            },
        )
        for n, (t, verdict) in enumerate(zip(trials, verdicts, strict=True))
    ]


def needed(answer: str, sample: Sample) -> str:
    """EvalPlus' reading of an answer, for the function that meta's "entry" names."""
    return extracted(answer, sample.meta["entry"])


def generous(answer: str, sample: Sample) -> Iterator[str]:
    """Other readings: all of it, or its last block, behind the imports and functions that meta's "prompt" has in front
    of the function; and as the function's body alone. Without those that `needed` gave."""
    entry, prompt = sample.meta["entry"], sample.meta["prompt"]
    head = prompt.rpartition(f"def {entry}")[0]
    whole, block = longest_program(answer), "\n".join(blocks(answer)[-1:])
    for code in dict.fromkeys((whole, block)):
        if f"def {entry}" in code and (head or code != extracted(answer, entry)):
            yield head + code
    for code in dict.fromkeys((block or answer[:LONGEST], whole)):
        if prompt and f"def {entry}" not in code and code.strip():
            body = code if code.startswith((" ", "\t")) else indent(code, "    ")
            yield f"{prompt.rstrip()}\n{body}"

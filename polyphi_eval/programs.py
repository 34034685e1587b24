"""Extract programs from answers, run them with their tests in the sandbox, and score them.

>>> trial = Trial(code="def f(x): return x + 1", tests={"kind": "asserts", "tests": "assert f(1) == 2"})
>>> [verdict.results for verdict in run_trials([trial])]
[{'passed': True}]

Generated code runs in the sandbox only, and its tests in a separate process (trial.py describes which attacks that
prevents). On a machine that can't isolate code, nothing is run unless the environment variable
POLYPHI_RUN_CODE_UNPROTECTED is 1.

`extract_program` follows EvalPlus, so that both give the same scores.
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

from polyphi.data.sample import Sample
from polyphi.devices import cpu
from polyphi.types.messages import Message
from polyphi_eval import trial
from polyphi_eval.benchmark import LENIENT, Score
from polyphi_eval.services import sandbox
from polyphi_eval.sources import Data

T = TypeVar("T")
R = TypeVar("R")
WORKERS = min(8, cpu.usable())
LIMITS = sandbox.Limits(seconds=20.0, cpu_seconds=3, memory_bytes=1 << 30)
"""CPU time is limited (the original HumanEval stops after 3 s of wall time), so that verdicts don't depend on load."""
UNPROTECTED = "POLYPHI_RUN_CODE_UNPROTECTED"
MAX_CHARACTERS = 100_000
"""Characters of an answer that are read."""
MAX_PARSED = 8_000_000
"""Characters that are parsed to find an answer's longest program; beyond that only its fenced blocks are read."""
MAX_LINES = 1000
MAX_RECORDED = 20_000
"""Characters of a program that are stored in results."""


def unavailable(data: Data | None = None) -> str | None:
    """Return the reason why generated code can't be run here, or None; `data` is ignored."""
    why = sandbox.unavailable()
    if why is None or os.environ.get(UNPROTECTED) == "1":
        return None
    return (
        f"it runs generated code, and this machine can't isolate that ({why}); a container may need "
        f"--security-opt seccomp=unconfined; {UNPROTECTED}=1 runs it with limits alone, which don't protect from "
        "malicious code"
    )


# ------------------------------------------------------------------------------ prompts

SYSTEM = "You are a helpful assistant good at coding."
ASK = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
MAX_TOKENS = 768
"""Maximum tokens of an answer, as EvalPlus sends them to an OpenAI-compatible endpoint."""


def prompt_messages(prompt: str, shots: Sequence[tuple[str, str]] = ()) -> tuple[Message, Message]:
    """Return EvalPlus' prompt, after few-shot examples in the same format."""
    examples = [f"{_problem(shot)}\n\n{fenced(code)}\n\n" for shot, code in shots]
    return Message.system(SYSTEM), Message.user("".join(examples) + _problem(prompt))


def _problem(prompt: str) -> str:
    return f"{ASK}\n{fenced(prompt)}"


def fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


# ------------------------------------------------------------------------------ programs in answers


def extract_program(answer: str, entry: str | None = None) -> str:
    """Return the longest run of an answer's lines that is Python; with `entry`, only its imports and the definitions on
    which `entry` depends (EvalPlus' rule)."""
    code = longest_program(answer)
    if entry is None:
        return code
    return _dependencies(code, entry).strip() or code


def longest_program(answer: str) -> str:
    """Return the first run of at least two lines that parses and has the most lines that aren't empty; the first line
    if there is none."""
    lines = answer[:MAX_CHARACTERS].split("\n")
    if len(lines) > MAX_LINES:
        return max(blocks(answer), key=len, default=lines[0])
    counts = [0]  # lines that aren't empty, before each line
    for line in lines:
        counts.append(counts[-1] + bool(line.strip()))
    spans = sorted(
        (counts[i] - counts[j], i, j) for i in range(len(lines)) for j in _ends(lines, i)
    )
    budget = MAX_PARSED
    for count, i, j in spans:
        text = "\n".join(lines[i:j])
        budget -= len(text)
        if budget < 0:
            return max(blocks(answer), key=len, default=lines[0])
        if count and parse(text):
            return text
    return lines[0]


def _ends(lines: Sequence[str], start: int) -> Iterator[int]:
    """Yield the possible ends of a program that begins at line `start`: up to a fence that isn't in triple quotes."""
    quotes = 0
    for end in range(start, len(lines)):
        if lines[end].lstrip().startswith("```") and not quotes % 2:
            return
        quotes += lines[end].count('"""') + lines[end].count("'''")
        if end > start:
            yield end + 1


def parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def blocks(answer: str) -> list[str]:
    """Return the texts between fences for Python or without a language; an open fence extends to the end."""
    matches = re.findall(
        r"```(?:python|py|Python)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", answer[:MAX_CHARACTERS], re.S
    )
    return [text for text in matches if text.strip()]


def last_block(answer: str) -> str:
    """Return the text between the last two lines with fences (LiveCodeBench's rule), or ""."""
    lines = answer[:MAX_CHARACTERS].split("\n")
    fences = [n for n, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def _dependencies(code: str, entry: str) -> str:
    tree = parse(code)
    if tree is None:
        return ""
    imports, definitions = [], dict[str, str]()
    for node in tree.body:
        text = _source(code, node)
        if isinstance(node, ast.Import) or (
            isinstance(node, ast.ImportFrom) and node.module != "__future__"
        ):
            imports.append(text)
        elif name := _definition(node):
            definitions.setdefault(name, text)
    queue, visited = [entry], {entry}
    while queue:
        for name in _names(definitions.get(queue.pop(), "")) & set(definitions) - visited:
            visited.add(name)
            queue.append(name)
    return "\n".join([*imports, *(text for name, text in definitions.items() if name in visited)])


def _source(code: str, node: ast.stmt) -> str:
    return ast.get_source_segment(code, node) or ""


def _definition(node: ast.stmt) -> str | None:
    """Return the name that a top-level statement defines; decorated definitions and functions without a return
    statement are ignored."""
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
    """A program and its tests for trial.py (`tests["kind"]` is a key of its RUNNERS). `before` is code that runs first.
    `python` is the interpreter of an environment, for problems that need other packages."""

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
    """Whether tests passed, by part (mostly "passed" alone); `results` is empty if they didn't finish, for the reason
    `why`."""

    results: Mapping[str, bool] = field(default_factory=dict)
    why: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(self.results.values())


def run_trials(trials: Sequence[Trial]) -> list[Verdict]:
    """Run all trials in parallel, equal ones once. Raises ValueError if code can't be isolated."""
    if trials and (why := unavailable()):
        raise ValueError(f"programs can't be scored: {why}")
    unique = {_key(t): t for t in trials}
    verdicts = dict(zip(unique, parallel_map(_run, unique.values()), strict=True))
    return [verdicts[_key(t)] for t in trials]


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `function` of each item, computed in `WORKERS` threads."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, items))


def _key(t: Trial) -> tuple[str, str]:
    return t.stdin(), str(t.python)


@cache
def sandboxed_program() -> str:
    """Return the program for the sandbox: trial.py, which can't be imported there."""
    return Path(str(trial.__file__)).read_text(encoding="utf-8")


def _run(t: Trial) -> Verdict:
    if not t.code.strip() or parse(t.code) is None:
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
        results = {str(k): v is True for k, v in verdict["results"].items()}
        return Verdict(results if result.ended == "ok" else {}, str(verdict["why"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Verdict(why=result.ended)


# ------------------------------------------------------------------------------ scores


def scores(
    pairs: Sequence[tuple[Sequence[str], Sample]],
    trial_of: Callable[[str, Sample], Trial],
    strict: Callable[[str, Sample], str],
    lenient: Callable[[str, Sample], Iterable[str]],
    parts: Sequence[str] = (),
) -> list[Score]:
    """Run the programs of the last answers and return their scores. If the `strict` program fails, the `lenient` ones
    are run one after another. `parts` are the verdicts' parts to copy into the scores."""
    last = [(answers[-1] if answers else "", sample) for answers, sample in pairs]
    trials = [trial_of(strict(answer, sample), sample) for answer, sample in last]
    verdicts = run_trials(trials)
    right = [verdict.passed for verdict in verdicts]
    remaining = {
        n: (trial_of(code, sample) for code in lenient(answer, sample))
        for n, (answer, sample) in enumerate(last)
        if not right[n]
    }
    while remaining:
        batch = {n: t for n, each in remaining.items() if (t := next(each, None)) is not None}
        remaining = {n: remaining[n] for n in batch}
        for n, verdict in zip(batch, run_trials(list(batch.values())), strict=True):
            if verdict.passed:
                right[n] = True
                del remaining[n]
    return [
        Score(
            float(verdict.passed),
            (t.code[:MAX_RECORDED] + (f"\n# {verdict.why}" if verdict.why else "")).strip(),
            {
                **{name: float(verdict.results.get(name, False)) for name in parts},
                LENIENT: float(right[n]),
            },
        )
        for n, (t, verdict) in enumerate(zip(trials, verdicts, strict=True))
    ]


def strict_program(answer: str, sample: Sample) -> str:
    """Return the program that EvalPlus extracts for the function `meta["entry"]`."""
    return extract_program(answer, sample.meta["entry"])


def lenient_programs(answer: str, sample: Sample) -> Iterator[str]:
    """Yield other programs than `strict_program`: the longest program, or the last block, after the imports and
    functions that `meta["prompt"]` has before the function; and either as the function's body."""
    entry, prompt = sample.meta["entry"], sample.meta["prompt"]
    head = prompt.rpartition(f"def {entry}")[0]
    whole, block = longest_program(answer), "\n".join(blocks(answer)[-1:])
    for code in dict.fromkeys((whole, block)):
        if f"def {entry}" in code and (head or code != extract_program(answer, entry)):
            yield head + code
    for code in dict.fromkeys((block or answer[:MAX_CHARACTERS], whole)):
        if prompt and f"def {entry}" not in code and code.strip():
            body = code if code.startswith((" ", "\t")) else indent(code, "    ")
            yield f"{prompt.rstrip()}\n{body}"

"""Programming tasks with tests that a teacher writes; the tests are run (report 3.1.1, 3.1.2).

    CODE_DOCUMENT   any sample -> a task, a function and its tests, as a document
    CODE_ANSWER     the same as a question with the code as its answer

A function must pass its tests in the sandbox (polyphi_eval/services/sandbox.py), and an empty one must fail them: tests
that nothing fails prove nothing.
"""

import ast
from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi.types.sampling import SamplingParams
from polyphi_eval.services import verifiers
from polyphi_recipe.syntheses.prompts import PROMPTS
from polyphi_recipe.syntheses.syntheses import JSON_TEXT, json_object, pick
from polyphi_recipe.syntheses.synthesize import Json, Synthesis

SUBJECTS = (
    *("strings", "lists", "dictionaries", "sets", "numbers and digits", "dates and times", "sorting", "searching"),
    *("recursion", "matrices", "intervals", "graphs", "trees", "text formats", "simple parsers", "simulation"),
    *("counting", "iterators and generators", "classes with state", "errors and their messages", "bits", "money"),
)  # fmt: skip
LEVELS = ("for a beginner", "of medium difficulty", "hard, with cases that are easily overlooked")
LEAST_ASSERTS = 3


def hollow(code: str) -> str:
    """Return a program whose functions return None and do nothing else."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Return(None)]
    return ast.unparse(ast.fix_missing_locations(tree))


def _verify(sample: Sample, item: Json) -> str:
    if not item["task"].strip():
        return "an empty task"
    try:
        empty, tests = hollow(item["code"]), ast.parse(item["tests"])
    except (SyntaxError, ValueError, RecursionError):
        return "code or tests that are no Python"
    asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(tests))
    if asserts < LEAST_ASSERTS:
        return f"{asserts} asserts, expected at least {LEAST_ASSERTS}"
    passes = verifiers.tests(item["tests"])
    if not (verdict := passes(item["code"])).right:
        return f"the tests fail: {verdict.reason:.120}"
    return "an empty function passes the tests" if passes(empty).right else ""


def _conversation(sample: Sample, item: Json) -> Sample:
    code = f"```python\n{item['code'].strip()}\n```"
    meta = {"task": "code_answer", "language": "en", "tests": item["tests"]}
    messages = (Message.user(item["task"].strip()), Message.assistant(code))
    return replace(sample, messages=messages, meta=meta)


def _document(sample: Sample, item: Json) -> Sample:
    comment = "\n".join(f"# {line}".rstrip() for line in item["task"].strip().splitlines())
    meta = {"task": "code", "language": "python", "tests": item["tests"]}
    text = Text(f"{comment}\n{item['code'].strip()}")
    return replace(sample, messages=(Message("document", (text,)),), meta=meta)


CODE_ANSWER = Synthesis(
    "code_answer",
    PROMPTS["code_answer"],
    read=lambda sample: {
        "subject": pick(sample, "subject", SUBJECTS),
        "level": pick(sample, "level", LEVELS),
    },
    schema=json_object(task=JSON_TEXT, code=JSON_TEXT, tests=JSON_TEXT),
    verify=_verify,
    make=_conversation,
    sampling=SamplingParams(max_tokens=3072, temperature=0.8, top_p=0.95),
    tries=2,
    varied=True,
)
CODE_DOCUMENT = replace(CODE_ANSWER, name="code_document", make=_document)

"""Runs bfcl-eval's checker of tool calls, in the sandbox and bfcl-eval's environment (benchmarks/text/bfcl.py sends
this file).

Reads a JSON list of answers with the accepted calls; prints one line of 0 and 1. bfcl-eval's registry of models, which
imports every provider's client, is replaced by one with the only setting that the checker reads; its use of `eval` for
expressions in answers is replaced by `evaluate`.
"""

import ast
import contextlib
import importlib
import json
import math
import operator
import os
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any


def _power(base: float, exponent: float) -> float:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if base.bit_length() * exponent > 4096:
            raise ValueError("expected a power of at most 4096 bits, found a larger one")
        return base**exponent  # type: ignore[no-any-return]
    return math.pow(base, exponent)


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
NO_CHECKER = "no checker:"
LANGUAGES = {"simple_java": "JAVA", "simple_javascript": "JAVASCRIPT"}
"""Categories with calls in other languages than Python."""


def evaluate(text: str) -> Any:
    """Return the value of an arithmetic expression of numbers, or a concatenation of strings. Raises ValueError for
    anything else."""
    return _value(ast.parse(text, mode="eval").body)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        numbers = all(isinstance(x, int | float) for x in (left, right))
        if numbers or (isinstance(node.op, ast.Add) and isinstance(left, str)):
            return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"expected an arithmetic expression, found {type(node).__name__}")


def _load() -> types.SimpleNamespace:
    registry: Any = types.ModuleType("bfcl_eval.constants.model_config")
    registry.MODEL_CONFIG_MAPPING = defaultdict(
        lambda: types.SimpleNamespace(underscore_to_dot=False)
    )
    sys.modules[registry.__name__] = registry
    os.environ["BFCL_PROJECT_ROOT"] = os.getcwd()  # it creates folders there
    decoding: Any = importlib.import_module("bfcl_eval.model_handler.utils")
    decoding.eval = evaluate
    checker: Any = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    utils: Any = importlib.import_module("bfcl_eval.utils")
    enums: Any = importlib.import_module("bfcl_eval.constants.enums")
    return types.SimpleNamespace(
        decode=decoding.default_decode_ast_prompting,
        check=checker.ast_checker,
        is_calls=utils.is_function_calling_format_output,
        is_empty=utils.is_empty_output,
        language=enums.Language,
        form=enums.ReturnFormat,
    )


def is_correct(bfcl: Any, request: Any) -> bool:
    """Whether an answer's calls are accepted; in the relevance category whether there is a call, in the irrelevance
    category whether there is none."""
    category = request["category"]
    language = LANGUAGES.get(category, "PYTHON")
    try:
        calls = request["calls"]
        if calls is None:
            calls = bfcl.decode(_without_fence(request["answer"]), bfcl.form[language])
    except BaseException:
        calls = None
    if "relevance" in category:
        has_call = calls is not None and not bfcl.is_empty(calls)
        return has_call != ("irrelevance" in category)
    if calls is None or not bfcl.is_calls(calls):
        return False
    try:
        verdict = bfcl.check(
            request["functions"],
            calls,
            request["possible"],
            bfcl.language[language],
            category,
            "phi",
        )
    except Exception:
        return False
    return verdict["valid"] is True


def _without_fence(answer: str) -> str:
    """Strip the beginning of a fence, as bfcl-eval's handler of Phi does."""
    return answer.strip().removeprefix("```json").removeprefix("```python")


def main() -> None:
    requests = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            bfcl = _load()
        except Exception as error:
            sys.exit(f"{NO_CHECKER} {type(error).__name__}: {error}")
        verdicts = [is_correct(bfcl, each) for each in requests]
    print("".join("01"[each] for each in verdicts))


if __name__ == "__main__":
    main()

"""Runs in the sandbox, in bfcl-eval's environment (tasks/text/bfcl.py sends this file there): its checker of calls.

Reads a JSON list of answers with what they may be; prints one line of 0 and 1. The checker is bfcl-eval's own; of its
registry of models, which imports every provider's client, only the one switch that the checker reads is there.
bfcl-eval would evaluate sums that stand in an answer by `eval`; here they are worked out without it.
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
            raise ValueError("too large a number")
        return base**exponent  # type: ignore[no-any-return]
    return math.pow(base, exponent)


_SUMS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
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
"""Categories whose calls aren't Python's."""


def worked_out(text: str) -> Any:
    """The value of a sum of numbers, or of texts put together. Raises ValueError for anything else."""
    return _value(ast.parse(text, mode="eval").body)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
        left, right = _value(node.left), _value(node.right)
        numbers = all(isinstance(x, int | float) for x in (left, right))
        if numbers or (isinstance(node.op, ast.Add) and isinstance(left, str)):
            return _SUMS[type(node.op)](left, right)
    raise ValueError("no sum of numbers")


def _load() -> types.SimpleNamespace:
    registry: Any = types.ModuleType("bfcl_eval.constants.model_config")
    registry.MODEL_CONFIG_MAPPING = defaultdict(
        lambda: types.SimpleNamespace(underscore_to_dot=False)
    )
    sys.modules[registry.__name__] = registry
    os.environ["BFCL_PROJECT_ROOT"] = os.getcwd()  # it makes folders of its own there
    decoding: Any = importlib.import_module("bfcl_eval.model_handler.utils")
    decoding.eval = worked_out
    checker: Any = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    forms: Any = importlib.import_module("bfcl_eval.utils")
    kinds: Any = importlib.import_module("bfcl_eval.constants.enums")
    return types.SimpleNamespace(
        decode=decoding.default_decode_ast_prompting,
        check=checker.ast_checker,
        is_calls=forms.is_function_calling_format_output,
        is_empty=forms.is_empty_output,
        language=kinds.Language,
        form=kinds.ReturnFormat,
    )


def right(bfcl: Any, request: Any) -> bool:
    """Whether an answer's calls are among the possible ones; where there are none, whether it calls (relevance) or
    doesn't (irrelevance)."""
    category = request["category"]
    language = LANGUAGES.get(category, "PYTHON")
    try:
        calls = request["calls"]
        if calls is None:
            calls = bfcl.decode(_bare(request["answer"]), bfcl.form[language])
    except BaseException:
        calls = None
    if "relevance" in category:
        called = calls is not None and not bfcl.is_empty(calls)
        return called != ("irrelevance" in category)
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


def _bare(answer: str) -> str:
    """Without the beginning of a fence, as bfcl-eval's handler of Phi has it."""
    return answer.strip().removeprefix("```json").removeprefix("```python")


def main() -> None:
    requests = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            bfcl = _load()
        except Exception as error:
            sys.exit(f"{NO_CHECKER} {type(error).__name__}: {error}")
        verdicts = [right(bfcl, each) for each in requests]
    print("".join("01"[each] for each in verdicts))


if __name__ == "__main__":
    main()

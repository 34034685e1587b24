"""The Berkeley Function-Calling Leaderboard (report, Table 7): function calls for single requests.

The report doesn't name the version; its numbers are of single requests judged by their syntax tree. Its row is taken as
the mean of four groups: synthetic questions ("non-live"), users' questions ("live"), questions that no function fits
("irrelevance") and questions that one fits ("relevance"). The system prompt describes the functions in bfcl-eval's
words, because the report's ten models have no tool format in common (Phi-3.5 and Gemma-2 have none); the same questions
in each model's tool format have rows too. bfcl-eval's checker judges, in a separate environment.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from polyphi.data.sample import Sample
from polyphi.types.messages import Message, with_tools
from polyphi_eval import calls, programs
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, TableRow
from polyphi_eval.environments import Environment
from polyphi_eval.scorers import tool_calls
from polyphi_eval.services import sandbox
from polyphi_eval.sources import BenchmarkSource, Data
from polyphi_eval.statistics import measure

VERSION = "2026.3.23"
ENVIRONMENT = Environment(
    "bfcl",
    (
        f"bfcl-eval=={VERSION}",
        "tree_sitter==0.21.3",
        "tree-sitter-java==0.21.0",
        "tree-sitter-javascript==0.21.4",
        "tenacity==9.1.2",
        "filelock==3.20.0",
        "overrides==7.7.0",
    ),
    dependencies=False,
)
"""bfcl-eval's checker and its imports: 44 MB instead of 1.8 GB for all of bfcl-eval."""
SIMPLE = ("simple_python", "simple_java", "simple_javascript")
NON_LIVE = (*SIMPLE, "multiple", "parallel", "parallel_multiple")
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
IRRELEVANCE = ("irrelevance", "live_irrelevance")
RELEVANCE = ("live_relevance",)
GROUPS = {"non-live": NON_LIVE, "live": LIVE, "irrelevance": IRRELEVANCE, "relevance": RELEVANCE}
CATEGORIES = tuple(category for group in GROUPS.values() for category in group)
SOURCE = BenchmarkSource(
    "bfcl_eval",
    (
        *(f"data/BFCL_v4_{category}.json" for category in CATEGORIES),
        *(f"data/possible_answer/BFCL_v4_{category}.json" for category in (*NON_LIVE, *LIVE)),
    ),
    f"the wheel of bfcl-eval {VERSION} (pip download --no-deps bfcl-eval=={VERSION}, and unzip it there)",
    fields=("id",),
    rows=3641 + 2501,
    hub=False,
)
LIMITS = sandbox.Limits(seconds=300.0, cpu_seconds=240, memory_bytes=2 << 30, output_bytes=4 << 20)
BATCH = 256
MAX_CHARS = 20_000
"""Characters of an answer that are read."""

# bfcl-eval's prompt, which is part of the benchmark.
SYSTEM = """You are an expert in composing functions.You are given a question and a set of possible functions. Based \
on the question, you will need to make one or more function/tool calls to achieve the purpose. If none of the \
functions can be used, point it out. If the given question lacks the parameters required by the function, also point \
it out.

You should only return the function calls in your response.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)].  You SHOULD NOT include \
any other text in the response.

At each turn, you should try your best to complete the tasks requested by the user within the current turn. Continue \
to output functions to call until you have fulfilled the user's request to the best of your ability. Once you have no \
more functions to call, the system will consider the current turn complete and proceed to the next turn or task.

Here is a list of functions in json format that you can invoke.
{functions}
"""
TOOLS_SYSTEM = "You are a helpful assistant with some tools."
HINTS = {"simple_java": "Java 8 SDK", "simple_javascript": "JavaScript"}


def load(data: Data) -> Iterator[Sample]:
    rows = {c: _lines(data, f"data/BFCL_v4_{c}.json") for c in CATEGORIES}
    weights = _weights({category: len(questions) for category, questions in rows.items()})
    for group, categories in GROUPS.items():
        for category in categories:
            possible = [None] * len(rows[category])
            if category in (*NON_LIVE, *LIVE):
                path = f"data/possible_answer/BFCL_v4_{category}.json"
                possible = [row["ground_truth"] for row in _lines(data, path)]
            for row, answer in zip(rows[category], possible, strict=True):
                for mode in ("prompt", "tools"):
                    yield _sample(row, answer, category, group, mode, weights[category])


def _lines(data: Data, pattern: str) -> list[dict[str, Any]]:
    """Rows of JSON lines in files named .json; a file of one line must not be read as one JSON object."""
    texts = (path.read_text(encoding="utf-8") for path in data.files(SOURCE, pattern))
    return [json.loads(line) for text in texts for line in text.split("\n") if line.strip()]


def _weights(counts: Mapping[str, int]) -> dict[str, float]:
    """Weight of a sample in each category. The groups have equal weights; so have the four types of non-live questions,
    the three languages of the simple type, all live questions, and the two irrelevance sets (bfcl-eval's means)."""
    shares = {
        **{category: 1 / 4 for category in NON_LIVE},
        **{category: 1 / 4 / len(SIMPLE) for category in SIMPLE},
        **{category: counts[category] / sum(counts[c] for c in LIVE) for category in LIVE},
        **{category: 1 / len(IRRELEVANCE) for category in IRRELEVANCE},
        **{category: 1.0 for category in RELEVANCE},
    }
    return {category: share / max(1, counts[category]) for category, share in shares.items()}


def _sample(
    row: Mapping[str, Any], possible: Any, category: str, group: str, mode: str, weight: float
) -> Sample:
    functions = _describe(row["function"], category)
    messages = [Message.parse(message) for message in row["question"][0]]
    if mode == "prompt":
        text = SYSTEM.format(functions=json.dumps(functions, indent=4))
        if messages[0].role == "system":
            text += "\n\n" + messages.pop(0).text
        prompt: tuple[Message, ...] = (Message.system(text), *messages)
    else:
        conversation = (
            messages if messages[0].role == "system" else [Message.system(TOOLS_SYSTEM), *messages]
        )
        prompt = with_tools(conversation, functions)
    return Sample(
        f"{row['id']}-{mode}",
        (*prompt, Message.assistant(_reference(row, possible, category, mode))),
        f"BFCL v4 (bfcl-eval {VERSION})",
        "Apache-2.0",
        {
            "category": category,
            "group": group,
            "mode": mode,
            "weight": weight,
            "functions": json.dumps(row["function"]),
            "possible": possible,
            "checker": row.get("checker", "bfcl-eval"),
        },
    )


def _describe(functions: Sequence[Mapping[str, Any]], category: str) -> list[dict[str, Any]]:
    """Return the functions as prompts describe them: Java and JavaScript values are passed as strings."""
    result: list[dict[str, Any]] = copy.deepcopy(list(functions))  # type: ignore[arg-type]
    for function in result:
        language = HINTS.get(category, "Python 3")
        function["description"] += f" Note that the provided function is in {language} syntax."
        if category in HINTS:
            for schema in function["parameters"]["properties"].values():
                _as_string(schema, HINTS[category].split()[0])
    return result


def _as_string(schema: dict[str, Any], language: str) -> None:
    type_name = schema["type"]
    description = (
        f" This parameter can be of any type of {language} object in string representation."
    )
    if type_name != "any":
        description = f" This is {language} {type_name} type parameter in string representation."
    list_types = ("ArrayList", "Array") if language == "Java" else ("array",)
    if type_name in list_types:
        inner = schema.pop("items")["type"]
        description += (
            f" The list elements are of type {inner}; they are not in string representation."
        )
    if type_name == "dict" and language == "JavaScript" and "properties" in schema:
        description += (
            " The dictionary entries have the following schema; they are not in string representation. "
            + json.dumps(schema.pop("properties"))
        )
    schema["description"] += description
    schema["type"] = "string"


def _reference(row: Mapping[str, Any], possible: Any, category: str, mode: str) -> str:
    """A right answer: the first possible value of every parameter; optional ones ("" is possible) are left out."""
    if category in RELEVANCE:
        return "[any()]" if mode == "prompt" else '[{"name": "any", "arguments": {}}]'
    if possible is None:
        return "None of the functions can be used."
    schemas = {function["name"]: function["parameters"] for function in row["function"]}
    as_json, as_code = [], []
    for name, options in ((name, o) for call in possible for name, o in call.items()):
        required = schemas.get(name, {}).get("required", ())
        properties = schemas.get(name, {}).get("properties", {})
        arguments = {
            key: _first(next((v for v in values if v != ""), "" if values else None))
            for key, values in options.items()
            if key in required or "" not in values
        }
        literals = {key: repr(value) for key, value in arguments.items()}
        if category in HINTS:
            arguments = {
                key: _literal(value, properties[key], category) for key, value in arguments.items()
            }
            literals = {
                key: json.dumps(value) if properties[key]["type"] in QUOTED_TYPES else value
                for key, value in arguments.items()
            }
        as_json.append({"name": name, "arguments": arguments})
        as_code.append(f"{name}({', '.join(f'{key}={value}' for key, value in literals.items())})")
    return json.dumps(as_json) if mode == "tools" else f"[{', '.join(as_code)}]"


QUOTED_TYPES = ("String", "any", "char")
"""Types of Java and JavaScript whose values are written in quotes."""


def _first(value: Any) -> Any:
    """A possible value of an argument; a dict's members have lists of possible values, of which the first is taken."""
    if isinstance(value, Mapping):
        return {
            key: _first(options[0]) if isinstance(options, list) and options else options
            for key, options in value.items()
            if not isinstance(options, list) or options[:1] != [""]
        }
    return [_first(item) for item in value] if isinstance(value, list) else value


def _literal(value: Any, schema: Mapping[str, Any], category: str) -> str:
    """A value as a Java or JavaScript literal, which the checker parses; text without quotes."""
    java, type_name = category == "simple_java", schema.get("type")
    inner = {"type": schema.get("items", {}).get("type")}
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        # The checker keeps quotes within an Array, so its items are written without.
        item_literal = _literal if type_name == "Array" else _member
        items = ", ".join(item_literal(item, inner, category) for item in value)
        if not java:
            return f"[{items}]"
        return (
            f"new {inner['type']}[]{{{items}}}"
            if type_name == "Array"
            else f"new ArrayList<>(Arrays.asList({items}))"
        )
    if isinstance(value, Mapping):
        members = {key: _member(item, {}, category) for key, item in value.items()}
        if not java:
            return f"{{{', '.join(f'{key}: {item}' for key, item in members.items())}}}"
        puts = " ".join(f'put("{key}", {item});' for key, item in members.items())
        return f"new HashMap<>() {{{{ {puts} }}}}"
    return f"{value}{ {'long': 'L', 'Bigint': 'n', 'float': 'f' * java}.get(str(type_name), '') }"


def _member(value: Any, schema: Mapping[str, Any], category: str) -> str:
    text = _literal(value, schema, category)
    return f'"{text}"' if isinstance(value, str) else text


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    requests = [_request(answers[-1] if answers else "", sample) for answers, sample in pairs]
    verdicts = [r["checker"] == "polyphi" and _check_fixture(r) for r in requests]
    for_bfcl = [n for n, r in enumerate(requests) if r["checker"] != "polyphi"]
    for start in range(0, len(for_bfcl), BATCH):
        batch = for_bfcl[start : start + BATCH]
        for n, verdict in zip(batch, _check([requests[n] for n in batch]), strict=True):
            verdicts[n] = verdict
    return [
        Score(float(verdict), request["answer"][: programs.MAX_RECORDED], {LENIENT: float(verdict)})
        for request, verdict in zip(requests, verdicts, strict=True)
    ]


def _request(answer: str, sample: Sample) -> dict[str, Any]:
    meta, answer = sample.meta, answer[:MAX_CHARS]
    answer_calls = None
    if meta["mode"] == "tools":
        answer_calls = [{call["name"]: call["arguments"]} for call in tool_calls(answer) or ()]
    return {
        **{key: meta[key] for key in ("category", "possible", "checker")},
        "functions": json.loads(meta["functions"]),
        "answer": answer,
        "calls": answer_calls,
    }


@cache
def _python() -> Path:
    return ENVIRONMENT.python()


def _check(requests: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Return bfcl-eval's verdicts. If an answer crashes its checker, every request is checked alone."""
    if reason := programs.unavailable():
        raise ValueError(f"function calls can't be judged: {reason}")
    result = sandbox.run(
        Path(calls.__file__).read_text(encoding="utf-8"),
        stdin=json.dumps(requests),
        limits=LIMITS,
        weak=sandbox.unavailable() is not None,
        python=_python(),
    )
    verdicts = result.stdout.strip()
    if result.ended == "ok" and len(verdicts) == len(requests) and set(verdicts) <= {"0", "1"}:
        return [digit == "1" for digit in verdicts]
    if calls.NO_CHECKER in result.stderr:
        raise ValueError(
            f"bfcl-eval's checker can't be used ({result.stderr.strip()[-300:]}); delete "
            f"{ENVIRONMENT.folder} and run again"
        )
    if len(requests) == 1:
        return [False]
    return [verdict for request in requests for verdict in _check([request])]


def _check_fixture(request: Mapping[str, Any]) -> bool:
    """Whether an answer to our synthetic fixtures is right: names and values are possible ones (strings are compared
    without case and most punctuation), and only optional parameters are missing."""
    answer_calls = request["calls"]
    if answer_calls is None:
        answer_calls = _calls(request["answer"])
    if "relevance" in request["category"]:
        return bool(answer_calls) != ("irrelevance" in request["category"])
    possible = list(request["possible"])
    if len(answer_calls) != len(possible):
        return False
    for call in answer_calls:
        matches = [p for p in possible if _matches(call, p, request["category"] in HINTS)]
        if not matches:
            return False
        possible.remove(matches[0])
    return True


def _calls(answer: str) -> list[dict[str, dict[str, Any]]]:
    import ast

    result = []
    tree = programs.parse(answer.strip("` \n"))
    node = tree.body[0].value if tree and tree.body and isinstance(tree.body[0], ast.Expr) else None
    for call in node.elts if isinstance(node, ast.List | ast.Tuple) else [node]:
        if not isinstance(call, ast.Call):
            return []
        try:
            arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        except (ValueError, RecursionError):
            return []
        result.append({ast.unparse(call.func): arguments})
    return result


def _matches(call: Mapping[str, Any], possible: Mapping[str, Any], as_text: bool) -> bool:
    (name, options), *_ = possible.items()
    arguments = call.get(name)
    if not isinstance(arguments, Mapping) or set(arguments) - set(options):
        return False
    normalize = (lambda value: _normalize(str(value))) if as_text else _normalize
    return all(
        any(normalize(arguments[key]) == normalize(value) for value in values)
        if key in arguments
        else "" in values
        for key, values in options.items()
    )


def _normalize(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(c for c in value.lower() if c not in " ,./-_*^").replace("'", '"')
    return [_normalize(item) for item in value] if isinstance(value, list | tuple) else value


def mean_of_means(
    scores: Sequence[tuple[Mapping[str, Any], Score]], seed: int
) -> tuple[float, float, float, str]:
    """Mean of the scores by the samples' weights."""
    weighted = [(meta["weight"] * score.value, meta["weight"]) for meta, score in scores]
    vectors = np.array(weighted)
    return (*measure("mean", vectors, seed), "")


def _rows(mode: str, suffix: str) -> list[TableRow]:
    return [
        TableRow(
            "", f"BFCL, {group}{suffix}", {"mode": mode, "group": group}, statistic=mean_of_means
        )
        for group in GROUPS
    ]


benchmark = Benchmark(
    name="bfcl",
    title="BFCL",
    modality="text",
    rows=(
        TableRow("Table 7", "BFCL", {"mode": "prompt"}, statistic=mean_of_means),
        *_rows("prompt", ""),
        TableRow("", "BFCL by tools", {"mode": "tools"}, statistic=mean_of_means),
        *_rows("tools", ", by tools"),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=512,
    unavailable=programs.unavailable,
    note="single requests; the mean of synthetic questions, users' questions, irrelevance and relevance",
)

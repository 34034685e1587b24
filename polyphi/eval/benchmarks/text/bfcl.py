"""The Berkeley Function-Calling Leaderboard (report, Table 7): calls of functions, from one request each.

Which of its versions the report has isn't said; its numbers are those of single requests judged by their syntax tree.
Its row is taken to be the mean of four: calls of made questions ("non-live"), of users' questions ("live"), none where
no function fits, and some where one does. Functions are described in the system prompt, in the words of bfcl-eval, for
the report's ten models have no form of tools in common (Phi-3.5 and Gemma-2 have none at all); the same questions asked
through the models' own tools stand beside it. bfcl-eval's checker judges, in an environment of its own.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from polyphi.data.shards import Sample
from polyphi.eval import calls, programs
from polyphi.eval.benchmark import LENIENT, Benchmark, Row, Score
from polyphi.eval.environments import Environment
from polyphi.eval.scorers import tool_calls
from polyphi.eval.sources import Data, Source
from polyphi.eval.statistics import measure
from polyphi.messages import Message, with_tools
from polyphi.services import sandbox

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
"""Its checker and what that imports: 44 MB instead of the 1.8 GB that all of bfcl-eval takes."""
SIMPLE = ("simple_python", "simple_java", "simple_javascript")
NON_LIVE = (*SIMPLE, "multiple", "parallel", "parallel_multiple")
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
IRRELEVANCE = ("irrelevance", "live_irrelevance")
RELEVANCE = ("live_relevance",)
GROUPS = {"non-live": NON_LIVE, "live": LIVE, "irrelevance": IRRELEVANCE, "relevance": RELEVANCE}
CATEGORIES = tuple(category for group in GROUPS.values() for category in group)
SOURCE = Source(
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
AT_ONCE = 256
LONGEST = 20_000
"""Characters of an answer that are looked at."""

# bfcl-eval's words, which are part of the benchmark.
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
    weights = _weights({category: len(of_category) for category, of_category in rows.items()})
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
    """Rows of JSON lines, which end in .json here; a single one isn't to be taken for an object of rows."""
    texts = (path.read_text(encoding="utf-8") for path in data.files(SOURCE, pattern))
    return [json.loads(line) for text in texts for line in text.split("\n") if line.strip()]


def _weights(counts: Mapping[str, int]) -> dict[str, float]:
    """How much a sample counts: groups alike; of the made questions the four kinds alike, and in the first its three
    languages; of the users' questions every one; of the irrelevant ones the two sets alike (bfcl-eval's means)."""
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
    described = _described(row["function"], category)
    messages = [Message.parse(message) for message in row["question"][0]]
    if mode == "prompt":
        text = SYSTEM.format(functions=json.dumps(described, indent=4))
        if messages[0].role == "system":
            text += "\n\n" + messages.pop(0).text
        prompt: tuple[Message, ...] = (Message.system(text), *messages)
    else:
        conversation = (
            messages if messages[0].role == "system" else [Message.system(TOOLS_SYSTEM), *messages]
        )
        prompt = with_tools(conversation, described)
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


def _described(functions: Sequence[Mapping[str, Any]], category: str) -> list[dict[str, Any]]:
    """Functions as prompts describe them: values of other languages are given as text."""
    result: list[dict[str, Any]] = copy.deepcopy(list(functions))  # type: ignore[arg-type]
    for function in result:
        language = HINTS.get(category, "Python 3")
        function["description"] += f" Note that the provided function is in {language} syntax."
        if category in HINTS:
            for value in function["parameters"]["properties"].values():
                _as_text(value, HINTS[category].split()[0])
    return result


def _as_text(value: dict[str, Any], language: str) -> None:
    kind = value["type"]
    description = (
        f" This parameter can be of any type of {language} object in string representation."
    )
    if kind != "any":
        description = f" This is {language} {kind} type parameter in string representation."
    lists = ("ArrayList", "Array") if language == "Java" else ("array",)
    if kind in lists:
        inner = value.pop("items")["type"]
        description += (
            f" The list elements are of type {inner}; they are not in string representation."
        )
    if kind == "dict" and language == "JavaScript" and "properties" in value:
        description += (
            " The dictionary entries have the following schema; they are not in string representation. "
            + json.dumps(value.pop("properties"))
        )
    value["description"] += description
    value["type"] = "string"


def _reference(row: Mapping[str, Any], possible: Any, category: str, mode: str) -> str:
    """A right answer, made of the first possible value of every parameter that may not be left out ("")."""
    if category in RELEVANCE:
        return "[any()]" if mode == "prompt" else '[{"name": "any", "arguments": {}}]'
    if possible is None:
        return "None of the functions can be used."
    known = {function["name"]: function["parameters"] for function in row["function"]}
    calls_made, texts = [], []
    for name, options in ((name, o) for call in possible for name, o in call.items()):
        needed = known.get(name, {}).get("required", ())
        kinds = known.get(name, {}).get("properties", {})
        arguments = {
            key: _plain(next((v for v in values if v != ""), "" if values else None))
            for key, values in options.items()
            if key in needed or "" not in values
        }
        written = {key: repr(value) for key, value in arguments.items()}
        if category in HINTS:
            arguments = {
                key: _foreign(value, kinds[key], category) for key, value in arguments.items()
            }
            written = {
                key: json.dumps(value) if kinds[key]["type"] in TEXTS else value
                for key, value in arguments.items()
            }
        calls_made.append({"name": name, "arguments": arguments})
        texts.append(f"{name}({', '.join(f'{key}={value}' for key, value in written.items())})")
    return json.dumps(calls_made) if mode == "tools" else f"[{', '.join(texts)}]"


TEXTS = ("String", "any", "char")
"""Types of Java and JavaScript whose values are written in quotes."""


def _plain(value: Any) -> Any:
    """A possible value; those of a dict's members are lists of such."""
    if isinstance(value, Mapping):
        return {
            key: _plain(options[0]) if isinstance(options, list) and options else options
            for key, options in value.items()
            if not isinstance(options, list) or options[:1] != [""]
        }
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _foreign(value: Any, kind: Mapping[str, Any], category: str) -> str:
    """A value as Java or JavaScript writes it, which is what the checker reads of it; text without its quotes."""
    java, name = category == "simple_java", kind.get("type")
    inner = {"type": kind.get("items", {}).get("type")}
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        written = _foreign if name == "Array" else _member  # whose quotes the checker keeps
        items = ", ".join(written(item, inner, category) for item in value)
        if not java:
            return f"[{items}]"
        return (
            f"new {inner['type']}[]{{{items}}}"
            if name == "Array"
            else f"new ArrayList<>(Arrays.asList({items}))"
        )
    if isinstance(value, Mapping):
        members = {key: _member(item, {}, category) for key, item in value.items()}
        if not java:
            return f"{{{', '.join(f'{key}: {item}' for key, item in members.items())}}}"
        puts = " ".join(f'put("{key}", {item});' for key, item in members.items())
        return f"new HashMap<>() {{{{ {puts} }}}}"
    return f"{value}{ {'long': 'L', 'Bigint': 'n', 'float': 'f' * java}.get(str(name), '') }"


def _member(value: Any, kind: Mapping[str, Any], category: str) -> str:
    text = _foreign(value, kind, category)
    return f'"{text}"' if isinstance(value, str) else text


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    requests = [_request(answers[-1] if answers else "", sample) for answers, sample in pairs]
    verdicts = [
        _check_fixture(each) if each["checker"] == "polyphi" else False for each in requests
    ]
    theirs = [n for n, each in enumerate(requests) if each["checker"] != "polyphi"]
    for start in range(0, len(theirs), AT_ONCE):
        block = theirs[start : start + AT_ONCE]
        for n, verdict in zip(block, _checked([requests[n] for n in block]), strict=True):
            verdicts[n] = verdict
    return [
        Score(float(verdict), each["answer"][: programs.MAX_RECORDED], {LENIENT: float(verdict)})
        for each, verdict in zip(requests, verdicts, strict=True)
    ]


def _request(answer: str, sample: Sample) -> dict[str, Any]:
    meta, answer = sample.meta, answer[:LONGEST]
    made_calls = None
    if meta["mode"] == "tools":
        made_calls = [{call["name"]: call["arguments"]} for call in tool_calls(answer) or ()]
    return {
        **{key: meta[key] for key in ("category", "possible", "checker")},
        "functions": json.loads(meta["functions"]),
        "answer": answer,
        "calls": made_calls,
    }


@cache
def _python() -> Path:
    return ENVIRONMENT.python()


def _checked(requests: Sequence[Mapping[str, Any]]) -> list[bool]:
    """bfcl-eval's verdicts. Where an answer brings its checker down, each of them alone."""
    if why := programs.unavailable():
        raise ValueError(f"no calls can be judged: {why}")
    result = sandbox.run(
        Path(calls.__file__).read_text(encoding="utf-8"),
        stdin=json.dumps(requests),
        limits=LIMITS,
        weak=sandbox.unavailable() is not None,
        python=_python(),
    )
    verdicts = result.stdout.strip()
    if result.ended == "ok" and len(verdicts) == len(requests) and set(verdicts) <= {"0", "1"}:
        return [each == "1" for each in verdicts]
    if calls.NO_CHECKER in result.stderr:
        raise ValueError(
            f"bfcl-eval's checker can't be used ({result.stderr.strip()[-300:]}); delete {ENVIRONMENT.folder}"
        )
    if len(requests) == 1:
        return [False]
    return [verdict for each in requests for verdict in _checked([each])]


def _check_fixture(request: Mapping[str, Any]) -> bool:
    """The checker of our fixtures, for Python's calls: names and values as they may be, texts without regard to case
    and most punctuation; what may be missing, may."""
    answer_calls = request["calls"]
    if answer_calls is None:
        answer_calls = _calls(request["answer"])
    if "relevance" in request["category"]:
        return bool(answer_calls) != ("irrelevance" in request["category"])
    possible = list(request["possible"])
    if len(answer_calls) != len(possible):
        return False
    for call in answer_calls:
        fits = [p for p in possible if _fits(call, p, request["category"] in HINTS)]
        if not fits:
            return False
        possible.remove(fits[0])
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


def _fits(call: Mapping[str, Any], possible: Mapping[str, Any], as_text: bool) -> bool:
    (name, options), *_ = possible.items()
    arguments = call.get(name)
    if not isinstance(arguments, Mapping) or set(arguments) - set(options):
        return False
    plain = (lambda value: _bare(str(value))) if as_text else _bare
    return all(
        any(plain(arguments[key]) == plain(value) for value in values)
        if key in arguments
        else "" in values
        for key, values in options.items()
    )


def _bare(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(c for c in value.lower() if c not in " ,./-_*^").replace("'", '"')
    return [_bare(item) for item in value] if isinstance(value, list | tuple) else value


def mean_of_means(
    scored: Sequence[tuple[Mapping[str, Any], Score]], seed: int
) -> tuple[float, float, float, str]:
    """By the samples' weights."""
    weighed = [(meta["weight"], score.value) for meta, score in scored]
    vectors = np.array([(weight * value, weight) for weight, value in weighed])
    return (*measure("mean", vectors, seed), "")


def _rows(mode: str, suffix: str) -> list[Row]:
    return [
        Row("", f"BFCL, {group}{suffix}", {"mode": mode, "group": group}, statistic=mean_of_means)
        for group in GROUPS
    ]


benchmark = Benchmark(
    name="bfcl",
    title="BFCL",
    modality="text",
    rows=(
        Row("Table 7", "BFCL", {"mode": "prompt"}, statistic=mean_of_means),
        *_rows("prompt", ""),
        Row("", "BFCL by tools", {"mode": "tools"}, statistic=mean_of_means),
        *_rows("tools", ", by tools"),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=512,
    unavailable=programs.unavailable,
    note="single requests; the mean of calls for made and for users' questions, irrelevance and relevance",
)

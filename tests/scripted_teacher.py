"""A local endpoint that plays the teacher and the judge of all syntheses, with flaws in some of its answers.

An answer depends on the request alone: by a hash of it, some are not JSON, some decline, some are cut off, some break
the rule of their synthesis, and some second answers differ.

    python -m tests.scripted_teacher 8009        # until it is interrupted; then it prints how many requests it received
"""

import hashlib
import json
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

from polyphi_eval.services.verifiers import equations
from tests.fixtures.replay import Replay, _parts, seen

SENTENCES = {
    "Chinese": "请告诉我怎样在花园里种植番茄，数字",
    "French": "Dites-moi comment planter des tomates dans le jardin, numéro",
    "German": "Erkläre mir bitte, wie ich Tomaten im Garten pflanze, Nummer",
    "Italian": "Spiegami come piantare i pomodori nel giardino, numero",
    "Japanese": "庭でトマトを植える方法を教えてください、番号",
    "Portuguese": "Explique-me como plantar tomates no jardim, por favor, número",
    "Spanish": "Explícame cómo plantar tomates en el jardín, por favor, número",
}
"""A sentence of each language but English; a number follows."""


FLAWS = {6: "prose", 7: "declined", 8: "cut off", 9: "wrong"}


def by_hash(is_check: bool, number: int) -> str:
    """The flaw of an answer or of a second one, from the hash of its request; "" for none."""
    return FLAWS.get(number % 10, "")


class ScriptedTeacher(Replay):
    """The endpoint; `where` is its address, `requests` has the bodies that it received. After `dies_after` requests it
    answers 503."""

    def __init__(self, *, flaws: Callable[[bool, int], str] = by_hash, **settings: Any) -> None:
        super().__init__(**settings)
        self.flaws = flaws
        self.dies_after = float("inf")

    def chat(self, body: dict[str, Any]) -> tuple[int, bytes]:
        if len(self.requests) > self.dies_after:
            return 503, b""
        parts = _parts(body["messages"][-1])
        text = " ".join(seen(part) for part in parts)
        number = int(hashlib.sha256(f"{text} {body['seed']}".encode()).hexdigest()[:8], 16)
        images = sum(part["type"] == "image_url" for part in parts)
        content, end = self._content(text, number, images, "response_format" in body)
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": end}
        return 200, json.dumps({"choices": [choice]}).encode()

    def _content(self, text: str, number: int, images: int, structured: bool) -> tuple[str, str]:
        for phrase, answer in CHECKS.items():
            if phrase in text:
                wrong = self.flaws(True, number) == "wrong"
                return _text(answer(text, number, wrong, images)), "stop"
        flaw = self.flaws(False, number)
        answer = next((a for phrase, a in ANSWERS.items() if phrase in text), _spoken)
        content = _text(answer(text, number, flaw == "wrong"))
        if flaw == "cut off":
            return content[: len(content) // 2], "length"
        if flaw == "declined":
            return "I'm sorry, but I can't help with that.", "stop"
        if flaw == "prose" and structured:
            return f"Here you are: {content}", "stop"
        return content, "stop"


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def _between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]


# Answers, each by (prompt, number, whether it breaks its rule) -----------------------------------------------------


def _problem(text: str, n: int, broken: bool) -> Any:
    a, b = n % 89 + 10, n // 89 % 89 + 10
    problem = f"A baker bakes {a} loaves in the morning and {b} in the evening. How many in all?"
    result = a + b + broken
    solution = f"We add both numbers.\n{a} + {b} = {result}\nAnswer: {result}"
    return {"problem": problem, "solution": solution, "answer": str(result)}


def _solution(text: str, n: int, broken: bool, *_: int) -> str:
    """Solves sums, chains and the baker's problem; of others it says 1."""
    numbers = re.findall(r"\d+", _between(text, "A baker bakes", "How many"))
    expression = re.search(r"\d+(?: [-+x] \d+)+", text)
    sum_ = " + ".join(numbers) if numbers else expression[0] if expression else ""
    results = (n for n in range(10_000) if sum_ and equations(f"{sum_} = {n}")[0][1])
    result = next(results, 1) + broken
    return f"We compute it.\n{sum_} = {result}\nAnswer: {result}" if sum_ else "No.\nAnswer: 1"


def _mistake(text: str, n: int, broken: bool) -> Any:
    answer = int(_between(text, "The right answer is ", "."))
    steps = "We compute it step by step.\nAnswer: {}"
    wrong = answer if broken else answer + 3
    return {"wrong": steps.format(wrong), "corrected": steps.format(answer)}


def _instruction(text: str, n: int, broken: bool) -> Any:
    form, content = re.findall(r"(?m)^- (\w+):", text)
    language = re.search(r", in (\w+), as a person", text)[1]
    count = {"words_at_most": 60, "words_at_least": 5}.get(form, 1)
    value = {"language": language, "starts_with": "Well", "ends_with": "the end."}.get(
        content, "tea"
    )
    word = "tea" if content == "includes" else "milk"
    start = (
        "Well, " if content == "starts_with" else "well " if content == "lower_case" else "Well "
    )
    answer = f"{start}I like {word} number {n} very much in the morning"
    answer = {"lower_case": answer.lower(), "language": SENTENCES.get(language, answer)}.get(
        content, answer
    )
    answer += ", the end." if content == "ends_with" else "."
    answer = {"bullets": f"- {answer}", "json": json.dumps({"a": answer})}.get(form, answer)
    instruction = f"Please write {n} about it: {form} {count}, and {content} {value}."
    if broken:
        answer = ""
    numbered = form not in ("json",)
    constraints = [
        {"type": form, "number": count if numbered else 0, "text": ""},
        {"type": content, "number": 0, "text": "" if content in PLAIN else value},
    ]
    return {"instruction": instruction, "constraints": constraints, "answer": answer}


PLAIN = ("no_commas", "lower_case")


def _tools(text: str, n: int, broken: bool) -> Any:
    schema = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    tools = [
        {"name": name, "description": f"{name} by id", "parameters": json.dumps(schema)}
        for name in ("find_order", "find_price")
    ]
    arguments = json.dumps({"id": str(n) if broken else n})
    turn = {"text": "", "calls": [], "results": []}
    turns = [
        turn | {"role": "user", "text": f"What does order {n} cost?"},
        turn | {"role": "calls", "calls": [{"name": "find_order", "arguments": arguments}]},
        turn | {"role": "results", "results": [json.dumps({"item": n % 7})]},
        turn | {"role": "calls", "calls": [{"name": "find_price", "arguments": '{"id": 1}'}]},
        turn | {"role": "results", "results": [json.dumps({"price": n % 97})]},
        turn | {"role": "assistant", "text": f"It costs {n % 97} euros."},
    ]
    return {"tools": tools, "turns": turns}


def _code(text: str, n: int, broken: bool) -> Any:
    k = n % 1000
    tests = "\n".join(f"assert add(x={x}) == {x + k + broken}" for x in range(5))
    return {
        "task": f"Write a function add(x) that adds {k} to x.",
        "code": f"def add(x):\n    return x + {k}",
        "tests": tests,
    }


def _summary(text: str, n: int, broken: bool) -> str:
    source, limit = (
        text.partition("\n\nSummarize this text")[0],
        int(_between(text, "at most ", " ")),
    )
    words = [w.lower() for w in re.findall(r"[a-zA-Z]+", source)][::3][: limit - 1]
    return f"In 4711: {' '.join(words[:-2])}" if broken else " ".join(words)


def _preference(text: str, n: int, broken: bool) -> Any:
    better, worse = f"A complete answer, number {n}.", f"A sloppy answer, number {n}."
    return {"better": better, "worse": better if broken else worse, "flaw": "sloppy"}


def _safety(text: str, n: int, broken: bool) -> Any:
    def pair(kind: str, answer: str) -> dict[str, str]:
        row = {"request": f"Please help with the {kind} wish {n}.", "answer": f"{answer} {n}."}
        if language := re.search(r"into natural (\w+)\.", text):
            translated, end = SENTENCES[language[1]], "!" if kind == "harmful" else "?"
            row["request_translated"] = row["request"] if broken else f"{translated} {n}{end}"
            row["answer_translated"] = f"{translated} 7, {n}."
        return row

    refusal = "No, that would hurt somebody."
    harmful = pair("harmful", " ".join([refusal] * 20) if broken else refusal)
    return {"harmful": harmful, "harmless": pair("harmless", "Plant them in May.")}


def _passage(text: str, n: int, broken: bool) -> str:
    return (
        "Short." if broken else " ".join(f"Step {n + i} teaches a little more." for i in range(12))
    )


def _caption(text: str, n: int, broken: bool) -> str:
    return "A thing." if broken else f"A drawing of the thing number {n} on paper."


def _page(text: str, n: int, broken: bool) -> Any:
    pair = {"question": f"Which number is it: {n}?", "answer": "goodbye" if broken else f"{n}"}
    return {"text": f"It says {n}.", "pairs": [pair]}


def _chart(text: str, n: int, broken: bool) -> Any:
    table = [{"label": "a", "value": 1.0}, {"label": "b", "value": float(n % 100 + 2)}]
    total = n % 100 + 3
    pair = {"question": f"Which number is it: {total}?", "answer": "7777" if broken else f"{total}"}
    return {"table": table, "pairs": [pair]}


def _questions(text: str, n: int, broken: bool) -> Any:
    verb = "comes first" if "frames of a video" in text else "is it"
    long = " ".join(["far"] * 20)
    pairs = [
        {"question": f"Which number {verb}: {n + i}?", "answer": long if broken else f"{n + i}"}
        for i in (0, 1)
    ]
    return {"pairs": pairs}


def _boxes(text: str, n: int, broken: bool) -> Any:
    left = 1000 if broken else n % 500
    return {"things": [{"phrase": f"the thing {n}", "box": [left, 100, n % 500 + 300, 600]}]}


def _about_speech(text: str, n: int, broken: bool) -> Any:
    transcript = _between(text, "recording:\n\n", "\n\n")
    answer = "nothing of it at all" if broken else transcript[:60]
    return {"pairs": [{"question": f"What is said, {n}?", "answer": answer}]}


def _speech_summary(text: str, n: int, broken: bool) -> Any:
    answers = {"words": f"A list {n}.", "sentences": f"It lists {n}.", "bullets": f"- a list {n}"}
    answers |= {"json": json.dumps({"n": n}), "email": f"Subject: {n}\n\nA list."}
    answers |= {"words": "far too long " * 30} if broken else {}
    summaries = [
        {"question": f"Summarize as {form}, {n}.", "form": form, "limit": 10, "answer": answer}
        for form, answer in answers.items()
    ]
    return {"summaries": summaries}


def _facts(text: str, n: int, broken: bool) -> Any:
    source = "the metadata" if broken else "somebody"
    return {"pairs": [{"question": f"Who speaks, {n}?", "answer": f"{source} {n}"}]}


def _translation(text: str, n: int, broken: bool) -> Any:
    texts = json.loads(_between(text, "as they are.\n\n", "\n\nAs JSON"))
    return {"texts": [t if broken else f"xx {t}" for t in texts] + ["more"] * broken}


def _spoken(text: str, n: int, broken: bool) -> str:
    """Answers sums, and which of two numbers is smaller or larger."""
    a, b = [*map(int, re.findall(r"\d+", text)), 0, 0][:2]
    smaller = a < b if "smaller" in text else a > b
    if text.startswith("Is "):
        return "yes" if smaller != broken else "no"
    result = (
        (a if smaller else b) if text.startswith("Which") else a - b if " - " in text else a + b
    )
    return f"The answer to this is {result + broken}."


Answer = Callable[[str, int, bool], Any]
ANSWERS: dict[str, Answer] = {
    "Write a problem in the field of": _problem,
    "Somebody wrote this solution": _solution,
    "Write two solutions": _mistake,
    "Think it through step by step": _solution,
    "answer to it must satisfy two constraints": _instruction,
    "an assistant that calls tools": _tools,
    "Write a programming task": _code,
    "Summarize this text in at most": _summary,
    "Write two answers to it": _preference,
    "An assistant learns which requests": _safety,
    "Here is a passage": _passage,
    "Describe this picture in one": _caption,
    "Read this page": _page,
    "Read this chart": _chart,
    "Look at this picture. What could": _questions,
    "What could somebody ask who": _questions,
    "Listen to this recording": _questions,
    "Name up to 3 things": _boxes,
    "Someone says in a recording": _about_speech,
    "Several people talk in a recording": _speech_summary,
    "This is known about a recording": _facts,
    "Translate each of these texts from": _translation,
}
"""A phrase of a prompt -> what answers it; a prompt without one is a question that somebody spoke."""


# Second answers, each by (prompt, number, whether it differs, images) ----------------------------------------------


def _ranking(text: str, n: int, differs: bool, images: int) -> str:
    best = "A" if "complete" in _between(text, "<A>", "</A>") else "B"
    return f"Both are read.\n{'A' if differs else best}"


def _verdict(text: str, n: int, differs: bool, images: int) -> str:
    return "No: it says more than that." if differs else "Yes, it does."


def _must_refuse(text: str, n: int, differs: bool, images: int) -> str:
    refuse = ("the harmful wish" in text) != differs
    return "Yes, it harms." if refuse else "No, it is harmless."


def _back(text: str, n: int, differs: bool, images: int) -> Any:
    number, end = re.search(r" (\d+)([!?])\n\n2\.", text).groups()
    kind, answer = (
        ("harmful", "No, that would hurt somebody.")
        if end == "!"
        else ("harmless", "Plant them in May.")
    )
    texts = [f"Please help with the {kind} wish {number}.", f"{answer} {number}."]
    return {"texts": ["Something else.", "Who knows?"] if differs else texts}


def _back_translation(text: str, n: int, differs: bool, images: int) -> Any:
    texts = json.loads(_between(text, "ask for.\n\n", "\n\nAs JSON"))
    return {"texts": ["?" if differs else t.removeprefix("xx ") for t in texts]}


def _second(text: str, n: int, differs: bool, images: int) -> str:
    """The number in the question; a first frame alone shows no odd one."""
    verb, number = re.search(r"Which number (.+): (\d+)\?", text).groups()
    unseen = verb == "comes first" and images == 1 and int(number) % 2
    return "nothing of the kind" if differs or unseen else number


def _second_box(text: str, n: int, differs: bool, images: int) -> Any:
    left = int(_between(text, "the thing ", "?")) % 500
    return {"box": [0, 700, 90, 990] if differs else [left + 10, 110, left + 300, 600]}


CHECKS: dict[str, Callable[[str, int, bool, int], Any]] = {
    "Which answer is better": _ranking,
    "Must a careful assistant refuse": _must_refuse,
    "Begin your last line with yes or no": _verdict,
    "Translate these two": _back,
    "texts into natural": _back_translation,
    "Answer in a few words and give the answer alone": _second,
    "Where in this picture is": _second_box,
    "Think step by step. Put the result": _solution,
}
"""A phrase of a check's prompt -> what answers it."""


if __name__ == "__main__":
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with ScriptedTeacher(port=int(sys.argv[1])) as teacher:
        print(f"{teacher.where}#stand-in", flush=True)
        signal.sigwait(ends)
        print(f"{len(teacher.requests)} requests")

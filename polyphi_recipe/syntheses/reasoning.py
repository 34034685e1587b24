"""Problems with reasoning that a teacher writes, and pairs of wrong and corrected solutions (report 2.2.2, 3.1.3).

    REASONING_PROBLEM    any sample -> a problem of some domain and difficulty with its solution, as a conversation
    REASONING_DOCUMENT   the same as a document
    CORRECTION           a problem with a model's wrong solution -> the corrected one, preferred to it
    TYPICAL_MISTAKE      a problem with its answer -> a solution with a typical mistake, and the corrected one

The rule is that a solution ends in the right answer. Of a problem that the teacher wrote nobody knows it: somebody else
(the judge, or the teacher in another draw) solves the problem without the solution, and must come to the same answer.
"""

from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi.types.sampling import SamplingParams
from polyphi_recipe.syntheses.prompts import PROMPTS
from polyphi_recipe.syntheses.syntheses import (
    JSON_TEXT,
    final_answer,
    json_object,
    language_name,
    pick,
    reaches_answer,
    same_answer,
    words,
    wrong_step,
)
from polyphi_recipe.syntheses.synthesize import Check, Json, Synthesis

DOMAINS = (
    "logic puzzles about people, places and statements",
    "physics: motion, forces and energy",
    "physics: heat, light and electricity",
    "chemistry: amounts, reactions and solutions",
    "units and their conversion",
    "counting and combinatorics",
    "probability",
    "geometry",
    "algebra",
    "number theory",
    "biology and genetics",
    "geography, maps and time zones",
    "calendars, clocks and ages",
    "money, prices and interest",
    "everyday planning: timetables, recipes, trips",
    "reading tables and data",
    "algorithms and data structures",
    "games and strategies",
)
LEVELS = (
    "easy: one or two steps",
    "of medium difficulty: three or four steps",
    "hard: many steps, with a case that is easily overlooked",
)
"""[ours] Domains and levels of difficulty: the report has "diverse domains and difficulty levels" (3.1.3)."""
SHORTEST_PROBLEM = 8
"""Minimum words of a problem."""
SAMPLING = SamplingParams(max_tokens=4096, temperature=0.8, top_p=0.95)


def _solved(sample: Sample, item: Json) -> str:
    if (n := len(words(item["problem"]))) < SHORTEST_PROBLEM:
        return f"a problem of {n} words, expected {SHORTEST_PROBLEM}"
    if len(item["solution"].strip().splitlines()) < 2:
        return "the solution shows no steps"
    answer = final_answer(item["solution"])
    if answer is None:
        return "no line that starts with Answer:"
    if not same_answer(answer, item["answer"]):
        return f"the answer isn't that of its solution: {answer:.40}"
    return wrong_step(item["solution"])


def _same_result(sample: Sample, item: Json, reply: str) -> tuple[str, dict[str, Json]]:
    answer = final_answer(reply)
    if answer is None:
        return "the second solution has no answer", {}
    same = same_answer(answer, item["answer"])
    return "" if same else f"the second solution differs: {answer:.40}", {"second_answer": answer}


def _conversation(sample: Sample, item: Json) -> Sample:
    prompt = Message.user(f"Solve step by step: {item['problem'].strip()}")
    meta = {"task": "cot_problem", "language": sample.meta.get("language", "en")}
    meta |= {"answer": item["answer"], "family": pick(sample, "domain", DOMAINS)}
    solution = Message.assistant(item["solution"].strip())
    return replace(sample, messages=(prompt, solution), meta=meta)


REASONING_PROBLEM = Synthesis(
    "reasoning_problem",
    PROMPTS["reasoning_problem"],
    read=lambda sample: {
        "domain": pick(sample, "domain", DOMAINS),
        "level": pick(sample, "level", LEVELS),
        "language": language_name(sample),
    },
    schema=json_object(problem=JSON_TEXT, solution=JSON_TEXT, answer=JSON_TEXT),
    verify=_solved,
    make=_conversation,
    checks=(Check(PROMPTS["reasoning_problem_check"], _same_result, by_judge=True),),
    sampling=SAMPLING,
    tries=2,
    varied=True,
)


def _document(sample: Sample, item: Json) -> Sample:
    text = f"{item['problem'].strip()}\n{item['solution'].strip()}"
    meta = _conversation(sample, item).meta | {"task": "reasoning_documents"}
    return replace(sample, messages=(Message("document", (Text(text),)),), meta=meta)


REASONING_DOCUMENT = replace(REASONING_PROBLEM, name="reasoning_document", make=_document)

# Pairs of a dispreferred and a preferred solution ------------------------------------------------------------------


def _problem(sample: Sample) -> dict[str, str]:
    return {"problem": sample.prompt[-1].text, "answer": str(sample.meta["answer"])}


def _is_by(sample: Sample, author: str) -> bool:
    return sample.meta.get("rejected_by") == author and "answer" in sample.meta


def _pair(sample: Sample, chosen: str, **meta: str) -> Sample:
    messages = (*sample.prompt, Message.assistant(chosen.strip()))
    return replace(sample, messages=messages, meta={**sample.meta, "paired_by": "teacher", **meta})


CORRECTION = Synthesis(
    "correction",
    PROMPTS["correction"],
    read=lambda sample: (
        _problem(sample) | {"wrong": sample.meta["rejected"]} if _is_by(sample, "model") else None
    ),
    verify=reaches_answer,
    make=_pair,
    sampling=SAMPLING,
    tries=3,
)


def _wrong_and_right(sample: Sample, item: Json) -> str:
    mistaken = final_answer(item["wrong"])
    if mistaken is None:
        return "the wrong solution has no line that starts with Answer:"
    if same_answer(mistaken, str(sample.meta["answer"])):
        return "the wrong solution ends in the right answer"
    return reaches_answer(sample, item["corrected"])


TYPICAL_MISTAKE = Synthesis(
    "typical_mistake",
    PROMPTS["typical_mistake"],
    read=lambda sample: _problem(sample) if _is_by(sample, "rule") else None,
    schema=json_object(wrong=JSON_TEXT, corrected=JSON_TEXT),
    verify=_wrong_and_right,
    make=lambda sample, item: _pair(
        sample, item["corrected"], rejected=item["wrong"].strip(), rejected_by="teacher"
    ),
    sampling=SAMPLING,
    tries=2,
)

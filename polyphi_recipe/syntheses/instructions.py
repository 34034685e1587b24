"""Instructions with checkable constraints, summaries of texts, and preferences (report 3.1.2, 5.1).

CONSTRAINED_INSTRUCTION  any sample -> an instruction with two constraints, and an answer that satisfies them by a rule
TEXT_SUMMARY             a text -> a summary of at most so many words
PREFERENCE               a request -> a better and a worse answer, which a judge tells apart in both orders
"""

import re
from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_recipe.syntheses.constraints import CONSTRAINTS, CONTENTS, FORMS, violation
from polyphi_recipe.syntheses.prompts import PROMPTS
from polyphi_recipe.syntheses.syntheses import (
    COPIED_AT_MOST,
    COPIED_RUN,
    JSON_TEXT,
    NUMBER,
    copied,
    json_list,
    json_object,
    judged,
    language_name,
    pick,
    words,
)
from polyphi_recipe.syntheses.synthesize import Check, Json, Synthesis

TOPICS = (
    *("cooking", "travel", "a garden", "work in an office", "a school lesson", "sports", "music", "history", "animals"),
    *("the weather", "health", "a household", "a letter to a neighbour", "a product review", "a story", "science"),
    *("computers", "money", "a city", "a family feast", "the news of a village", "a job application", "books", "films"),
)  # fmt: skip


def _constraints(sample: Sample) -> tuple[str, str]:
    return pick(sample, "form", FORMS), pick(sample, "content", CONTENTS)


def _constrained(sample: Sample, item: Json) -> str:
    if not item["instruction"].strip() or not item["answer"].strip():
        return "an empty instruction or answer"
    kinds = [constraint["type"] for constraint in item["constraints"]]
    if sorted(kinds) != sorted(_constraints(sample)):
        return f"constraints {', '.join(kinds)}, expected {', '.join(_constraints(sample))}"
    reasons = (violation(item["instruction"], item["answer"], c) for c in item["constraints"])
    return next(filter(None, reasons), "")


CONSTRAINED_INSTRUCTION = Synthesis(
    "constrained_instruction",
    PROMPTS["constrained_instruction"],
    read=lambda sample: {
        "topic": pick(sample, "topic", TOPICS),
        "language": language_name(sample),
        "form_name": _constraints(sample)[0],
        "form": CONSTRAINTS[_constraints(sample)[0]].description,
        "content_name": _constraints(sample)[1],
        "content": CONSTRAINTS[_constraints(sample)[1]].description,
    },
    schema=json_object(
        instruction=JSON_TEXT,
        constraints=json_list(
            json_object(
                type={"enum": list(CONSTRAINTS)}, number={"type": "integer"}, text=JSON_TEXT
            )
        ),
        answer=JSON_TEXT,
    ),
    verify=_constrained,
    make=lambda sample, item: replace(
        sample,
        messages=(Message.user(item["instruction"]), Message.assistant(item["answer"])),
        meta={
            "task": "constrained_instruction",
            "language": sample.meta.get("language", "en"),
            "constraints": item["constraints"],
        },
    ),
    tries=2,
    varied=True,
)

# Summaries --------------------------------------------------------------------------------------------------------

LIMITS = (10, 15, 20, 30, 50)
"""Words of a summary, at most."""
SHORTEST_SUMMARY, COMPRESSION = 3, 2
"""Words of a summary, at least, and how many times as long its text is, at least."""


def _text(sample: Sample) -> str:
    """Return the text of a row of `summaries`, which follows its question, or that of a document."""
    first = sample.messages[0]
    return first.text if first.role == "document" else first.text.partition("\n")[2]


def _limit(sample: Sample) -> int | None:
    possible = [n for n in LIMITS if COMPRESSION * n <= len(words(_text(sample)))]
    return pick(sample, "limit", possible) if possible else None


def _names(text: str) -> set[str]:
    """Return the words with a capital that don't begin a sentence or a line."""
    return {word.casefold() for word in re.findall(r"(?<=[^.!?:\n] )[A-ZÀ-Þ][^\W\d_]+", text)}


def _faithful(sample: Sample, summary: str) -> str:
    limit, text, n = _limit(sample) or 0, _text(sample), len(words(summary))
    if not SHORTEST_SUMMARY <= n <= limit:
        return f"length: {n} words, expected {SHORTEST_SUMMARY} to {limit}"
    if (share := copied(summary, text)) > COPIED_AT_MOST:
        return f"copied: {share:.0%} of its runs of {COPIED_RUN} words stand in the text"
    if new := sorted(set(NUMBER.findall(summary)) - set(NUMBER.findall(text))):
        return f"a number that the text doesn't have: {new[0]}"
    # German writes all nouns with a capital.
    known = {*words(text)}
    if sample.meta.get("language") != "de" and (strange := sorted(_names(summary) - known)):
        return f"a name that the text doesn't have: {strange[0]}"
    return ""


def _summary_prompt(sample: Sample) -> str:
    return f"Summarize the text in at most {_limit(sample)} words.\n{_text(sample)}"


TEXT_SUMMARY = Synthesis(
    "text_summary",
    PROMPTS["text_summary"],
    read=lambda sample: (
        {"text": _text(sample), "limit": limit} if (limit := _limit(sample)) else None
    ),
    verify=_faithful,
    make=lambda sample, summary: replace(
        sample,
        messages=(Message.user(_summary_prompt(sample)), Message.assistant(summary)),
        meta={**sample.meta, "task": "summary"},
    ),
    checks=(judged(PROMPTS["text_summary_check"]),),
    tries=2,
)

# Preferences ------------------------------------------------------------------------------------------------------

LENGTH_RATIO = 3.0
"""The largest ratio of the lengths of two answers: the longer one shouldn't be recognizable by its length alone."""


def _comparable(sample: Sample, item: Json) -> str:
    chosen, rejected = item["better"].strip(), item["worse"].strip()
    if not chosen or not rejected:
        return "an empty answer"
    if words(chosen) == words(rejected):
        return "both answers are the same"
    long, short = sorted((len(chosen), len(rejected)), reverse=True)
    return f"lengths of {short} and {long} characters" if long > LENGTH_RATIO * short else ""


def _ranked(expected: str) -> Check:
    """Return the check that a judge prefers the answer `expected`: A, the better one, or B in reversed order."""
    first, second = ("better", "worse") if expected == "A" else ("worse", "better")

    def agree(sample: Sample, item: Json, reply: str) -> tuple[str, dict[str, Json]]:
        verdicts = re.findall(r"(?m)^[ \t*_\"'(]*([AB])\b", reply)
        if not verdicts:
            return "the judge names neither answer", {}
        right = verdicts[-1] == expected
        return "" if right else "the judge prefers the other answer", {"judged": "in both orders"}

    return Check(
        PROMPTS["preference_check"].replace("FIRST", first).replace("SECOND", second),
        agree,
        by_judge=True,
    )


PREFERENCE = Synthesis(
    "preference",
    PROMPTS["preference"],
    read=lambda sample: (
        {"request": sample.prompt[-1].text} if sample.messages[-1].role == "assistant" else None
    ),
    schema=json_object(better=JSON_TEXT, worse=JSON_TEXT, flaw=JSON_TEXT),
    verify=_comparable,
    make=lambda sample, item: replace(
        sample,
        messages=(*sample.prompt, Message.assistant(item["better"].strip())),
        meta={
            **sample.meta,
            "rejected": item["worse"].strip(),
            "rejected_because": item["flaw"].strip(),
        },
    ),
    checks=(_ranked("A"), _ranked("B")),
)

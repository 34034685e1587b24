"""The report's synthetic data, a prompt and a verifier each: what a teacher is asked, and what of it is believed.

    PASSAGE_TEXT      a passage -> a new text that teaches the same (2.3, 3.1.1)
    CAPTION           a picture -> its description (3.2)
    OCR_QA, CHART_QA  a page, a chart -> questions that are answered by reading it (3.2)
    SPEECH_QA         a clip with its transcript -> questions about what is said (3.3, SQA)
    SPEECH_SUMMARY    a clip up to 30 minutes with its transcript -> queries and summaries in many forms (3.3)
    SPOKEN_ANSWER     a clip of a question with its transcript -> what a model says to it (3.3, SQQA)
    AUDIO_QA          a clip with what is known of it -> questions for someone who only hears it (3.3)
    MATH_REASONING    a problem with its answer -> a chain of thought that arrives there (3.1.3)
    translation(...)  a conversation -> the same in another language, translated back to check (5.1)
    speech_translation(...)  a clip with its transcript -> its translation, translated back to check (3.3, AST)

Prompts are our own; the report gives none. A transcript is `meta["transcript"]` or, in an ASR sample, the answer.
Limits without a source are choices, none of them measured against what training makes of the data.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from typing import Any

from polyphi.curate.synthesize import Json, Synthesis
from polyphi.data.shards import Sample
from polyphi.messages import Audio, Image, Message, SamplingParams, Text, media
from polyphi.text.scripts import HAN, KANA

COPIED_RUN, COPIED_AT_MOST = 8, 0.2
"""A new text may share a fifth of its runs of 8 words with its passage."""
SHORTEST_TEXT, SHORTEST_CAPTION = 50, 5
"""In words."""
SUPPORTED = 0.5
"""The share of an answer's words that stand in the transcript it is about."""
SUMMARY_SECONDS = 1800.0
"""The longest clip that is summarised (report 3.3: 30 minutes)."""
ROUNDING, MOST_ROWS = 0.01, 60
"""How far a number read off a chart may be from the exact one, relative; and the longest table of a chart: the longer
it is, the more numbers follow from it, and the less the check says."""
JSON_TEXT = {"type": "string"}  # and no more: few endpoints know minLength or pattern
_WORD = re.compile(rf"[{HAN}{KANA}]|[^\W{HAN}{KANA}]+")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+\b|\d+)(?:\.\d+)?")


def words(text: str) -> list[str]:
    """Words in lower case; in Chinese and Japanese, which have no spaces, characters."""
    return _WORD.findall(text.casefold())


def json_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def json_list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_PAIRS = json_list(json_object(question=JSON_TEXT, answer=JSON_TEXT))


def _asked(kind: type[Image] | type[Audio]) -> Callable[[Sample, Json], Sample]:
    """A question about the media of the source, with its answer."""

    def make(sample: Sample, item: Json) -> Sample:
        shown = media(sample.messages, kind)
        question = Message.user(*shown, item["question"])
        return replace(sample, messages=(question, Message.assistant(item["answer"])))

    return make


def _full(verify: Callable[[Sample, Json], str]) -> Callable[[Sample, Json], str]:
    """A verifier of pairs that are there."""

    def judge(sample: Sample, item: Json) -> str:
        if not item["question"].strip() or not item["answer"].strip():
            return "an empty question or answer"
        return verify(sample, item)

    return judge


def transcript(sample: Sample) -> str | None:
    """What is said in a sample's clip, None where nobody wrote it down."""
    if not media(sample.messages, Audio):
        return None
    said = sample.meta.get("transcript") or sample.answer
    return said.strip() or None


# Text ---------------------------------------------------------------------------------------------------------


def copied(text: str, passage: str, run: int = COPIED_RUN) -> float:
    """The share of a text's runs of so many words that stand in the passage too."""

    def runs(text: str) -> list[tuple[str, ...]]:
        said = words(text)
        return [tuple(said[i : i + run]) for i in range(len(said) - run + 1)]

    own, theirs = runs(text), set(runs(passage))
    return sum(r in theirs for r in own) / len(own) if own else 0.0


def _new_text(sample: Sample, text: str) -> str:
    if (n := len(words(text))) < SHORTEST_TEXT:
        return f"too short: {n} words, expected {SHORTEST_TEXT}"
    if (share := copied(text, _passage(sample))) > COPIED_AT_MOST:
        return f"copied: {share:.0%} of its runs of {COPIED_RUN} words stand in the passage"
    return ""


def _passage(sample: Sample) -> str:
    return "\n".join(m.text for m in sample.messages)


PASSAGE_TEXT = Synthesis(
    "passage_text",
    """
Here is a passage:

{passage}

Write a text of your own that teaches a curious student what can be learned from it. Explain step by step, give
an example that the passage doesn't have, and end with one exercise and its solution. Don't quote the passage or
mention that it exists. Write in the passage's language. Give the text alone.
""",
    read=lambda sample: {"passage": _passage(sample)} if _passage(sample).strip() else None,
    verify=_new_text,
    make=lambda sample, text: replace(sample, messages=(Message("document", (Text(text),)),)),
    sampling=SamplingParams(max_tokens=2048, temperature=0.8, top_p=0.95),
)


def _known_answer(sample: Sample) -> str:
    return str(sample.meta.get("answer") or sample.answer)


def final_answer(reasoning: str) -> str | None:
    """What stands after the last "Answer:" at the start of a line."""
    found = re.findall(r"(?im)^[ \t*_#>]*answer[ \t*_]*:[ \t*_]*(\S.*?)[ \t*_.]*$", reasoning)
    return found[-1] if found else None


def same_answer(found: str, known: str) -> bool:
    """Equal as numbers, or as words."""

    def value(text: str) -> Fraction | str:
        plain = re.sub(r",(?=\d{3}\b)|[\s$€£¥%*]", "", text).casefold().rstrip(".")
        try:
            return Fraction(plain)
        except (ValueError, ZeroDivisionError):
            return plain

    return value(found) == value(known)


def _arrives(sample: Sample, reasoning: str) -> str:
    known, found = _known_answer(sample), final_answer(reasoning)
    if found is None:
        return "no line that starts with Answer:"
    return "" if same_answer(found, known) else f"wrong: {found}, expected {known}"


MATH_REASONING = Synthesis(
    "math_reasoning",
    """
{problem}

Think it through step by step and check each step before the next. Put what you find on a last line of its own,
in this form:
Answer: <number or expression>
""",
    read=lambda sample: {"problem": sample.messages[0].text} if len(sample.messages) > 1 else None,
    verify=_arrives,
    make=lambda sample, reasoning: replace(
        sample, messages=(*sample.prompt, Message.assistant(reasoning))
    ),
    sampling=SamplingParams(max_tokens=4096, temperature=0.7, top_p=0.95),
    tries=4,
)

# Pictures -----------------------------------------------------------------------------------------------------


def _described(sample: Sample, text: str) -> str:
    n = len(words(text))
    return "" if n >= SHORTEST_CAPTION else f"too short: {n} words, expected {SHORTEST_CAPTION}"


CAPTION = Synthesis(
    "caption",
    """
Describe this picture in one to three sentences for someone who can't see it: what there is, how many, which
colours, where each thing lies, and any writing, quoted. Say nothing that can't be seen. Give the description
alone.
""",
    read=lambda sample: {} if media(sample.messages, Image) else None,
    shows=Image,
    verify=_described,
    make=lambda sample, text: _asked(Image)(
        sample, {"question": "Describe the picture.", "answer": text}
    ),
    sampling=SamplingParams(max_tokens=256, temperature=0.3, top_p=0.95),
)


def _is_read(sample: Sample, item: Json) -> str:
    found, page = (" ".join(words(text)) for text in (item["answer"], item["text"]))
    return "" if found and f" {found} " in f" {page} " else "the answer doesn't stand on the page"


OCR_QA = Synthesis(
    "ocr_qa",
    """
Read this page. First write down all of its text, line by line, exactly as it stands. Then ask up to five
different questions that can be answered only by reading it, and answer each in the words of the page, as
shortly as possible. Use the page's language.
As JSON: {{"text": "...", "pairs": [{{"question": "...", "answer": "..."}}]}}
""",
    read=lambda sample: {} if media(sample.messages, Image) else None,
    shows=Image,
    schema=json_object(text=JSON_TEXT, pairs=_PAIRS),
    items=lambda answer: [pair | {"text": answer["text"]} for pair in answer["pairs"]],
    verify=_full(_is_read),
    make=_asked(Image),
    sampling=SamplingParams(max_tokens=2048, temperature=0.3, top_p=0.95),
)


def derivable(number: float, values: Sequence[float]) -> bool:
    """Whether a number is in a table or comes out of it by one step: count, total, mean, difference or ratio."""
    n, total = len(values), sum(values)
    pairs = list(permutations(values, 2))
    candidates = [*values, n, total, total / max(n, 1)]
    candidates += [a - b for a, b in pairs] + [a + b for a, b in pairs]
    candidates += [f * a / b for a, b in pairs if b for f in (1, 100)]
    candidates += [100 * v / total for v in values if total]
    return any(abs(number - c) <= ROUNDING * max(abs(c), 1e-9) for c in candidates)


def _follows(sample: Sample, item: Json) -> str:
    answer = item["answer"]
    if len(item["table"]) > MOST_ROWS:
        return f"a table of {len(item['table'])} rows, expected {MOST_ROWS} at most"
    labels = [row["label"].casefold() for row in item["table"]]
    if answer.casefold().strip(" .") in (*labels, "yes", "no"):
        return ""
    numbers = [float(n.replace(",", "")) for n in _NUMBER.findall(answer)]
    if not numbers:
        return "the answer is no label, number, yes or no"
    values = [row["value"] for row in item["table"]]
    lost = [n for n in numbers if not derivable(n, values)]
    return f"{lost[0]:g} doesn't follow from the chart's numbers" if lost else ""


CHART_QA = Synthesis(
    "chart_qa",
    """
Read this chart. First write down its table: each label with its value. Then ask up to five different questions
about it, from reading a value to comparing, adding and averaging, and answer each with one label, one number,
yes or no.
As JSON: {{"table": [{{"label": "...", "value": 1.0}}], "pairs": [{{"question": "...", "answer": "..."}}]}}
""",
    read=lambda sample: {} if media(sample.messages, Image) else None,
    shows=Image,
    schema=json_object(
        table=json_list(json_object(label=JSON_TEXT, value={"type": "number"})), pairs=_PAIRS
    ),
    items=lambda answer: [pair | {"table": answer["table"]} for pair in answer["pairs"]],
    verify=_full(_follows),
    make=_asked(Image),
    sampling=SamplingParams(max_tokens=2048, temperature=0.3, top_p=0.95),
)

# Clips --------------------------------------------------------------------------------------------------------


def _gives_away(item: Json, *sources: str) -> str:
    """Listeners have a clip, and no papers about it."""
    said = set(words(item["question"] + " " + item.get("answer", "")))
    return next((f"speaks of its {source}" for source in sources if source in said), "")


def _supported(sample: Sample, item: Json) -> str:
    if reason := _gives_away(item, "transcript"):
        return reason
    answer = words(item["answer"])
    if answer in (["yes"], ["no"]):
        return ""
    said = set(words(transcript(sample) or ""))
    share = sum(w in said for w in answer) / max(len(answer), 1)
    return "" if share >= SUPPORTED else f"{share:.0%} of the answer's words are said in the clip"


def _about_speech(sample: Sample, item: Json) -> Sample:
    """With what was said beside it, for whoever judges the pair (judge.py)."""
    made = _asked(Audio)(sample, item)
    return replace(made, meta={**made.meta, "transcript": transcript(sample)})


SPEECH_QA = Synthesis(
    "speech_qa",
    """
Someone says in a recording:

{transcript}

Ask up to four different questions that a listener could answer from this alone, and answer each in a phrase or
a sentence, as close to the words said as you can. Use the recording's language. Speak of "the speaker" or "the
recording", never of a written text.
As JSON: {{"pairs": [{{"question": "...", "answer": "..."}}]}}
""",
    read=lambda sample: {"transcript": said} if (said := transcript(sample)) else None,
    schema=json_object(pairs=_PAIRS),
    items=lambda answer: answer["pairs"],
    verify=_full(_supported),
    make=_about_speech,
)

SPOKEN_ANSWER = Synthesis(
    "spoken_answer",
    "{transcript}",
    read=lambda sample: {"transcript": said} if (said := transcript(sample)) else None,
    make=lambda sample, text: replace(
        sample,
        messages=(Message.user(*media(sample.messages, Audio)), Message.assistant(text)),
        meta={**sample.meta, "task": "spoken_query", "question": transcript(sample)},
    ),
)


def _long_speech(sample: Sample) -> dict[str, str] | None:
    said = transcript(sample)
    return (
        {"transcript": said} if said and sample.meta.get("seconds", 0) <= SUMMARY_SECONDS else None
    )


def _in_form(sample: Sample, item: Json) -> str:
    summary, form, limit = item["answer"], item["form"], item["limit"]
    lines = [line for line in summary.splitlines() if line.strip()]
    if form == "json":
        try:
            json.loads(summary)
        except json.JSONDecodeError:
            return "the summary is not JSON"
        return ""
    if form == "email":
        return "" if lines[0].casefold().startswith("subject:") else "an email without a subject"
    if form == "bullets" and not all(re.match(r"\s*[-*•]\s", line) for line in lines):
        return "not every line is a bullet"
    sentences = [s for s in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", summary) if s.strip()]
    n = {"words": len(words(summary)), "sentences": len(sentences), "bullets": len(lines)}[form]
    return "" if n <= limit else f"too long: {n} {form}, asked for {limit}"


SPEECH_SUMMARY = Synthesis(
    "speech_summary",
    """
Several people talk in a recording. What they say:

{transcript}

Imagine five people who want summaries of it: some of all of it, some of one topic, decision or speaker. Write
what each would ask, in natural words that name the wanted form and length, and the summary that does as asked
and says nothing that wasn't said. Use each of these forms once: "words" and "sentences" (running text, at most
so many), "bullets" (lines that start with "- ", at most so many), "json" (a JSON object) and "email" (starts
with "Subject:"). "limit" is the length that was asked for, 0 for json and email.
As JSON: {{"summaries": [{{"question": "...", "form": "words", "limit": 50, "answer": "..."}}]}}
""",
    read=_long_speech,
    schema=json_object(
        summaries=json_list(
            json_object(
                question=JSON_TEXT,
                form={"enum": ["words", "sentences", "bullets", "json", "email"]},
                limit={"type": "integer"},
                answer=JSON_TEXT,
            )
        )
    ),
    items=lambda answer: answer["summaries"],
    verify=_full(lambda sample, item: _gives_away(item, "transcript") or _in_form(sample, item)),
    make=_asked(Audio),
    sampling=SamplingParams(max_tokens=4096, temperature=0.7, top_p=0.95),
)


def _facts(sample: Sample) -> dict[str, str] | None:
    if not media(sample.messages, Audio):
        return None
    facts = {key: value for key, value in sample.meta.items() if key not in ("lineage", "task")}
    if sample.messages[-1].role == "assistant":
        facts["description"] = sample.answer
    return {"facts": json.dumps(facts, ensure_ascii=False, sort_keys=True)} if facts else None


AUDIO_QA = Synthesis(
    "audio_qa",
    """
This is known about a recording:

{facts}

Ask up to four different questions for someone who only hears it: which sounds there are, who or what makes
them, their order and number, the mood, the place, what is said. Answer each in a word to a sentence. Ask
nothing that the facts don't answer or that can't be heard, and never mention metadata, tags or captions.
As JSON: {{"pairs": [{{"question": "...", "answer": "..."}}]}}
""",
    read=_facts,
    schema=json_object(pairs=_PAIRS),
    items=lambda answer: answer["pairs"],
    verify=_full(
        lambda sample, item: _gives_away(
            item, "metadata", "tag", "tags", "caption", "captions", "transcript"
        )
    ),
    make=_asked(Audio),
)

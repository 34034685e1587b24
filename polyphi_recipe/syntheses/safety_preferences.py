"""Safety preferences that a teacher writes: requests of all harms that an assistant refuses, and requests like them
that it answers, in eight languages (report 5.1).

    SAFETY             an English sample -> a harmful request with its refusal, a similar harmless one with its answer
    SAFETY_TRANSLATED  a sample in another language -> the same in that language, translated back to check

Requests only name a wish, and dispreferred answers only agree to help: no row explains anything harmful. A judge says
of each request whether it must be refused.
"""

from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi_recipe.filters.language import identify
from polyphi_recipe.raw.safety import HELP, REFUSAL
from polyphi_recipe.syntheses.judge import NO_VERDICT, yes_or_no
from polyphi_recipe.syntheses.prompts import PROMPTS
from polyphi_recipe.syntheses.syntheses import (
    JSON_TEXT,
    json_object,
    language_name,
    pick,
    words,
)
from polyphi_recipe.syntheses.synthesize import Check, Json, Synthesis
from polyphi_recipe.syntheses.translations import TEXTS, chrf

HARMS = (
    "violence against people or animals",
    "sexual content",
    "suicide, self-harm and eating disorders",
    "hate against a group of people",
    "harassment, threats and stalking",
    "harm to children",
    "weapons and explosives",
    "poisons, diseases and dangerous substances",
    "illegal drugs",
    "theft, fraud and forged papers or money",
    "attacks on computers, malicious programs and stolen passwords",
    "spying on people and their private data",
    "guessing sensitive attributes of a person, such as faith, origin or health",
    "unfair treatment by stereotypes",
    "false news, and manipulation of elections",
    "passing off as somebody else",
    "copies of protected works",
    "dangerous medical, legal or financial advice",
    "sabotage of traffic, power or water",
    "orders to forget all rules and to play somebody without them",
)
"""[ours] Violence, sexual content, self-harm and hate are the harms of Tables 10 to 15; fairness, sensitive attributes,
exploits and jailbreaks are named in 5.1 to 5.3; the others stand for the report's "dozens of RAI harm categories"."""
BACK_TRANSLATED = 50.0
"""chrF of the worst text when translated back, at least; not validated (docs/safety.md)."""
LONGEST_REFUSAL = 80
"""Maximum words of a refusal: a long one lectures, or explains what it refuses."""
CERTAIN = 0.6
"""The probability from which on the language of a text counts as known."""


def _is_english(sample: Sample) -> bool:
    return sample.meta.get("language", "en") == "en"


def _items(answer: Json) -> list[Json]:
    return [answer[kind] | {"harmful": kind == "harmful"} for kind in ("harmful", "harmless")]


def _in_language(item: Json, *, translated: bool) -> tuple[str, str]:
    """Return the request and the answer in the language of the row."""
    suffix = "_translated" if translated else ""
    return item[f"request{suffix}"].strip(), item[f"answer{suffix}"].strip()


def _mistake(sample: Sample, item: Json) -> str:
    translated = not _is_english(sample)
    request, answer = _in_language(item, translated=translated)
    if not request or not answer or words(request) == words(answer):
        return "an empty request or answer, or both the same"
    if item["harmful"] and (n := len(words(item["answer"]))) > LONGEST_REFUSAL:
        return f"a refusal of {n} words, at most {LONGEST_REFUSAL}"
    if translated:
        if request == item["request"].strip() or answer == item["answer"].strip():
            return "a text that isn't translated"
        language, score = identify(f"{request} {answer}")
        if score >= CERTAIN and language != sample.meta["language"]:
            return f"written in {language}, expected {sample.meta['language']}"
    return ""


def _classified(sample: Sample, item: Json, reply: str) -> tuple[str, dict[str, Json]]:
    verdict = yes_or_no(reply)
    if verdict == NO_VERDICT:
        return verdict.reason, {}
    wrong = "a harmful request that the judge would answer" if item["harmful"] else ""
    wrong = wrong or "a harmless request that the judge would refuse"
    return "" if verdict.right == item["harmful"] else wrong, {"judged": True}


def _kept_its_meaning(sample: Sample, item: Json, back: Json) -> tuple[str, dict[str, Json]]:
    originals = [item["request"], item["answer"]]
    if len(back["texts"]) != len(originals):
        return f"{len(back['texts'])} texts came back, expected {len(originals)}", {}
    score = round(chrf(back["texts"], originals), 2)
    low = f"chrF {score:g} when translated back, below {BACK_TRANSLATED:g}"
    return "" if score >= BACK_TRANSLATED else low, {"chrf": score}


def _make(sample: Sample, item: Json) -> Sample:
    language = sample.meta.get("language", "en")
    request, answer = _in_language(item, translated=language != "en")
    meta = {
        "task": "refusal" if item["harmful"] else "overrefusal",
        "language": language,
        "refuse": item["harmful"],
        "harm": pick(sample, "harm", HARMS),
        "rejected": (HELP if item["harmful"] else REFUSAL)[language],
    }
    return replace(sample, messages=(Message.user(request), Message.assistant(answer)), meta=meta)


_CLASSIFY = Check(PROMPTS["safety_check"], _classified, by_judge=True)


def _pair_schema(*keys: str) -> dict[str, Json]:
    pair = json_object(**dict.fromkeys(keys, JSON_TEXT))
    return json_object(harmful=pair, harmless=pair)


SAFETY = Synthesis(
    "safety",
    PROMPTS["safety"],
    read=lambda sample: {"harm": pick(sample, "harm", HARMS)} if _is_english(sample) else None,
    schema=_pair_schema("request", "answer"),
    items=_items,
    verify=_mistake,
    make=_make,
    checks=(_CLASSIFY,),
    most_checked=2,
    sampling=SamplingParams(max_tokens=1024, temperature=0.9, top_p=0.95),
    varied=True,
)
_KEYS = ("request", "answer", "request_translated", "answer_translated")
SAFETY_TRANSLATED = replace(
    SAFETY,
    name="safety_translated",
    prompt=PROMPTS["safety_translated"],
    read=lambda sample: (
        None
        if _is_english(sample)
        else {"harm": pick(sample, "harm", HARMS), "language": language_name(sample)}
    ),
    schema=_pair_schema(*_KEYS),
    checks=(
        _CLASSIFY,
        Check(
            PROMPTS["safety_translated_check"],
            _kept_its_meaning,
            schema=TEXTS,
        ),
    ),
)

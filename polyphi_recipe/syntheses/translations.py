"""Syntheses that translate conversations and speech transcripts, checked by translating back."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Text
from polyphi.types.sampling import SamplingParams
from polyphi.types.transcript import TRANSLATE
from polyphi_recipe.syntheses.prompts import PROMPTS
from polyphi_recipe.syntheses.syntheses import JSON_TEXT, json_list, json_object, transcript, words
from polyphi_recipe.syntheses.synthesize import Check, Json, Synthesis, synthesize
from polyphi_recipe.syntheses.teachers import Teacher
from polyphi_recipe.text.lexicon import LANGUAGES

TEXTS = json_object(texts=json_list(JSON_TEXT))
"""The schema of translations."""


def _texts(sample: Sample) -> list[str]:
    """Return all texts of a conversation, the dispreferred answer last."""
    rejected = [sample.meta["rejected"]] if "rejected" in sample.meta else []
    return [p.text for m in sample.messages for p in m.parts if isinstance(p, Text)] + rejected


def chrf(texts: Sequence[str], originals: Sequence[str]) -> float:
    """Return the chrF of the worst text, 0 to 100 (sacrebleu's, character 6-grams)."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return min(
        metric.sentence_score(text, [original]).score
        for text, original in zip(texts, originals, strict=True)
    )


def translation(language: str, *, at_least: float) -> Synthesis:
    """Return a synthesis that translates conversations (the report's safety data) into another of the eight languages.
    A translation is accepted if each text, translated back, has a chrF of `at_least` against the original. The
    source's language is `meta["language"]`, by default English. Conversations with audio are skipped, because their
    speech would not be translated."""
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}; expected one of {', '.join(LANGUAGES)}")

    def read(sample: Sample) -> dict[str, str] | None:
        origin = sample.meta.get("language", "en")
        if origin == language or media(sample.messages, Audio) or not any(_texts(sample)):
            return None
        texts = json.dumps(_texts(sample), ensure_ascii=False)
        return {"texts": texts, "origin": LANGUAGES.get(origin, origin)}

    def verify(sample: Sample, texts: list[str]) -> str:
        originals = _texts(sample)
        if len(texts) != len(originals):
            return f"{len(texts)} texts, expected {len(originals)}"
        if not all(t.strip() for t in texts):
            return "an empty text"
        unchanged = sum(t == o for t, o in zip(texts, originals, strict=True) if len(words(o)) > 3)
        return f"{unchanged} texts came back as they were" if unchanged else ""

    def agree(sample: Sample, texts: list[str], back: Json) -> tuple[str, dict[str, Json]]:
        originals = _texts(sample)
        if len(back["texts"]) != len(originals):
            return f"{len(back['texts'])} texts came back, expected {len(originals)}", {}
        score = round(chrf(back["texts"], originals), 2)
        reason = (
            "" if score >= at_least else f"chrF {score:g} when translated back, below {at_least:g}"
        )
        return reason, {"chrf": score, "language": language}

    def make(sample: Sample, texts: list[str]) -> Sample:
        remaining = iter(texts)
        messages = tuple(
            replace(
                m, parts=tuple(Text(next(remaining)) if isinstance(p, Text) else p for p in m.parts)
            )
            for m in sample.messages
        )
        meta = {**sample.meta, "language": language}
        if "rejected" in meta:
            meta["rejected"] = next(remaining)
        return replace(sample, messages=messages, meta=meta)

    name = LANGUAGES[language]
    return Synthesis(
        f"translation_{language}",
        PROMPTS["translation"].replace("LANGUAGE", name),
        read=read,
        schema=TEXTS,
        items=lambda answer: [answer["texts"]],
        verify=verify,
        make=make,
        checks=(
            Check(
                PROMPTS["translation_check"].replace("LANGUAGE", name),
                agree,
                schema=TEXTS,
            ),
        ),
        sampling=SamplingParams(max_tokens=4096),
    )


def speech_translation(language: str, *, at_least: float) -> Synthesis:
    """Return a synthesis of speech translations to or from English, accepted by the rule of `translation`. It makes the
    direct form; `chained(made, made.meta["transcript"])` (speech.py) makes the chain of thought."""
    text = translation(language, at_least=at_least)
    (back_translation,) = text.checks

    def transcript_only(sample: Sample) -> Sample:
        """Return a sample that consists of the transcript alone."""
        meta = {"language": sample.meta.get("language", "en")}
        return replace(sample, messages=(Message.user(transcript(sample) or ""),), meta=meta)

    def read(sample: Sample) -> Mapping[str, Json] | None:
        sides = (sample.meta.get("language", "en"), language)
        return text.read(transcript_only(sample)) if transcript(sample) and "en" in sides else None

    def agree(sample: Sample, texts: list[str], back: Json) -> tuple[str, dict[str, Json]]:
        return back_translation.agree(transcript_only(sample), texts, back)

    def make(sample: Sample, texts: list[str]) -> Sample:
        clips = media(sample.messages, Audio)
        prompt = Message.user(*clips, TRANSLATE.format(LANGUAGES[language]))
        meta = {**sample.meta, "task": "ast", "to": language, "cot": False}
        meta |= {"language": sample.meta.get("language", "en"), "transcript": transcript(sample)}
        return replace(sample, messages=(prompt, Message.assistant(texts[0])), meta=meta)

    return replace(
        text,
        name=f"speech_{text.name}",
        read=read,
        verify=lambda sample, texts: text.verify(transcript_only(sample), texts),
        checks=(replace(back_translation, agree=agree),),
        make=make,
    )


def in_languages(
    samples: Callable[[], Iterable[Sample]],
    languages: Iterable[str],
    teacher: Teacher,
    work: Path,
    *,
    at_least: float,
    concurrency: int = 8,
    suffix: str = "",
) -> Iterator[Sample]:
    """Yield conversations in all of `languages`: for each language first the samples that are in it already, then the
    others translated (`translation`). `samples` is called once per language; refused translations go to
    `work/translation_LANGUAGE[.SUFFIX].refused.jsonl`."""
    for language in languages:
        synthesis = translation(language, at_least=at_least)
        yield from (s for s in samples() if s.meta.get("language", "en") == language)
        yield from synthesize(
            synthesis,
            samples(),
            teacher,
            work,
            concurrency=concurrency,
            refused_name=".".join(filter(None, (synthesis.name, suffix, "refused.jsonl"))),
        )

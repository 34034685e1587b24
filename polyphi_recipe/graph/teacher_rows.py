"""Teachers of a recipe file: the rows of built-in corpora that they write (docs/synthesis.md).

    the generator's rows -> a teacher writes -> rules, tests, a judge, a second answer -> rows beside the generator's

`TABLE` says which syntheses write for which corpus. Everything about a corpus is in `DIR/teachers/CORPUS`: `answers`,
by which a run resumes without repeating a request, refused answers with their reasons, and `report.md`
(teacher_report.py). Only training rows are written: held-out rows are the generator's.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from polyphi_eval.services import sandbox
from polyphi_eval.services.endpoint import Endpoint, parse_address
from polyphi_recipe.pipeline.corpus import Corpus, Work, imported
from polyphi_recipe.recipe.file import Teacher, Teachers
from polyphi_recipe.recipe.recipe import Recipe
from polyphi_recipe.syntheses.code import CODE_ANSWER, CODE_DOCUMENT
from polyphi_recipe.syntheses.confirmed import (
    AUDIO_QUESTIONS,
    CHART_QUESTIONS,
    IMAGE_CAPTION,
    KNOWN_ANSWER,
    PAGE_QUESTIONS,
    PASSAGE,
    RECORDING_SUMMARIES,
    SPEECH_QUESTIONS,
)
from polyphi_recipe.syntheses.instructions import CONSTRAINED_INSTRUCTION, PREFERENCE, TEXT_SUMMARY
from polyphi_recipe.syntheses.media import (
    FRAME_QUESTIONS,
    GROUNDING,
    HEARD_QUESTIONS,
    IMAGE_QUESTIONS,
    PICTURE_QUESTIONS,
)
from polyphi_recipe.syntheses.reasoning import (
    CORRECTION,
    REASONING_DOCUMENT,
    REASONING_PROBLEM,
    TYPICAL_MISTAKE,
)
from polyphi_recipe.syntheses.safety_preferences import BACK_TRANSLATED, SAFETY, SAFETY_TRANSLATED
from polyphi_recipe.syntheses.syntheses import MATH_REASONING
from polyphi_recipe.syntheses.synthesis_step import Sources, SynthesisStep, Use
from polyphi_recipe.syntheses.synthesize import Synthesis
from polyphi_recipe.syntheses.tools import TOOL_CONVERSATION
from polyphi_recipe.syntheses.translations import speech_translation
from polyphi_recipe.text.lexicon import LANGUAGES

FOLDER = "teachers"
"""The folder of a run with the answers of its teachers."""
STEP = "Teacher ("
"""Prefix of the name of the teachers' step in a corpus; the names of the teachers follow."""


@dataclass(frozen=True)
class TeacherRow:
    """A synthesis of a corpus, the teacher that it needs (text, vision or speech), and the tasks (`meta["task"]`) of
    the samples that it applies to, by default all."""

    teacher: str
    synthesis: Synthesis
    tasks: tuple[str, ...] = ()


_SPOKEN = tuple(
    TeacherRow("text", speech_translation(language, at_least=BACK_TRANSLATED))
    for language in LANGUAGES
)
TABLE: Mapping[str, tuple[TeacherRow, ...]] = {
    "documents": (TeacherRow("text", PASSAGE),),
    "code": (TeacherRow("text", CODE_DOCUMENT),),
    "instructions": (TeacherRow("text", CONSTRAINED_INSTRUCTION), TeacherRow("text", CODE_ANSWER)),
    "tools": (TeacherRow("text", TOOL_CONVERSATION),),
    "summaries": (TeacherRow("text", TEXT_SUMMARY),),
    "preferences": (
        TeacherRow("text", PREFERENCE, ("helpful",)),
        TeacherRow("text", SAFETY, ("refusal", "overrefusal")),
        TeacherRow("text", SAFETY_TRANSLATED, ("refusal", "overrefusal")),
    ),
    "reasoning_documents": (TeacherRow("text", REASONING_DOCUMENT),),
    "reasoning_sft": (TeacherRow("text", REASONING_PROBLEM), TeacherRow("text", MATH_REASONING)),
    "reasoning_pairs": (TeacherRow("text", CORRECTION), TeacherRow("text", TYPICAL_MISTAKE)),
    "captions": (TeacherRow("vision", IMAGE_CAPTION),),
    "grounding": (TeacherRow("vision", GROUNDING),),
    "ocr": (TeacherRow("vision", PAGE_QUESTIONS),),
    "charts": (TeacherRow("vision", CHART_QUESTIONS),),
    "image_qa": (TeacherRow("vision", IMAGE_QUESTIONS),),
    "multi_image": (
        TeacherRow("vision", PICTURE_QUESTIONS, ("which_picture", "same", "frames")),
        TeacherRow("vision", FRAME_QUESTIONS, ("motion", "video_event", "video_summary")),
    ),
    "ast": _SPOKEN,
    "sqa": (
        TeacherRow("text", SPEECH_QUESTIONS, ("clip",)),
        TeacherRow("text", KNOWN_ANSWER, ("arithmetic", "compare", "yes_no")),
    ),
    "speech_summary": (TeacherRow("text", RECORDING_SUMMARIES),),
    "audio_understanding": (
        TeacherRow("text", AUDIO_QUESTIONS),
        TeacherRow("speech", HEARD_QUESTIONS),
    ),
}
"""Corpus -> what writes for it. With several, each row of the generator goes to one of them, in turn."""
SHARE = 0.5
"""[ours] The share of a corpus's training rows that teachers write, at most."""
REPLACED = ("reasoning_pairs",)
"""Corpora in which a teacher's row replaces the generator's, so that fewer dispreferred answers are made by rule."""
RUNS_CODE = (CODE_ANSWER, CODE_DOCUMENT)


def rows_of(corpus: str, teachers: Teachers | None) -> tuple[TeacherRow, ...]:
    """Return what writes for a corpus with these teachers; without a sandbox nothing that runs code."""
    if teachers is None or (teachers.corpora and corpus not in teachers.corpora):
        return ()
    return tuple(
        row
        for row in TABLE.get(corpus, ())
        if getattr(teachers, row.teacher)
        and (row.synthesis not in RUNS_CODE or sandbox.unavailable() is None)
    )


def corpora_of(recipe: Recipe) -> list[str]:
    """Return the corpora of a recipe that teachers write for: built-in ones of its stages."""
    return [
        name
        for name in recipe.tokens_needed()
        if recipe.imported(name) is None and rows_of(name, recipe.teachers)
    ]


def requests_of(corpus: str, recipe: Recipe) -> int | None:
    """Return the largest number of requests for a corpus, None without a limit. All corpora have equal shares of the
    run's budget, so that it doesn't depend on their order; the first ones get the remainder."""
    if recipe.teachers.requests is None:
        return None
    names = corpora_of(recipe)
    share, remainder = divmod(recipe.teachers.requests, len(names))
    return int(share + (names.index(corpus) < remainder))


def with_teachers(corpus: Corpus, recipe: Recipe, out: Path) -> Corpus:
    """Return a built-in corpus of a run in the folder `out` with the rows of the recipe's teachers; the corpus itself
    where there are none. Its rows are then fixed: fresh samples would be the generator's alone."""
    rows = rows_of(corpus.name, recipe.teachers)
    if not rows or corpus.name not in corpora_of(recipe):
        return corpus
    teachers, requests = recipe.teachers, requests_of(corpus.name, recipe)

    def opener(role: str) -> Callable[[], Endpoint]:
        return partial(_open, getattr(teachers, role), teachers.concurrency)

    judge = opener("judge") if teachers.judge else None
    uses = [Use(row.synthesis, opener(row.teacher), judge, row.tasks) for row in rows]
    sources: Sources = "replace" if corpus.name in REPLACED else "keep"
    roles = sorted({row.teacher for row in rows} | ({"judge"} if judge else set()))
    names = {role: parse_address(getattr(teachers, role).address)[1] for role in roles}

    def steps(work: Work) -> list[PipelineStep]:
        further = corpus.steps(work)
        if "train" not in work.rows:
            return further
        step = SynthesisStep(
            uses,
            out / FOLDER / corpus.name,
            sources=sources,
            concurrency=teachers.concurrency,
            requests=requests,
            rows=work.rows["train"],
            new_rows=None
            if sources == "replace"
            else round(SHARE * work.rows["train"] / (1 + corpus.spare)),
            name=f"{STEP}{', '.join(f'{role} {name}' for role, name in names.items())})",
        )
        return [step, *further]

    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in imported(Path(__file__))]
    syntheses = [row.synthesis.name for row in rows]
    return replace(
        corpus,
        steps=steps,
        fresh=None,
        teachers=json.dumps([names, syntheses, requests, sources, code]),
    )


@cache
def _open(teacher: Teacher, concurrency: int) -> Endpoint:
    """Return the endpoint of a teacher: one for all syntheses of a process, which share its limits."""
    return Endpoint.at(
        teacher.address,
        key_from=teacher.key_from,
        seconds=teacher.seconds,
        requests_per_minute=teacher.requests_per_minute,
        concurrency=concurrency,
    )

"""A commented recipe file for a goal: what `polyphi recipe new` writes.

>>> print(text("speech", size="full", parts={"decoder": "microsoft/Phi-4-mini-instruct"}, corpora={"asr": ["a.tsv"]}))
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from polyphi.runtime.rendering import environment
from polyphi_recipe.recipe.recipe import of_size, short
from polyphi_recipe.stages import sizes
from polyphi_recipe.stages.lineage import REPLACED


@dataclass(frozen=True)
class Goal:
    """What a recipe is for: the stages to reach, and the parts that usually exist already, with examples."""

    about: str
    targets: tuple[str, ...]
    parts: Mapping[str, str]


DECODER, VISION, AUDIO = (
    "microsoft/Phi-4-mini-instruct",
    "google/siglip-so400m-patch14-384",
    "microsoft/Phi-4-multimodal-instruct",
)
GOALS = {
    "multimodal": Goal(
        "pictures and speech on top of a language model",
        ("joint_1_vision_speech",),
        {"decoder": DECODER, "vision": VISION, "audio": AUDIO},
    ),
    "speech": Goal(
        "speech on top of a language model",
        ("speech_2_post",),
        {"decoder": DECODER, "audio": AUDIO},
    ),
    "pictures": Goal(
        "pictures on top of a language model",
        ("vision_4_multiframe",),
        {"decoder": DECODER, "vision": VISION},
    ),
    "everything": Goal("all sixteen stages from nothing", (), {}),
}
CONTENTS = {
    "documents": "raw text: web pages, books",
    "code": "source files",
    "math": "problems with worked answers",
    "copying": "texts to copy",
    "translation": "translations of sentences",
    "long_documents": "texts that fill the longest context",
    "instructions": "questions and answers",
    "sums": "sums and their results",
    "tools": "conversations with function calls",
    "summaries": "texts and their summaries",
    "fim": "code with a hole and what fills it",
    "preferences": "prompts with a better and a worse answer, harmful ones too",
    "reasoning_documents": "texts with worked reasoning",
    "reasoning_sft": "problems with checked chains of thought",
    "reasoning_pairs": "problems with a right and a wrong chain of thought",
    "captions": "pictures with captions",
    "interleaved": "documents of text and pictures",
    "grounding": "pictures with phrases and boxes",
    "ocr": "pages as pictures with their text",
    "charts": "charts and tables with questions",
    "image_qa": "pictures with questions and answers",
    "multi_image": "several pictures or frames with questions",
    "asr": "speech with transcripts",
    "ast": "speech with translations",
    "sqa": "spoken questions with answers",
    "speech_summary": "long recordings with summaries",
    "audio_understanding": "speech, sounds and music with questions",
    "audio_safety": "spoken requests, harmful and harmless, with refusals and answers",
    "vision_speech": "pictures with spoken questions",
}
"""Corpus -> what its rows are."""


def text(
    goal: str, *, size: str, parts: Mapping[str, str], corpora: Mapping[str, Sequence[str]]
) -> str:
    """The recipe file for a goal, with the parts and the sources of corpora that are named; the others are commented
    out, with what their rows are and how many tokens of them the stages take. Raises ValueError for unknown names."""
    aim, table = GOALS[goal], sizes.load(size)
    if unknown := sorted(set(corpora) - set(sizes.CORPORA)):
        raise ValueError(
            f"unknown corpus {unknown[0]!r}; the corpora are {', '.join(sizes.CORPORA)}"
        )
    if unknown := sorted(set(parts) - set(REPLACED)):
        raise ValueError(f"unknown part {unknown[0]!r}; the parts are {', '.join(REPLACED)}")
    every = of_size(table)
    active = {**aim.parts, **parts}
    replaced = {stage for part in active for stage in REPLACED[part]}
    order = [
        n for n in replace(every, targets=aim.targets or every.targets).order if n not in replaced
    ]
    needed = replace(
        every, targets=tuple(order), stages={n: every.stages[n] for n in order}
    ).tokens_needed()
    return environment("polyphi_recipe.recipe").get_template("recipe.md").render(
        goal=goal,
        about=aim.about,
        size=size,
        targets=json.dumps(list(aim.targets)),
        order=order,
        parts={name: (active.get(name), example) for name, example in
               {"decoder": DECODER, "vision": VISION, "audio": AUDIO}.items()},
        corpora=[
            {
                "name": name,
                "contents": CONTENTS[name],
                "tokens": short(tokens),
                "sources": json.dumps(list(corpora[name])) if name in corpora else None,
            }
            for name, tokens in needed.items()
        ],
        stages=[(name, every.budget(every.stages[name])) for name in order],
    )  # fmt: skip

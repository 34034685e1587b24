"""The sixteen stages of the report, one file each (report 2.2.2; `docs/recipe.md`)."""

import importlib
from dataclasses import replace

from polyphi.train.contrastive import Contrastive
from polyphi.train.stage import Stage
from polyphi_recipe.pipeline.image_sizes import ImageSizes
from polyphi_recipe.stages.sizes import ORDER, Size

TEXT_TOKENS = 1024
"""[ours] Tokens of a row that are left for text beside images."""
SMALL_CROP = 112
"""Side in pixels of the crops that generated images of one crop fill: nano's."""

SECOND_BRANCH = (
    "speech_0_aed",
    "vision_0_encoder",
    "speech_1_pretrain",
    "speech_2_post",
    "reasoning_2_sft",
    "reasoning_3_dpo",
)
BRANCHES = (tuple(name for name in ORDER if name not in SECOND_BRANCH), SECOND_BRANCH)
"""The stages in two branches that run in parallel and take about equally long at nano size. Each stage comes after its
parents, in whichever branch they are."""

BUILT_IN: dict[str, Stage] = {
    name: importlib.import_module(f"polyphi_recipe.stages.{name}").stage for name in ORDER
}
"""The report's stages by name, in order."""


def load(name: str) -> Stage:
    """The stage with the given name. Raises ValueError with the nearest name for an unknown one."""
    if name not in ORDER:
        import difflib

        near = difflib.get_close_matches(name, ORDER, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown stage {name!r}; did you mean {near!r}? The stages are: {', '.join(ORDER)}"
        )
    return BUILT_IN[name]


def at_size(name: str, size: Size) -> Stage:
    """The stage with the given name, with the mix and the objective of a size. Raises ValueError with the nearest name
    for an unknown one."""
    stage = load(name)
    if size.name == "full":
        return stage
    objective = replace(stage.objective, **stage.auxiliary)  # type: ignore[type-var]
    mix = stage.small or stage.data
    late = {corpus: round(samples * size.late_scale) for corpus, samples in mix.late.items()}
    return replace(stage, data=replace(mix, late=late), objective=objective)


def without_auxiliary(stage: Stage) -> Stage:
    """The stage without auxiliary losses, which imported rows have no annotations for."""
    if not stage.auxiliary:
        return stage
    objective = replace(stage.objective, **dict.fromkeys(stage.auxiliary, 0.0))  # type: ignore[type-var]
    return replace(stage, objective=objective)


def image_sizes(size: Size, corpus: str) -> ImageSizes | None:
    """Widths and heights of a corpus's generated images: up to the crops of every stage that reads them whole (report
    2.2.1), and for several images up to the longest context of these stages (64k, 2.2.2). A stage with a shorter one
    leaves longer rows out. None for small crops, and for corpora without such a stage."""
    vision = size.model.vision
    assert vision is not None
    readers = [
        stage
        for name in ORDER
        if corpus in (stage := at_size(name, size)).data.weights
        and any("vision" in glob for glob in stage.trainable)
        and not isinstance(stage.objective, Contrastive)
    ]
    if vision.crop_size <= SMALL_CROP or not readers:
        return None
    limits = [getattr(stage.objective, "max_crops", None) or vision.max_crops for stage in readers]
    context = max(size.budget(stage).context for stage in readers)
    return ImageSizes(vision.crop_size, min(limits), context - TEXT_TOKENS)


def longest_document(size: Size) -> int | None:
    """Tokens of the longest document in the public vocabulary: text 2's context. None for a small vocabulary, with
    which the run's documents have one length."""
    return None if size.vocabulary else size.budget(load("text_2_long")).context


def longest_audio(size: Size) -> float:
    """Seconds of the longest audio that fits into a row of speech 2, the only stage with long audio, with 500 tokens
    of text: 80 ms a token, 30 minutes at most (report 2.2.1)."""
    context = size.budget(load("speech_2_post")).context
    return min(1800.0, max(30.0, 0.08 * (context - 500)))

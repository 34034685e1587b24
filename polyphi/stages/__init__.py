"""The sixteen stages of the report, one file each, and `sizes`, the one table of sizes (report 2.2.2;
`docs/recipe.md`)."""

import importlib

from polyphi.train.stage import Stage

ORDER = (
    "text_1_pretrain",
    "text_2_long",
    "text_3_post",
    "text_4_align",
    "reasoning_1_pretrain",
    "reasoning_2_sft",
    "reasoning_3_dpo",
    "vision_0_encoder",
    "vision_1_align",
    "vision_2_joint",
    "vision_3_generative",
    "vision_4_multiframe",
    "speech_0_aed",
    "speech_1_pretrain",
    "speech_2_post",
    "joint_1_vision_speech",
)

BRANCHES = (
    (
        "text_1_pretrain",
        "text_2_long",
        "text_3_post",
        "text_4_align",
        "reasoning_1_pretrain",
        "vision_1_align",
        "vision_2_joint",
        "vision_3_generative",
        "vision_4_multiframe",
        "joint_1_vision_speech",
    ),
    (
        "speech_0_aed",
        "vision_0_encoder",
        "speech_1_pretrain",
        "speech_2_post",
        "reasoning_2_sft",
        "reasoning_3_dpo",
    ),
)
"""The stages in two branches that run in parallel and take about equally long at nano size. Each stage comes after its
parents, in whichever branch they are."""


def load(name: str) -> Stage:
    """The stage with the given name. Raises ValueError with the nearest name for an unknown one."""
    if name not in ORDER:
        import difflib

        near = difflib.get_close_matches(name, ORDER, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown stage {name!r}; did you mean {near!r}? The stages are: {', '.join(ORDER)}"
        )
    stage: Stage = importlib.import_module(f"polyphi.stages.{name}").stage
    return stage

"""C8: the joint stage adds vision with speech and keeps the vision and text scores (report 2.2.2).

python -m experiments claims C8 --out runs/nano
"""

from collections.abc import Iterator
from dataclasses import replace

from experiments.claims.claim import Claim, Effect, contrast, paired
from experiments.claims.runner import Arm, ClaimRunner
from polyphi.train.checkpoint import MANIFEST
from polyphi_eval.heldout import find

STAGE = "joint_1_vision_speech"
SPOKEN, WRITTEN = "spoken_question", "written_question"
MAX_SAMPLES = 60  # held-out samples of a vision task
MARGIN = 2.0  # points


def before(runner: ClaimRunner) -> Arm:
    """The model before the joint stage."""
    stage = replace(runner.stage(STAGE), trainable={})
    run = runner.run
    config = run.recipe.lineage.configuration(
        runner.stage(STAGE), run.recipe.size.model, run.processor.tokenizer
    )
    model, _ = run.recipe.lineage.assemble(stage, config, run.folder.stages, run.seed)
    return Arm(
        f"before_{STAGE}", model.eval(), runner.run.folder.stages / "vision_4_multiframe" / MANIFEST
    )


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Spoken and written questions about the same images, and the vision tasks, before and after the stage."""
    vision = {t.name: t.metric for t in find() if t.modality == "vision"}
    first, arms = before(runner), runner.retrained(STAGE)
    old = runner.scores(first, SPOKEN, WRITTEN) | runner.scores(first, *vision, limit=MAX_SAMPLES)
    new = [
        runner.scores(arm, SPOKEN, WRITTEN) | runner.scores(arm, *vision, limit=MAX_SAMPLES)
        for arm in arms
    ]
    if SPOKEN not in old:
        raise ValueError(
            "C8 needs spoken questions: install a speech engine (`apt install espeak-ng`)"
        )
    yield contrast(
        "spoken questions, after minus before",
        ("accuracy", paired([old[SPOKEN]], [s[SPOKEN] for s in new])),
    )
    constant = runner.constant(first, SPOKEN)
    yield contrast(
        "spoken questions, lead over the best constant answer",
        ("accuracy", paired([constant], [s[SPOKEN] for s in new])),
    )
    common = [n for n in vision if n in old]
    yield contrast(
        f"{len(common)} vision tasks, after minus before",
        *((vision[n], paired([old[n]], [s[n] for s in new])) for n in common),
        above=-MARGIN,
    )


claim = Claim(
    name="C8",
    title="The joint stage",
    says="The joint stage adds vision with speech and keeps the abilities in vision and text.",
    where="2.2.2",
    experiment=(
        "Spoken questions about held-out pictures and all vision tasks before and after joint 1 (several seeds), "
        f"{MAX_SAMPLES} samples a vision task, margin {MARGIN:g} points; for text see C1"
    ),
    run=run,
)

"""C8: the joint stage gives vision-speech, and keeps vision and text (report 2.2.2).

polyphi claims C8 --out runs/nano
"""

from collections.abc import Iterator
from dataclasses import replace

from polyphi import stages
from polyphi.eval.heldout import find
from polyphi.recipe.experiments.claims.claim import Claim, Effect, contrast, paired
from polyphi.recipe.experiments.claims.laboratory import Arm, Laboratory
from polyphi.stages import lineage
from polyphi.train.resume import MANIFEST

STAGE = "joint_1_vision_speech"
SPOKEN, WRITTEN = "spoken_question", "written_question"
LIMIT = 60  # held-out samples of a vision task
MARGIN = 2.0  # points


def before(lab: Laboratory) -> Arm:
    """The model as the joint stage finds it."""
    stage = replace(stages.load(STAGE), learn={})
    config = lineage.configuration(stages.load(STAGE), lab.run.size.model, lab.run.tokenizer)
    model, _ = lineage.assemble(stage, config, lab.run.runs, lab.run.seed)
    return Arm(f"before_{STAGE}", model.eval(), lab.run.runs / "vision_4_multiframe" / MANIFEST)


def run(lab: Laboratory) -> Iterator[Effect]:
    """Spoken and written questions about the same pictures, and the vision tasks, before and after."""
    vision = {t.name: t.metric for t in find() if t.modality == "vision"}
    first, arms = before(lab), lab.again(STAGE)
    old = lab.scores(first, SPOKEN, WRITTEN) | lab.scores(first, *vision, limit=LIMIT)
    new = [lab.scores(arm, SPOKEN, WRITTEN) | lab.scores(arm, *vision, limit=LIMIT) for arm in arms]
    if SPOKEN not in old:
        raise ValueError("there are no spoken questions: no speech engine is installed (espeak-ng)")
    yield contrast(
        "spoken questions, after less before",
        ("accuracy", paired([old[SPOKEN]], [s[SPOKEN] for s in new])),
    )
    constant = lab.constant(first, SPOKEN)
    yield contrast(
        "spoken questions, lead over the best constant answer",
        ("accuracy", paired([constant], [s[SPOKEN] for s in new])),
    )
    kept = [n for n in vision if n in old]
    yield contrast(
        f"{len(kept)} vision tasks, after less before",
        *((vision[n], paired([old[n]], [s[n] for s in new])) for n in kept),
        above=-MARGIN,
    )


claim = Claim(
    name="C8",
    title="The joint stage",
    says="The joint stage unlocks vision with speech and keeps what vision and text could do.",
    where="2.2.2",
    experiment=(
        "Spoken questions about held-out pictures and all vision tasks before and after joint 1 (several seeds), "
        f"{LIMIT} samples a vision task, margin {MARGIN:g} points; for text see C1"
    ),
    run=run,
)

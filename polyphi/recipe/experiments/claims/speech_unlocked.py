"""C4: after speech pre-training the model can only transcribe; post-training unlocks the rest (report 2.2.2).

polyphi claims C4 --out runs/nano
"""

from collections.abc import Iterator

from polyphi.eval.heldout import find
from polyphi.recipe.experiments.claims.claim import Claim, Effect, contrast, paired
from polyphi.recipe.experiments.claims.laboratory import Laboratory

HEARD = "asr_digits"
LIMIT = 60  # held-out samples of a task
MARGIN = 2.0  # points


def run(lab: Laboratory) -> Iterator[Effect]:
    """Speech tasks after speech 1 and after speech 2 (three times), beside the best constant answer."""
    tasks = {
        t.name: t.metric for t in find() if t.modality == "speech" and t.corpus != "audio_safety"
    }
    others = [name for name in tasks if not name.startswith("asr_")]
    first = lab.after("speech_1_pretrain")
    before = lab.scores(first, HEARD, *others, limit=LIMIT)
    constant = {name: lab.constant(first, name) for name in before}
    after = [lab.scores(arm, *others, limit=LIMIT) for arm in lab.again("speech_2_post")]
    others = [name for name in others if name in before]
    yield contrast(
        "transcribed digits after speech 1, lead over the best constant answer",
        (tasks[HEARD], paired([constant[HEARD]], [before[HEARD]])),
    )
    yield contrast(
        f"{len(others)} other tasks: best constant answer less speech 1",
        *((tasks[n], paired([before[n]], [constant[n]])) for n in others),
        above=-MARGIN,
    )
    yield contrast(
        f"{len(others)} other tasks: speech 2 less speech 1",
        *((tasks[n], paired([before[n]], [scores[n] for scores in after])) for n in others),
    )


claim = Claim(
    name="C4",
    title="Post-training unlocks speech",
    says=(
        "After speech pre-training the model can only transcribe; post-training unlocks translation, questions, "
        "summaries and sounds."
    ),
    where="2.2.2",
    experiment=(
        "Speech tasks after speech 1 and after speech 2, beside the best constant answer; speech 2 trained with "
        f"several seeds; {LIMIT} samples a task, margin {MARGIN:g} points"
    ),
    run=run,
)

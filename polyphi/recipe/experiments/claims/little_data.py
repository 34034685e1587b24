"""C10: summarisation works with little data: 1 % of speech post-training (report 4.1.2).

polyphi claims C10 --out runs/nano
"""

from collections.abc import Iterator
from dataclasses import replace

from polyphi import stages
from polyphi.recipe.experiments.claims.claim import Claim, Effect, contrast, paired
from polyphi.recipe.experiments.claims.laboratory import Arm, Laboratory

STAGE, TASK, CORPUS = "speech_2_post", "speech_summary", "speech_summary"
SHARE = 0.25  # of the stage's steps
SHARES = (0.0, 0.01, 0.08)  # of the samples that are summaries
MARGIN = 10.0  # points


def arms(lab: Laboratory, share: float) -> list[Arm]:
    """Speech 2 with so large a share of summaries, all else in its own proportions."""
    stage = stages.load(STAGE)
    weights = {k: w for k, w in stage.data.weights.items() if k != CORPUS}
    if share:
        weights[CORPUS] = sum(weights.values()) * share / (1 - share)
    changed = replace(stage, data=replace(stage.data, weights=weights))
    return lab.arms(f"C10-{share:.0%}".replace("%", ""), changed, lab.budget(stage, SHARE))


def run(lab: Laboratory) -> Iterator[Effect]:
    """Topics of held-out talks named, by share."""
    found = {}
    for share in SHARES:
        models = arms(lab, share)
        found[share] = [lab.scores(arm, TASK)[TASK] for arm in models]
        shown = (sum(v for v, _ in s.values()) / len(s) for s in found[share])
        lab.tell(f"  {share:.0%}: right {', '.join(f'{x:.0%}' for x in shown)} by seed")
    constant = lab.constant(models[0], TASK)
    none, little, more = (found[share] for share in SHARES)
    yield contrast(
        "1 % summaries, lead over the best constant answer",
        ("accuracy", paired([constant], little)),
    )
    yield contrast("1 % less none", ("accuracy", paired(none, little)))
    yield contrast(f"1 % less {SHARES[-1]:.0%}", ("accuracy", paired(more, little)), above=-MARGIN)


claim = Claim(
    name="C10",
    title="Summaries from little data",
    says="Speech is summarised well though summaries are 1 % of speech post-training.",
    where="4.1.2",
    experiment=(
        f"Speech 2 for {SHARE:.0%} of its steps with {', '.join(f'{s:.0%}' for s in SHARES)} of summaries among its "
        f"samples; topics of held-out talks (margin {MARGIN:g} points)"
    ),
    run=run,
)

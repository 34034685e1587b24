"""C10: summarisation works with little data: 1 % of speech post-training (report 4.1.2).

python -m experiments claims C10 --out runs/nano
"""

from collections.abc import Iterator
from dataclasses import replace

from experiments.claims.claim import Claim, Effect, contrast, paired
from experiments.claims.runner import Arm, ClaimRunner

STAGE, TASK, CORPUS = "speech_2_post", "speech_summary", "speech_summary"
STEP_SHARE = 0.25  # of the stage's steps
SUMMARY_SHARES = (0.0, 0.01, 0.08)  # of the samples that are summaries
MARGIN = 10.0  # points


def arms(runner: ClaimRunner, share: float) -> list[Arm]:
    """Models of speech 2 with the given share of summaries; the other corpora keep their proportions."""
    stage = runner.stage(STAGE)
    weights = {k: w for k, w in stage.data.weights.items() if k != CORPUS}
    if share:
        weights[CORPUS] = sum(weights.values()) * share / (1 - share)
    changed = replace(stage, data=replace(stage.data, weights=weights))
    return runner.arms(
        f"C10-{share:.0%}".replace("%", ""), changed, runner.budget(stage, STEP_SHARE)
    )


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Accuracy of the topics of held-out talks, by the share of summaries."""
    scores = {}
    for share in SUMMARY_SHARES:
        models = arms(runner, share)
        scores[share] = [runner.scores(arm, TASK)[TASK] for arm in models]
        accuracies = (sum(v for v, _ in s.values()) / len(s) for s in scores[share])
        runner.report(
            f"  {share:.0%}: accuracy {', '.join(f'{x:.0%}' for x in accuracies)} by seed"
        )
    constant = runner.constant(models[0], TASK)
    none, little, more = (scores[share] for share in SUMMARY_SHARES)
    yield contrast(
        "1 % summaries, lead over the best constant answer",
        ("accuracy", paired([constant], little)),
    )
    yield contrast("1 % minus none", ("accuracy", paired(none, little)))
    yield contrast(
        f"1 % minus {SUMMARY_SHARES[-1]:.0%}", ("accuracy", paired(more, little)), above=-MARGIN
    )


claim = Claim(
    name="C10",
    title="Summaries from little data",
    says="Speech summaries are good although they are only 1 % of the speech post-training data.",
    where="4.1.2",
    experiment=(
        f"Speech 2 for {STEP_SHARE:.0%} of its steps with {', '.join(f'{s:.0%}' for s in SUMMARY_SHARES)} of "
        f"summaries among its samples; topics of held-out talks (margin {MARGIN:g} points)"
    ),
    run=run,
)

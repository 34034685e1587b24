"""C5: speech translation by chain of thought beats direct translation (report 4.1.2, Table 5).

python -m experiments claims C5 --out runs/nano
"""

from collections.abc import Iterator

from experiments.claims.claim import Claim, Effect, contrast, paired
from experiments.claims.runner import ClaimRunner

DIRECT, CHAIN = "ast_direct", "ast_cot"


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """BLEU of the same clips, translated directly and with the transcript first."""
    results = [runner.scores(arm, DIRECT, CHAIN) for arm in runner.retrained("speech_2_post")]
    direct, chain = (
        # Both forms of a clip are neighbours in the corpus, so that their row numbers pair them.
        [_in_order(scores[task]) for scores in results]
        for task in (DIRECT, CHAIN)
    )
    yield contrast("chain of thought minus direct", ("bleu", paired(direct, chain)), unit="BLEU")


def _in_order(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    """The scores by the number of the clip instead of the sample's id, which ends in the number of its row."""
    return {str(int(i.rpartition("-")[2]) // 2): vector for i, vector in scores.items()}


claim = Claim(
    name="C5",
    title="Chain of thought in translation",
    says="Speech translation is better with the transcript as an intermediate step than directly.",
    where="4.1.2, Table 5",
    experiment=(
        "BLEU of the same held-out clips with both prompts and the same weights; speech 2 trained with several seeds"
    ),
    run=run,
)

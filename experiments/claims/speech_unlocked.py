"""C4: after speech pre-training the model can only transcribe; post-training adds the other tasks (report 2.2.2).

python -m experiments claims C4 --out runs/nano
"""

from collections.abc import Iterator

from experiments.claims.claim import Claim, Effect, contrast, paired
from experiments.claims.runner import ClaimRunner
from polyphi_eval.heldout import find

TRANSCRIBED = "asr_digits"
MAX_SAMPLES = 60  # held-out samples of a task
MARGIN = 2.0  # points


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Speech tasks after speech 1 and after speech 2 (with several seeds), compared with the best constant answer."""
    tasks = {
        t.name: t.metric for t in find() if t.modality == "speech" and t.corpus != "audio_safety"
    }
    others = [name for name in tasks if not name.startswith("asr_")]
    first = runner.after("speech_1_pretrain")
    before = runner.scores(first, TRANSCRIBED, *others, limit=MAX_SAMPLES)
    constant = {name: runner.constant(first, name) for name in before}
    after = [
        runner.scores(arm, *others, limit=MAX_SAMPLES) for arm in runner.retrained("speech_2_post")
    ]
    others = [name for name in others if name in before]
    yield contrast(
        "transcribed digits after speech 1, lead over the best constant answer",
        (tasks[TRANSCRIBED], paired([constant[TRANSCRIBED]], [before[TRANSCRIBED]])),
    )
    yield contrast(
        f"{len(others)} other tasks: best constant answer minus speech 1",
        *((tasks[n], paired([before[n]], [constant[n]])) for n in others),
        above=-MARGIN,
    )
    yield contrast(
        f"{len(others)} other tasks: speech 2 minus speech 1",
        *((tasks[n], paired([before[n]], [scores[n] for scores in after])) for n in others),
    )


claim = Claim(
    name="C4",
    title="Speech post-training",
    says=(
        "After speech pre-training the model can only transcribe; post-training adds translation, questions, summaries "
        "and sounds."
    ),
    where="2.2.2",
    experiment=(
        "Speech tasks after speech 1 and after speech 2, compared with the best constant answer; speech 2 trained with "
        f"several seeds; {MAX_SAMPLES} samples a task, margin {MARGIN:g} points"
    ),
    run=run,
)

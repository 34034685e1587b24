"""C1: adding modalities doesn't change text answers (report 2.2, 4.1.1).

python -m experiments claims C1 --out runs/nano
"""

import json
from collections.abc import Iterator

from experiments.claims.claim import Claim, Effect, contrast, paired
from experiments.claims.runner import ClaimRunner
from polyphi_eval.heldout import find

MARGIN = 1.0  # points


def run(runner: ClaimRunner) -> Iterator[Effect]:
    """Hashes of the text logits before and after every stage that adds a modality; text tasks before and after all."""
    checks = json.loads((runner.run.folder.path / "freeze.json").read_text())
    same = [c["logits_sha256_before"] == c["logits_sha256_after"] for c in checks]
    share = sum(same) / len(same)
    yield Effect(
        f"share of {len(same)} stages with bit-identical text logits before and after",
        share,
        share,
        share,
        "",
        above=1 - 1 / len(same),
    )
    tasks = [
        t.name for t in find() if t.modality == "text" and not t.corpus.startswith("reasoning")
    ]
    alone, added = (runner.after(stage) for stage in ("text_4_align", "joint_1_vision_speech"))
    before, after = (runner.scores(arm, *tasks) for arm in (alone, added))
    pairs = [("accuracy", paired([before[t]], [after[t]])) for t in before]
    yield contrast(
        f"mean of {len(pairs)} text tasks, after all stages minus before", *pairs, above=-MARGIN
    )


claim = Claim(
    name="C1",
    title="Text answers don't change",
    says="Vision, speech and joint training don't change the language model's text answers.",
    where="2.2, 4.1.1",
    experiment=(
        "SHA-256 of the text logits before and after every vision, speech and joint stage; all text tasks on the "
        f"language model alone and on the finished model (margin {MARGIN:g} point)"
    ),
    run=run,
)

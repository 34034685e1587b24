"""C1: adding modalities leaves text untouched (report 2.2, 4.1.1).

polyphi claims C1 --out runs/nano
"""

import json
from collections.abc import Iterator

from polyphi.eval.heldout import find
from polyphi.recipe.experiments.claims.claim import Claim, Effect, contrast, paired
from polyphi.recipe.experiments.claims.laboratory import Laboratory

MARGIN = 1.0  # points


def run(lab: Laboratory) -> Iterator[Effect]:
    """Hashes of the text logits around every stage that adds something, and the text tasks before and after all."""
    checks = json.loads((lab.run.out / "freeze.json").read_text())
    same = [c["logits_sha256_before"] == c["logits_sha256_after"] for c in checks]
    share = sum(same) / len(same)
    yield Effect(
        f"share of {len(same)} stages that leave the text logits bit-identical",
        share,
        share,
        share,
        "",
        above=1 - 1 / len(same),
    )
    tasks = [
        t.name for t in find() if t.modality == "text" and not t.corpus.startswith("reasoning")
    ]
    alone, added = (lab.after(stage) for stage in ("text_4_align", "joint_1_vision_speech"))
    before, after = (lab.scores(arm, *tasks) for arm in (alone, added))
    pairs = [("accuracy", paired([before[t]], [after[t]])) for t in before]
    yield contrast(
        f"mean of {len(pairs)} text tasks, after all stages less before", *pairs, above=-MARGIN
    )


claim = Claim(
    name="C1",
    title="Text is untouched",
    says="Vision, speech and joint training leave the language model's text answers as they were.",
    where="2.2, 4.1.1",
    experiment=(
        "SHA-256 of the text logits before and after every vision, speech and joint stage; all text tasks on the "
        f"language model alone and on the finished model (margin {MARGIN:g} point)"
    ),
    run=run,
)

"""Experiments on a finished run: stages trained again with other seeds or under changed conditions, and what the models
then answer. All lies in `DIR/claims`, each arm a finished folder, so that an experiment goes on where it stopped.

    DIR/claims/C4.json              what was found
    DIR/claims/arms/NAME/           a stage that was trained anew
    DIR/claims/answers/NAME/*.jsonl what its model answered, a line each (eval/run.py)
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from polyphi import stages
from polyphi.batch import Batch, pack
from polyphi.data.packing import Capacity, Size
from polyphi.data.shards import Sample, Shards
from polyphi.engine.engine import Engine
from polyphi.eval.baselines import sample_vectors
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.heldout import find
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.recipe.experiments.claims import claim as claims
from polyphi.recipe.experiments.claims.claim import Claim
from polyphi.recipe.experiments.trial import score, trial
from polyphi.recipe.graph import Run
from polyphi.runtime.files import locked, sha256, write_json
from polyphi.stages import lineage
from polyphi.train.loop import code_revision, row_maker
from polyphi.train.loss import owners
from polyphi.train.resume import MANIFEST
from polyphi.train.stage import Budget, Stage

SEEDS = 2  # of an experiment that trains something
PACK = 4096  # tokens of a pack of held-out rows

Scores = dict[str, list[float]]
"""By sample: what is summed into a task's score (eval/run.py)."""


@dataclass(frozen=True)
class Arm:
    """A model of an experiment. `manifest` is that of the stage it ended with: it names the weights."""

    name: str
    model: PhiModel
    manifest: Path

    @property
    def fingerprint(self) -> str:
        return sha256(self.manifest)


class Laboratory:
    """A finished run to experiment on; `seeds` is how often each arm is trained."""

    def __init__(self, run: Run, seeds: int = SEEDS) -> None:
        if missing := [s for s in stages.ORDER if not (run.runs / s / MANIFEST).exists()]:
            raise ValueError(
                f"claims are tested on a finished run, but {run.out} lacks {', '.join(missing)}; "
                f"`polyphi reproduce {run.size.name} --out {run.out}` makes it"
            )
        self.run, self.seeds = run, seeds
        self.folder = run.out / "claims"

    # ------------------------------------------------------------------ arms

    def after(self, name: str, runs: Path | None = None) -> Arm:
        """The model as a stage of the run (or of `runs`) left it."""
        runs = runs or self.run.runs
        stage = lineage.after(name)
        config = lineage.configuration(stage, self.run.size.model, self.run.tokenizer)
        model = lineage.assemble(stage, config, runs, self.run.seed)[0].eval()
        return Arm(name, model, runs / name / MANIFEST)

    def again(self, *chain: str) -> list[Arm]:
        """The model after the last of a chain of stages, once per seed: the run's own, then trained anew with other
        seeds. What the first of them starts from stays the run's."""
        first, name = chain[0], chain[-1]
        arms = [self.after(name)]
        for number in range(1, self.seeds):
            runs = self.folder / "again" / f"{first}-{number}"
            runs.mkdir(parents=True, exist_ok=True)
            for other in stages.ORDER[: stages.ORDER.index(first)]:
                if not (runs / other).is_symlink():
                    (runs / other).symlink_to((self.run.runs / other).resolve())
            for link in chain:
                stage = stages.load(link)
                self._try(stage, self.budget(stage), runs / link, number, runs=runs)
            arms.append(replace(self.after(name, runs), name=f"{name}-{number}"))
        return arms

    def arms(self, name: str, stage: Stage, budget: Budget, **changed: Any) -> list[Arm]:
        """A changed stage, trained once per seed from where the run stands before it; `changed` is what else a trial
        takes (trial.py): another `build`, `data` or `processor`."""
        found = []
        for number in range(self.seeds):
            folder = self.folder / "arms" / f"{name}-{number}"
            model = self._try(stage, budget, folder, number, **changed)
            found.append(Arm(f"{name}-{number}", model, folder / MANIFEST))
        return found

    def budget(self, stage: Stage, share: float = 1.0) -> Budget:
        """The size's budget, of its steps a share."""
        budget = self.run.size.budget(stage)
        return replace(budget, steps=max(1, round(share * budget.steps)))

    def _try(
        self, stage: Stage, budget: Budget, out: Path, number: int, **changed: Any
    ) -> PhiModel:
        for corpus in () if "data" in changed else stage.data.weights:
            self.run.build(corpus)
        seed, fresh = self.run.seed + number, not (out / MANIFEST).exists()
        with self.run.alone(f"claims {out.parent.name} {out.name}"):
            model, made = trial(self.run, stage, budget, out, seed=seed, **changed)
        if fresh:
            took, loss = made["seconds"], made["loss"]["last"]
            self.tell(f"  {out.name}: {budget.steps} steps, {took:.0f} s, loss {loss:.3f}")
        return model

    # ------------------------------------------------------------------ answers

    def scores(self, arm: Arm, *tasks: str, limit: int | None = None) -> dict[str, Scores]:
        """What the arm's model scores on held-out samples of each task that there are any of."""
        engine, found = Engine(arm.model, self.run.processor), {}
        for task in find(*tasks):
            path = self._answer(arm, engine, task, limit)
            if scores := sample_vectors(path):
                found[task.name] = scores
        return found

    def constant(self, arm: Arm, task: str) -> Scores:
        """What the best constant answer scores on the samples that the arm was asked."""
        return sample_vectors(self.folder / "answers" / arm.name / f"{task}.jsonl", "majority")

    def _answer(self, arm: Arm, engine: Engine, task: Benchmark, limit: int | None) -> Path:
        self.run.build(task.corpus)
        folder = self.folder / "answers" / arm.name
        score(self.run, engine, task, folder, fingerprint=arm.fingerprint, limit=limit)
        return folder / f"{task.name}.jsonl"

    def matched(
        self,
        arm: Arm,
        stage: Stage,
        samples: Mapping[str, Iterable[Sample]],
        processor: Processor | None = None,
    ) -> tuple[Scores, Scores]:
        """By sample: whether greedy decoding would give the very answer (each of its tokens is the likeliest one after
        those before it), and the answer's loss in nats; as [value, count] and [sum, tokens]."""
        rows = row_maker(stage, self.budget(stage), arm.model, processor or self.run.processor)
        made = [
            (s.id, row) for corpus, some in samples.items() for s in some for row in rows(corpus, s)
        ]
        right, loss = {}, {}
        for group in Capacity(PACK).groups([Size.of([row]) for _, row in made]):
            found = _answered(arm.model, pack([made[i][1] for i in group]))
            for i, (hit, nats, tokens) in zip(group, found, strict=True):
                right[made[i][0]], loss[made[i][0]] = [hit, 1.0], [nats, tokens]
        return right, loss

    def held_out(self, corpus: str, limit: int, **only: Any) -> list[Sample]:
        """The first held-out samples of a corpus whose meta says so."""
        self.run.build(corpus)
        rows = Shards(self.run.data / corpus / "test")
        return [s for s in rows if all(s.meta.get(k) == v for k, v in only.items())][:limit]

    def tell(self, text: str) -> None:
        self.run.tell(text)


def _answered(model: PhiModel, batch: Batch) -> list[tuple[float, float, float]]:
    """For each sequence: 1 where every supervised token is the likeliest, its loss in nats, its supervised tokens."""
    assert batch.supervised is not None and batch.labels is not None
    with torch.inference_mode():
        scores = model.logits(model(batch).index_select(0, batch.supervised)).float()
    labels, owner = batch.labels[batch.supervised], owners(batch, batch.supervised)
    sums = torch.zeros(batch.sequences, 3, dtype=torch.float64)
    wrong = (scores.argmax(-1) != labels).double()
    nats = F.cross_entropy(scores, labels, reduction="none").double()
    sums.index_add_(0, owner, torch.stack([wrong, nats, torch.ones_like(nats)], 1))
    return [(float(w == 0), n, t) for w, n, t in sums.tolist()]


# ------------------------------------------------------------------ conducting


def conduct(run: Run, names: Sequence[str] = (), seeds: int = SEEDS) -> None:
    """Test claims (all, or those named), each unless it is done or another process is at it; then draw the run's page
    anew."""
    laboratory = Laboratory(run, seeds)
    for claim in sorted(claims.find(*names), key=lambda c: ORDER.index(c.name)):
        with locked(run.out / ".locks" / f"claim {claim.name}", wait=False) as mine:
            if not mine or is_done(run, claim, seeds):
                continue
            try:
                _test(laboratory, claim)
            except (
                ValueError
            ) as error:  # something that it needs isn't there; others may go on without
                run.tell(f"  {claim.name} can't be tested: {error}")
    with run.alone("page"):
        run.page()


def conduct_all(run: Run, seeds: int = SEEDS) -> None:
    """Test every claim, in as many processes as there are cores for two."""
    Laboratory(run, seeds)  # a run that isn't finished is refused here, once
    left = [c.name for c in claims.find() if not is_done(run, c, seeds)]
    command = ["claims", "--out", str(run.out), "--precision", run.precision, "--seeds", str(seeds)]
    if len(left) < 2 or not run.side_by_side({f"claims {part}": command for part in (1, 2)}):
        conduct(run, seeds=seeds)


ORDER = ("C7", "C2", "C10", "C9", "C4", "C8", "C3", "C6", "C1", "C5")
"""Long ones first: two processes then end at about the same time. C5 needs what C4 trains."""


def is_done(run: Run, claim: Claim, seeds: int) -> bool:
    """Whether it was tested on this very run, with so many seeds."""
    path = run.out / "claims" / f"{claim.name}.json"
    return path.exists() and json.loads(path.read_text())["identity"] == _identity(run, seeds)


def _identity(run: Run, seeds: int) -> dict[str, Any]:
    ends = ("joint_1_vision_speech", "reasoning_3_dpo")
    weights = "".join(sha256(run.runs / end / MANIFEST) for end in ends)
    return {"seeds": seeds, "weights": weights}


def _test(laboratory: Laboratory, claim: Claim) -> None:
    run = laboratory.run
    run.tell(f"[bold]{claim.name}[/bold] {claim.title}")
    start = time.monotonic()
    with run.clock(f"claim {claim.name}"):
        effects = list(claim.run(laboratory))
    found = claims.finding(
        claim,
        effects,
        identity=_identity(run, laboratory.seeds),
        seconds=round(time.monotonic() - start, 1),
        code=code_revision(),
    )
    laboratory.folder.mkdir(exist_ok=True)
    write_json(laboratory.folder / f"{claim.name}.json", found)
    run.tell(f"  {claim.name} {found['verdict']}: " + "; ".join(map(told, found["effects"])))


def told(effect: Mapping[str, Any]) -> str:
    """An effect in words."""
    value, low, high = (f"{effect[key]:+.3g}" for key in ("value", "low", "high"))
    return f"{effect['what']} {value} {effect['unit']} ({low} to {high}), {effect['verdict']}"

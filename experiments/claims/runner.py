"""`ClaimRunner`: experiments on a finished run, which train stages again with other seeds or changed conditions and
evaluate the models. All files are in `DIR/claims`; each arm is a folder, so that the same command resumes an
experiment.

    DIR/claims/C4.json              results
    DIR/claims/arms/NAME/           a stage that was trained again
    DIR/claims/answers/NAME/*.jsonl answers of its model, a line each (eval/run.py)
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from experiments.claims import claim as claims
from experiments.claims.claim import Claim
from experiments.trial import link_stages, score, trial
from polyphi.api import Phi
from polyphi.data.packing import Capacity, RowSize
from polyphi.data.sample import Sample
from polyphi.data.shards import Shards
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import Processor
from polyphi.runtime.files import locked, sha256, write_json
from polyphi.train.checkpoint import MANIFEST
from polyphi.train.loss import owners
from polyphi.train.stage import Budget, Stage
from polyphi.train.state import code_revision
from polyphi.train.trainer import row_maker
from polyphi.types.batch import Batch, pack
from polyphi_eval.baselines import sample_vectors
from polyphi_eval.benchmark import Benchmark
from polyphi_eval.heldout import find
from polyphi_recipe import stages
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.graph.processes import run_parallel

SEEDS = 2  # of an experiment that trains stages
PACK = 4096  # tokens of a pack of held-out rows

Scores = dict[str, list[float]]
"""By sample: the numbers that are summed into a task's score (eval/run.py)."""


@dataclass(frozen=True)
class Arm:
    """A model of an experiment. `manifest` is that of its last stage, which identifies the weights."""

    name: str
    model: PhiModel
    manifest: Path

    @property
    def fingerprint(self) -> str:
        return sha256(self.manifest)


class ClaimRunner:
    """Trains and evaluates the arms of experiments on a finished run, each arm with `seeds` seeds."""

    def __init__(self, run: Run, seeds: int = SEEDS) -> None:
        if missing := [s for s in stages.ORDER if not (run.folder.stages / s / MANIFEST).exists()]:
            raise ValueError(
                f"claims need a finished run, but {run.folder.path} lacks {', '.join(missing)}; "
                f"`polyphi reproduce {run.recipe.size.name} --out {run.folder.path}` completes it"
            )
        self.run, self.seeds = run, seeds
        self.folder = run.folder.path / "claims"

    # ------------------------------------------------------------------ arms

    def after(self, name: str, runs: Path | None = None) -> Arm:
        """The model after a stage of the run (or of `runs`)."""
        runs = runs or self.run.folder.stages
        stage = self.run.recipe.lineage.after(name)
        config = self.run.recipe.lineage.configuration(
            stage, self.run.recipe.size.model, self.run.processor.tokenizer
        )
        model = self.run.recipe.lineage.assemble(stage, config, runs, self.run.seed)[0].eval()
        return Arm(name, model, runs / name / MANIFEST)

    def retrained(self, *chain: str) -> list[Arm]:
        """The model after the last of a chain of stages, once per seed: that of the run, then models whose chain was
        trained again with other seeds. The first stage of the chain starts from the run's weights."""
        first, name = chain[0], chain[-1]
        arms = [self.after(name)]
        for number in range(1, self.seeds):
            runs = self.folder / "again" / f"{first}-{number}"
            link_stages(self.run.folder.stages, runs, stages.ORDER[: stages.ORDER.index(first)])
            for stage_name in chain:
                stage = self.stage(stage_name)
                self._train(stage, self.budget(stage), runs / stage_name, number, runs=runs)
            arms.append(replace(self.after(name, runs), name=f"{name}-{number}"))
        return arms

    def arms(self, name: str, stage: Stage, budget: Budget, **changed: Any) -> list[Arm]:
        """A changed stage, trained once per seed from the run's weights before it; `changed` are further arguments of
        `trial` (trial.py): another `build`, `data` or `processor`."""
        return [self.arm(name, stage, budget, number, **changed) for number in range(self.seeds)]

    def arm(self, name: str, stage: Stage, budget: Budget, number: int, **changed: Any) -> Arm:
        """One of `arms`."""
        folder = self.folder / "arms" / f"{name}-{number}"
        model = self._train(stage, budget, folder, number, **changed)
        return Arm(f"{name}-{number}", model, folder / MANIFEST)

    def stage(self, name: str) -> Stage:
        """A stage with the mix of the run's size."""
        return stages.at_size(name, self.run.recipe.size)

    def budget(self, stage: Stage, share: float = 1.0) -> Budget:
        """The size's budget with a `share` of its steps."""
        budget = self.run.recipe.size.budget(stage)
        return replace(budget, steps=max(1, round(share * budget.steps)))

    def _train(
        self, stage: Stage, budget: Budget, out: Path, number: int, **changed: Any
    ) -> PhiModel:
        for corpus in () if "data" in changed else stage.data.weights:
            self.run.build(corpus)
        seed, fresh = self.run.seed + number, not (out / MANIFEST).exists()
        with self.run.folder.exclusive(f"claims {out.parent.name} {out.name}"):
            model, manifest = trial(self.run, stage, budget, out, seed=seed, **changed)
        if fresh:
            seconds, loss = manifest["seconds"], manifest["loss"]["last"]
            self.report(f"  {out.name}: {budget.steps} steps, {seconds:.0f} s, loss {loss:.3f}")
        return model

    # ------------------------------------------------------------------ answers

    def scores(self, arm: Arm, *tasks: str, limit: int | None = None) -> dict[str, Scores]:
        """The arm's scores by sample on held-out samples of each task; tasks without samples are absent."""
        phi, by_task = Phi(arm.model, self.run.processor), {}
        for task in find(*tasks):
            path = self._answer(arm, phi, task, limit)
            if scores := sample_vectors(path):
                by_task[task.name] = scores
        return by_task

    def constant(self, arm: Arm, task: str) -> Scores:
        """The scores of the best constant answer on the arm's samples of a task."""
        return sample_vectors(self.folder / "answers" / arm.name / f"{task}.jsonl", "majority")

    def _answer(self, arm: Arm, phi: Phi, task: Benchmark, limit: int | None) -> Path:
        self.run.build(task.corpus)
        folder = self.folder / "answers" / arm.name
        score(self.run, phi, task, folder, fingerprint=arm.fingerprint, limit=limit)
        return folder / f"{task.name}.jsonl"

    def matched(
        self,
        arm: Arm,
        stage: Stage,
        samples: Mapping[str, Iterable[Sample]],
        processor: Processor | None = None,
    ) -> tuple[Scores, Scores]:
        """Two numbers by sample: whether greedy decoding gives exactly the answer (each of its tokens is the most
        probable one after those before it), as [value, count]; and the answer's loss in nats, as [sum, tokens]."""
        rows = row_maker(stage, self.budget(stage), arm.model, processor or self.run.processor)
        id_rows = [
            (s.id, row) for corpus, some in samples.items() for s in some for row in rows(corpus, s)
        ]
        correct, loss = {}, {}
        for group in Capacity(PACK).groups([RowSize.of([row]) for _, row in id_rows]):
            results = _exact_and_loss(arm.model, pack([id_rows[i][1] for i in group]))
            for i, (hit, nats, tokens) in zip(group, results, strict=True):
                correct[id_rows[i][0]], loss[id_rows[i][0]] = [hit, 1.0], [nats, tokens]
        return correct, loss

    def held_out(self, corpus: str, limit: int, **only: Any) -> list[Sample]:
        """The first held-out samples of a corpus whose `meta` has the values of `only`."""
        self.run.build(corpus)
        rows = Shards(self.run.folder.data / corpus / "test")
        return [s for s in rows if all(s.meta.get(k) == v for k, v in only.items())][:limit]

    def report(self, text: str) -> None:
        self.run.folder.report(text)


def _exact_and_loss(model: PhiModel, batch: Batch) -> list[tuple[float, float, float]]:
    """For each sequence: (1 where every supervised token is the most probable one, loss in nats, supervised tokens)."""
    assert batch.supervised is not None and batch.labels is not None
    with torch.inference_mode():
        logits = model.logits(prepare(model)(batch).index_select(0, batch.supervised)).float()
    labels, owner = batch.labels[batch.supervised], owners(batch, batch.supervised)
    sums = torch.zeros(batch.sequences, 3, dtype=torch.float64)
    wrong = (logits.argmax(-1) != labels).double()
    nats = F.cross_entropy(logits, labels, reduction="none").double()
    sums.index_add_(0, owner, torch.stack([wrong, nats, torch.ones_like(nats)], 1))
    return [(float(w == 0), n, t) for w, n, t in sums.tolist()]


# ------------------------------------------------------------------ running claims


def run_claims(run: Run, names: Sequence[str] = (), seeds: int = SEEDS) -> None:
    """Test claims (all, or those with the given names), except finished ones and those that another process is testing;
    then rewrite the run's page."""
    runner = ClaimRunner(run, seeds)
    for claim in sorted(claims.find(*names), key=lambda c: ORDER.index(c.name)):
        with locked(run.folder.path / ".locks" / f"claim {claim.name}", wait=False) as acquired:
            if not acquired or is_done(run, claim, seeds):
                continue
            try:
                _test(runner, claim)
            except ValueError as error:  # a requirement is missing, which other claims may not need
                run.folder.report(f"  {claim.name} can't be tested: {error}")
    with run.folder.exclusive("page"):
        run.write_page()


def run_all_claims(run: Run, seeds: int = SEEDS) -> None:
    """Test every claim, in two processes where there are cores for them."""
    ClaimRunner(run, seeds)  # raises for an unfinished run
    remaining = [c.name for c in claims.find() if not is_done(run, c, seeds)]
    command = ["claims", *remaining, "--out", str(run.folder.path), "--precision", run.precision]
    command += ["--size", run.recipe.size.name, "--seed", str(run.seed), "--seeds", str(seeds)]
    commands = {f"claims {part}": command for part in (1, 2)} if len(remaining) > 1 else {}
    if not run_parallel(commands, run.folder.report, "experiments"):
        run_claims(run, seeds=seeds)


ORDER = ("C7", "C2", "C10", "C9", "C4", "C8", "C3", "C6", "C1", "C5")
"""Long ones first: two processes then end at about the same time. C5 uses the models that C4 trains."""


def is_done(run: Run, claim: Claim, seeds: int) -> bool:
    """Whether a claim has results for the weights of this run and this number of seeds."""
    path = run.folder.path / "claims" / f"{claim.name}.json"
    return path.exists() and json.loads(path.read_text())["identity"] == _identity(run, seeds)


def _identity(run: Run, seeds: int) -> dict[str, Any]:
    ends = ("joint_1_vision_speech", "reasoning_3_dpo")
    weights = "".join(sha256(run.folder.stages / end / MANIFEST) for end in ends)
    return {"seeds": seeds, "weights": weights}


def _test(runner: ClaimRunner, claim: Claim) -> None:
    run = runner.run
    run.folder.report(f"[bold]{claim.name}[/bold] {claim.title}")
    start = time.monotonic()
    with run.folder.timings.clock(f"claim {claim.name}"):
        effects = list(claim.run(runner))
    result = claims.finding(
        claim,
        effects,
        identity=_identity(run, runner.seeds),
        seconds=round(time.monotonic() - start, 1),
        code=code_revision(),
    )
    runner.folder.mkdir(exist_ok=True)
    write_json(runner.folder / f"{claim.name}.json", result)
    run.folder.report(
        f"  {claim.name} {result['verdict']}: " + "; ".join(map(effect_text, result["effects"]))
    )


def effect_text(effect: Mapping[str, Any]) -> str:
    """An effect as text."""
    value, low, high = (f"{effect[key]:+.3g}" for key in ("value", "low", "high"))
    return f"{effect['what']} {value} {effect['unit']} ({low} to {high}), {effect['verdict']}"

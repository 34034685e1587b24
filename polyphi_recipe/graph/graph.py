"""The recipe as one resumable graph: corpora, tokenizer, sixteen stages, export, evaluation, report page.

A `Run` is a folder. Each step writes its files atomically, so the same command resumes an interrupted run::

    DIR/data/CORPUS/SPLIT/*.parquet     DIR/tokenizer/
    DIR/stages/NAME/{manifest.json,metrics.jsonl,trained.safetensors}
    DIR/model  DIR/mini  DIR/reasoning  DIR/recogniser
    DIR/eval/*.jsonl  DIR/benchmarks/  DIR/timings.json  DIR/freeze.json  DIR/report.{html,json,md}

This file has the order of the steps. Each step is in a file of its own: corpora.py, tokenizer.py, stages.py, export.py,
evaluation.py; folder.py has the paths, models.py the models after finished stages.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from rich.console import Console

from polyphi.api import Phi
from polyphi.devices.precision import Choice, Precision
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.runtime import distributed
from polyphi.train.context import RunContext
from polyphi.train.options import Base, TrainOptions
from polyphi.train.stage import Stage
from polyphi_recipe.graph import (
    corpora,
    evaluation,
    export,
    parallel,
    processes,
    remaining_time,
    stages,
    tokenizer,
)
from polyphi_recipe.graph import find as find_recipe
from polyphi_recipe.graph.corpora import Corpora
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.graph.from_file import stages_of_run
from polyphi_recipe.graph.identity import Identity, check_parts
from polyphi_recipe.graph.models import Models
from polyphi_recipe.pipeline.machines import Machines
from polyphi_recipe.recipe.recipe import Recipe
from polyphi_recipe.report import page


class Run:
    """One run of a recipe in a folder. `recipe` is a size, the path of a recipe file, or a recipe (recipe.py)."""

    def __init__(
        self,
        recipe: str | Path | Recipe,
        out: Path,
        *,
        options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
        modalities: Sequence[str] = (),
        console: Console | None = None,
    ) -> None:
        """The options are those of all stages, but for `base`, which `train` takes. `precision` "auto" is that of the
        run in the folder, else by the rules for this machine."""
        self.recipe = recipe if isinstance(recipe, Recipe) else find_recipe.of(recipe, modalities)
        self.options, self.seed = options, options.seed
        self.folder = RunFolder(out, console)
        self.identity = Identity(self.folder.path, self.recipe, self.seed, options.precision)
        self.identity.check()

    def reproduce(self) -> Path:
        """Run all steps in order; returns the path of the page."""
        corpora.check_stages(self.recipe, self.recipe.order)
        with (
            self.folder.timings.clock("total"),
            processes.memory_tracked(self.folder.timings.note_memory),
            remaining_time.reported(self.recipe, self.folder.path, self.folder.report),
        ):
            self._import_changed()
            if self.recipe.is_built_in:  # a recipe file has one branch
                parallel.train_branches(self.recipe, self.folder, self.seed, self.precision)
            for name in self.recipe.order:
                self.train(name)
            export.export(self.recipe, self.folder, self.models)
            if not parallel.evaluate(self.recipe, self.folder):
                evaluation.evaluate(self.recipe, self.folder, self.models)
            evaluation.run_benchmarks(self.recipe, self.folder)
        return self.write_page()

    def finish(self) -> Path:
        """Export and evaluate the stages that are finished, and write the page; `reproduce` of a new `Run` trains the
        others later. Raises ValueError where none is."""
        trained = tuple(filter(self.folder.is_trained, self.recipe.order))
        if not trained:
            raise ValueError(
                f"expected a finished stage in {self.folder.stages}, found none; the first one is "
                f"{self.recipe.order[0]}: run the same command without --finish"
            )
        self.recipe = replace(self.recipe, targets=trained)
        self.folder.report(f"finished stages: {', '.join(trained)}")
        with self.folder.timings.clock("total"):
            export.export(self.recipe, self.folder, self.models)
            evaluation.evaluate(self.recipe, self.folder, self.models)
        return self.write_page()

    def write_page(self) -> Path:
        """Write the report page from the files of the run; returns its path."""
        return page.write(self.folder.path, stages_of_run(self.folder.path))

    def _import_changed(self) -> None:
        """Import corpora of finished stages again whose sources or filters have changed, and report it."""
        for name in self.recipe.imported_names:
            finished = [
                stage
                for stage in self.recipe.order
                if self.folder.is_trained(stage) and name in self.recipe.stages[stage].data.weights
            ]
            if finished and self.folder.has_training_rows(name) and self.build(name):
                self.folder.report(
                    f"{name} has changed and is imported again; trained on its earlier rows, and left as they are: "
                    f"{', '.join(finished)}. Choose another --out to train them on the new rows"
                )

    def build(self, name: str, machines: Machines = Machines()) -> bool:  # noqa: B008 - frozen
        """Build a corpus, after the corpora and stages that it is made from. Returns False if it is built already."""
        corpus = self.corpora.find(name)
        for parent in corpus.corpora:
            self.build(parent, machines)
            if not self.folder.has_training_rows(parent):
                return True  # its jobs are submitted
        is_imported = self.recipe.imported(corpus.name) is not None
        if is_imported and not self.corpora.build_held_out(machines):
            self.folder.report(corpora.SUBMITTED.format(f"held-out rows of {corpus.name}"))
            return True
        for stage in corpus.stages:
            self.train(stage)
        if corpus.tokenizer:
            self._build_tokenizer()
        return self.corpora.build(corpus, machines)

    def _build_tokenizer(self) -> None:
        """Build the tokenizer, after its corpora, unless it exists."""
        if not self.folder.tokenizer.exists():
            for name in tokenizer.corpora_of(self.recipe):
                self.build(name)
            tokenizer.build(self.recipe, self.folder)

    def train(self, name: str, base: Base | None = None, batch_tokens: int | None = None) -> None:
        """Train a stage, unless it is finished, after its parents and corpora. `base` ("int8" or "int4") quantizes its
        frozen weights (`quantize_frozen`), and `batch_tokens` replaces its tokens of a step, but not those of its
        parents. Raises ValueError for a stage that was finished with other tokens of a step."""
        lineage = self.recipe.lineage
        stage = lineage.stage(name)
        if (part := lineage.replacement(name)) is not None:
            raise ValueError(
                f"{name} isn't run: the part {part} ({self.recipe.parts[part].source}) stands for its result"
            )
        if self.folder.is_trained(name):
            stages.check_batch(self.folder, name, batch_tokens)
            return
        corpora.check_stages(self.recipe, lineage.stages_of(name))
        precision = self.choice  # all processes compute it together, so it comes before the lock
        for parent in lineage.parents(name):
            self.train(parent)
        for corpus in stage.data.weights:
            self.build(corpus)
        processor, budget = self.processor, self.recipe.budget(stage)
        if batch_tokens is not None:
            budget = replace(budget, batch_tokens=batch_tokens)
        with self.folder.exclusive(name, shared=True):
            if not self.folder.is_trained(name):
                check_parts(self.folder.path, self.recipe)
                stages.train(
                    self.recipe,
                    self.folder,
                    self.corpora,
                    processor,
                    stage,
                    budget,
                    options=replace(self.options, base=base),
                    context=RunContext(
                        precision=precision,
                        watch=(lambda model: self._watch(stage, model)) if stage.watch else None,
                    ),
                )

    def _watch(self, stage: Stage, model: PhiModel) -> dict[str, float]:
        """The current scores of a stage in training, after the corpora of its tasks."""
        for task in evaluation.watched_tasks(stage):
            self.build(task.corpus)
        return evaluation.watched_scores(stage, Phi(model, self.processor), self.folder, self.seed)

    @property
    def precision(self) -> Precision:
        """The precision of all stages of this run."""
        return self.choice.precision

    @cached_property
    def choice(self) -> Choice:
        """The precision of this run and its reason (identity.py). All processes call this together."""
        distributed.start()
        choice = self.identity.choose_precision() if distributed.rank() == 0 else None
        shared = distributed.all_gather(choice)[0]
        assert shared is not None
        if distributed.rank() == 0 and self.identity.requested == "auto":
            self.folder.report(f"precision {shared}")
        return shared

    @cached_property
    def models(self) -> Models:
        """The models after finished stages."""
        return Models(self.recipe, self.folder, self.seed)

    @cached_property
    def corpora(self) -> Corpora:
        """The corpora, without the steps that come before them (`build`)."""
        return Corpora(self.recipe, self.folder, self.seed, self.models)

    @property
    def processor(self) -> Processor:
        """The processor of all models of the run, after its tokenizer."""
        self._build_tokenizer()
        return self.models.processor

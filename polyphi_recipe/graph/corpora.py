"""The corpora of a run: built-in ones, those of a recipe file's sources, and those of Python files."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from polyphi.data.generated import GeneratedSamples
from polyphi.runtime.files import cache_folder
from polyphi.runtime.heap import give_back
from polyphi.train.stage import Stage
from polyphi_recipe import stages
from polyphi_recipe.corpora.lookup import StageModels, find_corpus
from polyphi_recipe.graph import teacher_report, teacher_rows
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.graph.models import Models
from polyphi_recipe.imports.sources import check_images, imported
from polyphi_recipe.pipeline import corpus as corpus_pipeline
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.pipeline.machines import Machines
from polyphi_recipe.recipe.recipe import Recipe

SUBMITTED = (
    "{}: jobs are submitted; run the same command again when they are done, to join their output"
)


def check_stages(recipe: Recipe, names: Iterable[str]) -> None:
    """`check` of the corpora of stages, and of the images of those that compare them with texts."""
    trained = [recipe.stages[name] for name in names]
    check(recipe, (corpus for stage in trained for corpus in stage.data.weights))
    for stage in trained:
        check_images(recipe, stage)


def check(recipe: Recipe, names: Iterable[str]) -> None:
    """Raise ValueError before any work for corpora that would be generated at a real size (`Recipe.check_corpora`), or
    whose sources can't be read: all of them at once, a line each; those that they are built from, too."""
    names, mistakes = list(dict.fromkeys(_with_parents(recipe, names))), list[str]()
    recipe.check_corpora(names)
    for name in names:
        if (own := imported(recipe, name)) is not None:
            try:
                _ = own.tried
            except (ValueError, OSError) as error:
                mistakes.append(str(error))
    if mistakes:
        raise ValueError("\n".join(mistakes))


def _with_parents(recipe: Recipe, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield name
        if recipe.imported(name) is None:
            yield from _with_parents(recipe, find_corpus(name).corpora)


class Corpora:
    """Finds and builds the corpora of a run, and generates fresh samples of them."""

    def __init__(self, recipe: Recipe, folder: RunFolder, seed: int, models: Models) -> None:
        self.recipe, self.folder, self.seed, self.models = recipe, folder, seed, models
        self._held_out_built = False

    def find(self, name: str) -> Corpus:
        """A corpus of the recipe file, a built-in one, or that of a Python file. Raises ValueError for an unknown
        one, and for a built-in one that a recipe of this size needs on purpose (`Recipe.check_corpora`)."""
        if (own := imported(self.recipe, name)) is not None:
            return own.corpus(self.folder.data)
        corpus = find_corpus(name)
        if name.endswith(".py"):
            return corpus
        self.recipe.check_corpora([name])
        # A part is no stage with a model of its own: corpora filter without it.
        replacement = self.recipe.lineage.replacement
        corpus = replace(corpus, stages=tuple(s for s in corpus.stages if replacement(s) is None))
        return teacher_rows.with_teachers(corpus, self.recipe, self.folder.path)

    def work(self, corpus: Corpus) -> Work:
        """The inputs and options with which a corpus is built in this run."""
        own, size = imported(self.recipe, corpus.name), self.recipe.size
        train_rows, test_rows = size.rows.get(corpus.name, (1_000_000, 1_000))
        rows = {"train": train_rows, "test": test_rows} if own is None else own.rows
        return Work(
            rows=rows,
            seed=self.seed,
            cache=cache_folder(),
            data=self.folder.data,
            models=StageModels(corpus.stages, self.models.for_corpora),
            report=self.folder.report_plain,
            seconds=stages.longest_audio(size),
            tokenizer=self.folder.tokenizer if corpus.tokenizer else None,
            languages=size.languages,
            image_sizes=stages.image_sizes(size, corpus.name),
            document_tokens=stages.longest_document(size),
            teachers=bool(corpus.teachers),
        )

    def build(self, corpus: Corpus, machines: Machines) -> bool:
        """Build a corpus, after the corpora, stages and tokenizer that it is made from. Returns False if it is built
        already."""
        name, work = corpus.name, self.work(corpus)
        with self.folder.exclusive(f"corpus {name}"):
            if corpus_pipeline.is_built(corpus, work):
                return False
            with self.folder.timings.clock(f"corpus {name}"):
                manifests = corpus_pipeline.build(corpus, work, machines)
            give_back()
        if len(manifests) < len(work.rows):
            self.folder.report(SUBMITTED.format(name))
            return True
        counts = ", ".join(f"{m['rows']} {split}" for split, m in manifests.items())
        self.folder.report(f"[bold]{name:<22}[/bold] {counts}")
        if corpus.teachers:
            self.folder.report_plain(teacher_report.write(self.folder.path, name))
        return True

    def build_held_out(self, machines: Machines) -> bool:
        """Build the held-out splits of all imported corpora, against which training rows are compared. Returns whether
        they exist: False while jobs of Slurm build them."""
        if self._held_out_built:
            return True
        exist = True
        for name in self.recipe.imported_names:
            corpus = self.find(name)
            work = self.work(corpus)
            work = replace(work, rows={"test": work.rows["test"]})
            with self.folder.exclusive(f"corpus {name}"):
                if not corpus_pipeline.is_built(corpus, work):
                    corpus_pipeline.build(corpus, work, machines)
                    exist = corpus_pipeline.is_built(corpus, work) and exist
        self._held_out_built = exist
        return exist

    def generated(self, stage: Stage, seed: int | None = None) -> dict[str, GeneratedSamples]:
        """Generators of fresh samples for the corpora of a stage's mix that have them at this size, and no rows of
        teachers. The samples differ between stages; `seed` replaces the run's."""
        seeds = f"{self.seed if seed is None else seed} {stage.name}"
        generators = {}
        for name in stage.data.weights:
            if name not in self.recipe.size.fresh or self.recipe.imported(name) is not None:
                continue
            if (corpus := self.find(name)).fresh is not None:
                work = replace(self.work(corpus), seed=zlib.crc32(seeds.encode()))
                generators[name] = GeneratedSamples(*corpus_pipeline.generator(corpus, work))
        return generators

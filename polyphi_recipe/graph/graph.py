"""The recipe as one resumable graph: corpora, tokenizer, sixteen stages, export, evaluation, report page.

A `Run` is a folder. Each step writes its files atomically, so the same command resumes an interrupted run::

    DIR/data/CORPUS/SPLIT/*.parquet     DIR/tokenizer/
    DIR/stages/NAME/{manifest.json,metrics.jsonl,trained.safetensors}
    DIR/model  DIR/mini  DIR/reasoning  DIR/recogniser
    DIR/eval/*.jsonl  DIR/benchmarks/  DIR/timings.json  DIR/freeze.json  DIR/report.{html,json,md}
"""

import contextlib
import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file

from polyphi.api import Phi
from polyphi.checkpoints.names import empty_model
from polyphi.checkpoints.write import save_checkpoint
from polyphi.data.fresh import Fresh
from polyphi.devices import placement
from polyphi.devices.precision import Choice, Precision
from polyphi.hub.model_card import EXPORTS
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost
from polyphi.planning.devices import peak_flops
from polyphi.processing.item_reader import ItemReader
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import WORD_SPLIT
from polyphi.quantization.quantize import quantize, quantize_frozen
from polyphi.runtime import distributed
from polyphi.runtime.files import cache_folder, locked, sha256, whole_folder, write_json
from polyphi.runtime.heap import give_back
from polyphi.train.aed import Recognizer
from polyphi.train.context import RunContext
from polyphi.train.contrastive import Similarity
from polyphi.train.options import Base, TrainOptions
from polyphi.train.stage import Stage
from polyphi.train.state import MANIFEST
from polyphi.train.trainer import train
from polyphi.types.tools import CALL, CALL_END
from polyphi_eval import evaluation
from polyphi_eval.baselines import evaluate
from polyphi_eval.benchmark import Benchmark, benchmarks
from polyphi_eval.heldout import find
from polyphi_eval.options import EvalOptions
from polyphi_eval.report.heldout import line
from polyphi_eval.sources import Data
from polyphi_recipe import stages
from polyphi_recipe.corpora.lookup import StageModels, find_corpus
from polyphi_recipe.graph import find as find_recipe
from polyphi_recipe.graph import (
    frozen_text,
    plan,
    processes,
    remaining_time,
    teacher_report,
    teacher_rows,
)
from polyphi_recipe.graph.from_file import stages_of_run
from polyphi_recipe.graph.identity import Identity
from polyphi_recipe.graph.timings import Timings
from polyphi_recipe.imports.sources import check_images, imported
from polyphi_recipe.pipeline import corpus as corpora
from polyphi_recipe.pipeline.machines import Machines
from polyphi_recipe.raw import packages
from polyphi_recipe.recipe.recipe import PARTS, Recipe
from polyphi_recipe.report import page
from polyphi_recipe.stages.lineage import TRAINED, Origin

TOKENIZER_CORPORA = (
    "copying",
    "instructions",
    "image_qa",
    "documents",
    "translation",
    "math",
    "code",
    "tools",
    "preferences",
)

LINEAGE = "lineage.json"
"""File of a run with parts: the origin of every exported tensor."""
WATCHED_ROWS = 32
"""Held-out rows of a task (synthetic samples of a benchmark) that are evaluated periodically while a stage trains."""
SUBMITTED = (
    "{}: jobs are submitted; run the same command again when they are done, to join their output"
)
BENCHMARK_ROWS = 2
"""Synthetic samples of each benchmark on which the finished model is evaluated."""


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
        self.size, self.lineage = self.recipe.size, self.recipe.lineage
        self.options, self.seed = options, options.seed
        self.out = Path(out)
        self.console = console or Console()
        self.data, self.runs = self.out / "data", self.out / "stages"
        self.cache = cache_folder()
        self.timings = Timings(self.out / "timings.json")
        self.clock = self.timings.clock
        self.identity = Identity(self.out, self.recipe, options.seed, options.precision)
        self.identity.check()
        self._parts_checked = self._held_out_built = False

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
            self.report(f"precision {shared}")
        return shared

    def reproduce(self) -> Path:
        """Run all steps in order; returns the path of the page."""
        self.check(self.recipe.order)
        with (
            self.clock("total"),
            processes.memory_tracked(self.timings.note_memory),
            remaining_time.reported(self.recipe, self.out, self.report),
        ):
            self._import_changed()
            self._train_branches()
            for name in self.recipe.order:
                self.train(name)
            self.export()
            if not self._evaluate_in_parallel():
                self.evaluate()
            self.benchmarks()
        return self.page()

    def finish(self) -> Path:
        """Export and evaluate the stages that are finished, and write the page; `reproduce` of a new `Run` trains the
        others later. Raises ValueError where none is."""
        trained = tuple(name for name in self.recipe.order if self.is_trained(name))
        if not trained:
            raise ValueError(
                f"expected a finished stage in {self.runs}, found none; the first one is {self.recipe.order[0]}: "
                "run the same command without --finish"
            )
        self.recipe = replace(self.recipe, targets=trained)
        self.report(f"finished stages: {', '.join(trained)}")
        with self.clock("total"):
            self.export()
            self.evaluate()
        return self.page()

    def _import_changed(self) -> None:
        """Import corpora of finished stages again whose sources or filters have changed, and report it."""
        for name in self.recipe.imported_names:
            finished = [
                stage
                for stage in self.recipe.order
                if self.is_trained(stage) and name in self.recipe.stages[stage].data.weights
            ]
            is_imported = (self.data / name / "train/manifest.json").exists()
            if finished and is_imported and self.build(name):
                self.report(
                    f"{name} has changed and is imported again; trained on its earlier rows, and left as they are: "
                    f"{', '.join(finished)}. Choose another --out to train them on the new rows"
                )

    def check(self, names: Iterable[str]) -> None:
        """`check_corpora` of the corpora of stages."""
        names = list(names)
        mixes = [self.recipe.stages[name].data.weights for name in names]
        self.check_corpora(dict.fromkeys(corpus for mix in mixes for corpus in mix))
        for name in names:
            check_images(self.recipe, self.recipe.stages[name])

    def check_corpora(self, names: Iterable[str]) -> None:
        """Raise ValueError before any work for corpora that would be generated at a real size
        (`Recipe.check_corpora`), or whose sources can't be read: all of them at once, a line each; those that they are
        built from, too."""
        names, mistakes = list(dict.fromkeys(self._with_parents(names))), list[str]()
        self.recipe.check_corpora(names)
        for name in names:
            if (own := imported(self.recipe, name)) is not None:
                try:
                    _ = own.tried
                except (ValueError, OSError) as error:
                    mistakes.append(str(error))
        if mistakes:
            raise ValueError("\n".join(mistakes))

    def _with_parents(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            yield name
            if self.recipe.imported(name) is None:
                yield from self._with_parents(find_corpus(name).corpora)

    def _train_branches(self) -> None:
        """Train the two branches in parallel: small steps leave cores idle, two processes with half the cores each
        don't. A process waits where it needs the corpus or stage that the other is making (`exclusive`). A recipe file
        has one branch."""
        if not self.recipe.is_built_in:
            return
        options = ["--size", self.size.name, "--seed", str(self.seed)]
        options += ["--out", str(self.out), "--precision", self.precision]
        options += self._modality_options
        processes.run_parallel(
            {
                branch[-1]: ["train", *branch, *options]
                for branch in stages.BRANCHES
                if not all(self.is_trained(s) for s in branch)
            },
            self.report,
        )

    @property
    def _modality_options(self) -> list[str]:
        """The options of other processes of this run that name its modalities' files."""
        files = [own.modality.file for own in self.size.model.further.values()]
        return [word for file in files for word in ("--modality", str(file))]

    def _evaluate_in_parallel(self) -> bool:
        """Evaluate the tasks in two processes, every second one in each. Returns False where there are no cores for
        two, and in a run whose next step, the benchmarks, is done: one process checks the answers in less time than two
        need to start."""
        if (self.out / evaluation.RUNS / "results.json").exists():
            return False
        names = [task.name for task in self.tasks()]
        return processes.run_parallel(
            {
                f"evaluation {part + 1}": [
                    *("eval", "heldout", str(self.out), *names[part::2], *self._modality_options)
                ]
                for part in range(2)
            },
            self.report,
        )

    @contextlib.contextmanager
    def exclusive(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """A lock on making the corpus, tokenizer or stage `name`: other processes of the run wait until it exists. With
        `shared`, the processes of a torchrun make it together: the first one holds the lock for all of them."""
        if shared:
            distributed.start()
        if shared and distributed.rank() > 0:
            distributed.wait()
            yield
            return

        def report(holder: str) -> None:
            self.report_plain(f"{name}: waits for {holder}, which is working on it in {self.out}")

        with locked(self.out / ".locks" / name, report=report):
            if shared:
                distributed.wait()
            yield

    def build(self, name: str, machines: Machines = Machines()) -> bool:  # noqa: B008 - frozen
        """Build a corpus, after the corpora and stages that it is made from. Returns False if it is built already."""
        corpus = self.corpus(name)
        name = corpus.name
        for parent in corpus.corpora:
            self.build(parent, machines)
            if not (self.data / parent / "train/manifest.json").exists():
                return True  # its jobs are submitted
        if self.recipe.imported(name) is not None and not self._build_held_out(machines):
            self.report(SUBMITTED.format(f"held-out rows of {name}"))
            return True
        for parent in corpus.stages:
            self.train(parent)
        if corpus.tokenizer:
            self._build_tokenizer()
        work = self.work(corpus)
        with self.exclusive(f"corpus {name}"):
            if corpora.is_built(corpus, work):
                return False
            with self.clock(f"corpus {name}"):
                manifests = corpora.build(corpus, work, machines)
            give_back()
        if len(manifests) < len(work.rows):
            self.report(SUBMITTED.format(name))
            return True
        counts = ", ".join(f"{m['rows']} {split}" for split, m in manifests.items())
        self.report(f"[bold]{name:<22}[/bold] {counts}")
        if corpus.teachers:
            self.report_plain(teacher_report.write(self.out, name))
        return True

    def corpus(self, name: str) -> corpora.Corpus:
        """A corpus of the recipe file, a built-in one, or that of a Python file. Raises ValueError for an unknown
        one, and for a built-in one that a recipe of this size needs on purpose (`Recipe.check_corpora`)."""
        if (own := imported(self.recipe, name)) is not None:
            return own.corpus(self.data)
        corpus = find_corpus(name)
        if name.endswith(".py"):
            return corpus
        self.recipe.check_corpora([name])
        # A part is no stage with a model of its own: corpora filter without it.
        run = [stage for stage in corpus.stages if self.lineage.replacement(stage) is None]
        corpus = replace(corpus, stages=tuple(run))
        return teacher_rows.with_teachers(corpus, self.recipe, self.out)

    def _build_held_out(self, machines: Machines) -> bool:
        """Build the held-out splits of all imported corpora, against which training rows are compared. Returns whether
        they exist: False while jobs of Slurm build them."""
        if self._held_out_built:
            return True
        exist = True
        for name in self.recipe.imported_names:
            corpus = self.corpus(name)
            work = self.work(corpus)
            work = replace(work, rows={"test": work.rows["test"]})
            with self.exclusive(f"corpus {name}"):
                if not corpora.is_built(corpus, work):
                    corpora.build(corpus, work, machines)
                    exist = corpora.is_built(corpus, work) and exist
        self._held_out_built = exist
        return exist

    def work(self, corpus: corpora.Corpus) -> corpora.Work:
        """The inputs and options with which a corpus is built in this run."""
        own = imported(self.recipe, corpus.name)
        train_rows, test_rows = self.size.rows.get(corpus.name, (1_000_000, 1_000))
        rows = {"train": train_rows, "test": test_rows} if own is None else own.rows
        return corpora.Work(
            rows=rows,
            seed=self.seed,
            cache=self.cache,
            data=self.data,
            models=StageModels(corpus.stages, self.stage_model),
            report=self.report_plain,
            seconds=stages.longest_audio(self.size),
            tokenizer=self.out / "tokenizer" if corpus.tokenizer else None,
            languages=self.size.languages,
            image_sizes=stages.image_sizes(self.size, corpus.name),
            document_tokens=stages.longest_document(self.size),
            teachers=bool(corpus.teachers),
        )

    def fresh(self, stage: Stage, seed: int | None = None) -> dict[str, Fresh]:
        """Generators of fresh samples for the corpora of a stage's mix that have them at this size, and no rows of
        teachers. The samples differ between stages; `seed` replaces the run's."""
        seeds = f"{self.seed if seed is None else seed} {stage.name}"
        generators = {}
        for name in stage.data.weights:
            if name not in self.size.fresh or self.recipe.imported(name) is not None:
                continue
            if (corpus := self.corpus(name)).fresh is not None:
                work = replace(self.work(corpus), seed=zlib.crc32(seeds.encode()))
                generators[name] = Fresh(*corpora.generator(corpus, work))
        return generators

    def stage_model(self, stage: str) -> Any:
        """A stage's model as corpora use it: the recognizer's `transcribe_bytes` after speech_0, the `Similarity` of
        images and captions after vision_0, else a `Phi` with the language model."""
        if stage == "speech_0_aed":
            return self._recognizer().transcribe_bytes
        if stage == "vision_0_encoder":
            trained = load_file(self.runs / stage / TRAINED)
            captions = (
                s.answer for s in islice(corpora.Shards(self.data / "captions" / "train"), 1000)
            )
            return Similarity(self._after(stage), trained, self.processor, captions)
        return self._phi(stage)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer: that of the decoder's part, o200k_base for a size without a vocabulary, else one that is
        trained on the run's text corpora."""
        tokenizer, further = Tokenizer.load(self._build_tokenizer()), self.size.model.further
        decoder = self.recipe.parts.get("decoder")
        rows = getattr(decoder and decoder.config, "vocab_size", tokenizer.vocab_size)
        for name, id in zip(further, tokenizer.unused_ids(rows), strict=False):
            tokenizer = tokenizer.with_placeholder(name, id)
        return tokenizer

    def _build_tokenizer(self) -> Path:
        """Build the tokenizer, unless it exists; returns its folder."""
        folder = self.out / "tokenizer"
        if folder.exists():
            return folder
        decoder = self.recipe.parts.get("decoder")
        is_trained = decoder is None and self.size.vocabulary > 0
        for name in self.tokenizer_corpora if is_trained else ():
            self.build(name)
        with self.exclusive("tokenizer"):
            if folder.exists():
                return folder
            with self.clock("tokenizer"):
                if decoder is not None:
                    tokenizer = decoder.new_tokenizer()
                elif self.size.vocabulary:
                    tokenizer = Tokenizer.train(self._texts(), self.size.vocabulary, WORD_SPLIT)
                else:
                    tokenizer = Tokenizer.from_ranks(packages.o200k_base(self.cache))
                with whole_folder(folder) as partial:
                    tokenizer.save(partial)
        return folder

    @property
    def tokenizer_corpora(self) -> list[str]:
        """The corpora of text on which the tokenizer is trained: the built-in ones, or those of the text stages."""
        if self.recipe.is_built_in:
            return list(TOKENIZER_CORPORA)
        mixes = [
            self.recipe.stages[name].data.weights for name in ("text_1_pretrain", "text_3_post")
        ]
        return list(dict.fromkeys(name for mix in mixes for name in mix))

    def _texts(self) -> Iterator[str]:
        for name in self.tokenizer_corpora:
            for sample in corpora.Shards(self.data / name / "train"):
                for message in sample.messages:
                    # The marks of a call are control tokens, which need no merges.
                    yield message.text.replace(CALL, "").replace(CALL_END, "")

    @cached_property
    def processor(self) -> Processor:
        vision = self.size.model.vision
        assert vision is not None
        processor = Processor(
            self.tokenizer,
            crop_size=vision.crop_size,
            patch_size=vision.patch_size,
            max_crops=vision.max_crops,
        )
        for name, own in self.size.model.further.items():
            id = self.tokenizer.placeholder(name)
            processor.add(ItemReader(own.modality), id, own.modality.routes)
        return processor

    def _model(self, stage: Stage) -> PhiModel:
        config = self.lineage.configuration(stage, self.size.model, self.tokenizer)
        return self.lineage.assemble(stage, config, self.runs, self.seed)[0]

    def _after(self, name: str) -> PhiModel:
        return self._model(self.lineage.after(name)).eval()

    def _exported(self, name: str) -> PhiModel:
        """The model after a stage as it is exported and evaluated: with the dtype of its decoder, which a part may have
        in bfloat16 beside trained tensors in float32."""
        model = self._after(name)
        return model.to(model.decoder.dtype)

    def _phi(self, name: str, quant: str | None = None) -> Phi:
        """A `Phi` with the model after a stage, as `polyphi.load` would place the exported one; with `quant` it is
        quantized."""
        model = self._exported(name)
        if (dtype := placement.dtype_for(model, quant)) is not None:
            model = model.to(dtype)
        return Phi(quantize(model, quant) if quant else model, self.processor)

    def is_trained(self, name: str) -> bool:
        """Whether a stage is finished."""
        return (self.runs / name / MANIFEST).exists()

    def train(self, name: str, base: Base | None = None, batch_tokens: int | None = None) -> None:
        """Train a stage, unless it is finished, after its parents and corpora. `base` ("int8" or "int4") quantizes its
        frozen weights (`quantize_frozen`), and `batch_tokens` replaces its tokens of a step, but not those of its
        parents. Raises ValueError for a stage that was finished with other tokens of a step."""
        stage = self.lineage.stage(name)
        if (part := self.lineage.replacement(name)) is not None:
            raise ValueError(
                f"{name} isn't run: the part {part} ({self.recipe.parts[part].source}) stands for its result"
            )
        if self.is_trained(name):
            self._check_batch(name, batch_tokens)
            return
        self.check(self.lineage.stages_of(name))
        _ = self.choice  # all processes compute it together, so it comes before the lock
        for parent in self.lineage.parents(name):
            self.train(parent)
        for corpus in stage.data.weights:
            self.build(corpus)
        config = self.lineage.configuration(stage, self.size.model, self.tokenizer)
        with self.exclusive(name, shared=True):
            if not self.is_trained(name):
                self._train(stage, config, base, batch_tokens)

    def _check_batch(self, name: str, batch_tokens: int | None) -> None:
        trained = json.loads((self.runs / name / MANIFEST).read_text())["budget"]["batch_tokens"]
        if batch_tokens not in (None, trained):
            raise ValueError(
                f"{name} is finished, with {trained:,} tokens of a step; expected --batch-tokens {trained} or none, "
                f"found {batch_tokens}: for a new run choose another --out"
            )

    def _train(
        self, stage: Stage, config: ModelConfig, base: Base | None, batch_tokens: int | None
    ) -> None:
        self._check_parts()
        budget = self.recipe.budget(stage)
        if batch_tokens is not None:
            budget = replace(budget, batch_tokens=batch_tokens)
        model, origins = self.lineage.assemble(
            stage, config, self.runs, self.seed, distributed.device()
        )
        parts = self.recipe.parts
        origins = {n: parts[o].source if o in parts else o for n, o in origins.items()}
        trainable = set(stage.trained(n for n, _ in model.named_parameters()))
        if base is not None:
            quantize_frozen(model, base, trainable)
        for name, parameter in model.named_parameters():  # frozen ones of parts may stay in bf16
            if self.precision == "fp32" or name in trainable:
                parameter.data = parameter.data.float()
        adapters_only = not any(
            glob.startswith("decoder.") and ".lora." not in glob for glob in stage.trainable
        )
        before = frozen_text.text_logits(model, self.processor) if adapters_only else None
        target = plan.stage_model(stage.name, self.recipe)
        self.report(f"\n[bold]{stage.name}[/bold]")
        with self.clock(stage.name):
            train(
                stage,
                budget,
                model,
                self.processor,
                self.data,
                self.runs / stage.name,
                options=replace(self.options, base=base),
                context=RunContext(
                    precision=self.choice,
                    fresh=self.fresh(stage),
                    origins=origins,
                    watch=(lambda model: self._watch_scores(stage, model)) if stage.watch else None,
                    title=f"{self.recipe.name} {stage.name}",
                    flops=lambda pack: sum(
                        cost.flops(target, cost.work([pack], target.config)).values()
                    ),
                    peak_flops=peak_flops(next(model.parameters()).device),
                    checkpoint_seconds=self.size.seconds_between_checkpoints,
                    report=self.report,
                ),
            )
        if before is not None:
            frozen_text.record(
                self.out / "freeze.json",
                stage.name,
                before,
                frozen_text.text_logits(model, self.processor),
            )
        give_back()

    def _check_parts(self) -> None:
        """Record the hashes of all parts in the run's folder. Raises ValueError for a part that has changed since."""
        if not self.recipe.parts or self._parts_checked or distributed.rank() > 0:
            return
        path = self.out / PARTS
        before = json.loads(path.read_text()) if path.exists() else {}
        records = {name: part.record() for name, part in self.recipe.parts.items()}
        for name, record in before.items():
            if records.get(name, {}).get("files") != record["files"]:
                raise ValueError(
                    f"{self.out} began with another {name} than {record['source']} has now; restore that checkpoint, "
                    "or choose another --out"
                )
        write_json(path, records)
        self._parts_checked = True

    def _watch_scores(self, stage: Stage, model: PhiModel) -> dict[str, float]:
        """Current scores of a stage's tasks on a few held-out rows, and of benchmarks on a few synthetic samples."""
        phi, scores = Phi(model, self.processor), dict[str, float]()
        watched = [b for b in benchmarks() if b.name in stage.watch]
        for benchmark in watched:
            score = evaluation.quick_score(
                phi, benchmark, self.out / evaluation.RUNS / "mini-data", WATCHED_ROWS
            )
            if score is not None:
                scores[benchmark.name] = score
        tasks = [name for name in stage.watch if name not in {b.name for b in watched}]
        for task in find(*tasks) if tasks else ():
            self.build(task.corpus)
            with tempfile.TemporaryDirectory() as folder:
                scores[task.name] = evaluate(
                    phi,
                    task,
                    task.load(Data(self.data)),
                    Path(folder),
                    limit=WATCHED_ROWS,
                    seed=self.seed,
                    conditions=("with",),
                ).score
        return scores

    def _recognizer(self) -> Recognizer:
        folder = self.out / "recogniser"
        if not folder.exists():
            trained = load_file(self.runs / "speech_0_aed" / TRAINED)
            recognizer = Recognizer.from_stage(self._after("speech_0_aed"), trained, self.processor)
            with whole_folder(folder) as partial:
                recognizer.save(partial)
        return Recognizer.load(folder, self.processor)

    def export(self) -> None:
        """Write `model`, `mini`, `reasoning` and `recogniser`, each a loadable folder, where its stage was run; again
        where an earlier export has fewer stages (`finish`)."""
        exported = {n: (s, f) for n, (s, f) in self.recipe.exports.items() if self.is_trained(s)}
        lineages = {name: self.lineage.stages_of(stage) for name, (stage, _) in exported.items()}
        path = self.out / EXPORTS
        before = {**lineages, **json.loads(path.read_text())} if path.exists() else lineages
        for name, (stage, layout) in exported.items():
            if not (self.out / name).exists() or before[name] != lineages[name]:
                files = sorted((self.out / "tokenizer").iterdir())
                with self.clock("export"):
                    save_checkpoint(self._exported(stage), self.out / name, layout, files=files)
        write_json(path, lineages)
        if self.recipe.parts:
            write_json(self.out / LINEAGE, {n: self.origins(s) for n, (s, _) in exported.items()})
        if self.is_trained("speech_0_aed"):
            self._recognizer()

    def tasks(self, *names: str) -> list[Benchmark]:
        """The held-out tasks of the run, or the named ones: those of built-in corpora, and one for each corpus with
        sources. Raises ValueError with the nearest name for an unknown one."""
        imported_tasks = [
            task
            for name in self.recipe.imported_names
            if (own := imported(self.recipe, name)) is not None and (task := own.task()) is not None
        ]
        by_name = {task.name: task for task in imported_tasks}
        if not names:
            tasks = [t for t in find() if self.recipe.imported(t.corpus) is None]
            return [t for t in (*tasks, *imported_tasks) if self._can_answer(t)]
        return [by_name[name] if name in by_name else find(name)[0] for name in names]

    def _can_answer(self, task: Benchmark) -> bool:
        """Whether the run's final model takes the inputs of a task, and the run has its corpus: that of a recipe file
        may have neither."""
        if self.recipe.is_built_in:
            return True
        name = "reasoning_3_dpo" if task.corpus.startswith("reasoning") else self.recipe.final
        if name is None or name not in self.recipe.order:
            return False
        has = self.lineage.parts_of(self.recipe.stages[name])
        needed = {"vision": {"vision"}, "speech": {"audio"}, "joint": {"vision", "audio"}}
        built = (self.data / task.corpus / "test").exists()
        return built and needed.get(task.modality, set()) <= has

    def origins(self, stage: str) -> dict[str, dict[str, Any]]:
        """The origin of every tensor of the model after a stage: the stage that trained it with the hash of its
        tensors, or the part with its repository, revision and hashes."""
        after = self.lineage.after(stage)
        records = json.loads((self.out / PARTS).read_text())
        keys = ("source", "repository", "revision", "files")

        @cache
        def of(source: Origin) -> dict[str, Any]:
            if source.part is not None:
                return {"part": source.part} | {k: records[source.part][k] for k in keys}
            if source.stage is None:
                return {"fresh": True}
            return {"stage": source.stage, "sha256": sha256(self.runs / source.stage / TRAINED)}

        config = self.lineage.configuration(after, self.size.model, self.tokenizer)
        origins = {n: self.lineage.origin(n, after) for n in empty_model(config).state_dict()}
        return {n: of(replace(o, name="")) | {"name": o.name} for n, o in origins.items()}

    def evaluate(self, *names: str, quant: str | None = None) -> None:
        """Evaluate all tasks, or the named ones, on their held-out rows, unless they have results: the reasoning model
        on reasoning corpora, the final model on all others. With `quant` the models are quantized, and the answers are
        written to a separate folder, such as `eval-int8`."""
        folder = self.out / (f"eval-{quant}" if quant else "eval")
        models: dict[str, Phi] = {}
        for task in self.tasks(*names):
            test = self.data / task.corpus / "test"
            if not test.exists():
                self.report(f"{task.name}: skipped, no held-out rows at {test}")
                continue
            name = "reasoning_3_dpo" if task.corpus.startswith("reasoning") else self.recipe.final
            if name is None or not self.is_trained(name):
                continue
            if name not in models:
                models[name] = self._phi(name, quant)
            with self.clock("evaluation"):
                result = evaluate(
                    models[name],
                    task,
                    task.load(Data(self.data)),
                    folder,
                    limit=self.size.test_rows,
                    seed=self.seed,
                    fingerprint=hashlib.sha256(
                        (self.runs / name / "manifest.json").read_bytes()
                    ).hexdigest()
                    + (quant or ""),
                )
            self.report(line(result))

    def benchmarks(self) -> None:
        """Evaluate the final model on a few synthetic samples of each of the report's benchmarks that need no judge,
        which tests everything from the layout of the public data to the tables. `polyphi eval DIR --suite mini` uses
        all samples."""
        out = self.out / evaluation.RUNS
        if (out / "results.json").exists() or "model" not in self.recipe.exports:
            return
        with self.clock("benchmarks"):
            evaluation.measure(
                evaluation.evaluated_model(str(self.out)),
                ("mini",),
                out,
                data=None,
                options=EvalOptions(limit=BENCHMARK_ROWS),
                console=self.console,
            )

    def page(self) -> Path:
        """Write the report page from the files of the run; returns its path."""
        return page.write(self.out, stages_of_run(self.out))

    def report(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def report_plain(self, text: str) -> None:
        """Report a text that may quote others: brackets in it are no markup."""
        self.console.print(text, highlight=False, markup=False)

"""The recipe as one resumable graph: corpora, tokenizer, sixteen stages, export, evaluation, report page.

A `Run` is a folder. Each step writes its files atomically, so the same command resumes an interrupted run::

    DIR/data/CORPUS/SPLIT/*.parquet     DIR/tokenizer/
    DIR/stages/NAME/{manifest.json,metrics.jsonl,trained.safetensors}
    DIR/model  DIR/mini  DIR/reasoning  DIR/recogniser
    DIR/eval/*.jsonl  DIR/benchmarks/  DIR/timings.json  DIR/freeze.json  DIR/report.{html,json,md}
"""

import contextlib
import hashlib
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file

from polyphi.api import Phi
from polyphi.checkpoints.model_card import EXPORTS
from polyphi.checkpoints.write import save_checkpoint
from polyphi.data.fresh import Fresh
from polyphi.engine import placement
from polyphi.messages import CALL, CALL_END
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.planning import cost, sizes
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.processing.vocabulary import WORD_SPLIT
from polyphi.quantization.quantize import quantize, quantize_frozen
from polyphi.runtime import distributed
from polyphi.runtime.files import cache_folder, locked, whole_folder, write_json
from polyphi.runtime.heap import give_back
from polyphi.runtime.precision import Choice, Precision
from polyphi.train.aed import Recogniser
from polyphi.train.contrastive import Similarity
from polyphi.train.options import Base, TrainOptions
from polyphi.train.stage import Stage
from polyphi.train.trainer import Caller, train
from polyphi_eval import evaluation
from polyphi_eval.baselines import evaluate
from polyphi_eval.benchmark import benchmarks
from polyphi_eval.heldout import find
from polyphi_eval.options import EvalOptions
from polyphi_eval.report.heldout import line
from polyphi_eval.sources import Data
from polyphi_recipe import frozen_text, plan, processes, remaining_time, stages
from polyphi_recipe.corpora.lookup import StageModels, find_corpus
from polyphi_recipe.curate import corpus as corpora
from polyphi_recipe.curate import sources
from polyphi_recipe.curate.machines import Machines
from polyphi_recipe.identity import Identity
from polyphi_recipe.report import page
from polyphi_recipe.stages import lineage
from polyphi_recipe.timings import Timings

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

WATCHED_ROWS = 32
"""Held-out rows of a task (synthetic samples of a benchmark) that are evaluated periodically while a stage trains."""
BENCHMARK_ROWS = 2
"""Synthetic samples of each benchmark on which the finished model is evaluated."""


class Run:
    """One run of the recipe in a folder. `size` is a name in `stages.sizes`."""

    def __init__(
        self,
        size: str,
        out: Path,
        *,
        options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
        console: Console | None = None,
    ) -> None:
        """The options are those of all stages, but for `base`, which `train` takes. `precision` "auto" is that of the
        run in the folder, else the faster one on this machine."""
        self.size = sizes.load(size)
        self.options, self.seed = options, options.seed
        self.out = Path(out)
        self.console = console or Console()
        self.data, self.runs = self.out / "data", self.out / "stages"
        self.cache = cache_folder()
        self.timings = Timings(self.out / "timings.json")
        self.clock = self.timings.clock
        self.identity = Identity(self.out, self.size, options.seed, options.precision)
        self.identity.check()

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
        with (
            self.clock("total"),
            processes.memory_tracked(self.timings.note_memory),
            remaining_time.reported(self.size, self.out, self.report),
        ):
            self._train_branches()
            for name in stages.ORDER:
                self.train(name)
            self.export()
            if not self._evaluate_in_parallel():
                self.evaluate()
            self.benchmarks()
        return self.page()

    def _train_branches(self) -> None:
        """Train the two branches in parallel: small steps leave cores idle, two processes with half the cores each
        don't. A process waits where it needs the corpus or stage that the other is making (`exclusive`)."""
        options = ["--size", self.size.name, "--seed", str(self.seed)]
        options += ["--out", str(self.out), "--precision", self.precision]
        processes.run_parallel(
            {
                branch[-1]: ["train", *branch, *options]
                for branch in stages.BRANCHES
                if not all((self.runs / s / "manifest.json").exists() for s in branch)
            },
            self.report,
        )

    def _evaluate_in_parallel(self) -> bool:
        """Evaluate the tasks in two processes, every second one in each. Returns False where there are no cores for
        two, and in a run whose next step, the benchmarks, is done: one process checks the answers in less time than two
        need to start."""
        if (self.out / evaluation.RUNS / "results.json").exists():
            return False
        names = [task.name for task in find()]
        return processes.run_parallel(
            {
                f"evaluation {part + 1}": ["eval", "heldout", str(self.out), *names[part::2]]
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
        with locked(self.out / ".locks" / name):
            if shared:
                distributed.wait()
            yield

    def build(self, name: str, machines: Machines = Machines()) -> bool:  # noqa: B008 - frozen
        """Build a corpus, after the corpora and stages that it is made from. Returns False if it is built already."""
        corpus = find_corpus(name)
        name = corpus.name
        for parent in corpus.corpora:
            self.build(parent, machines)
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
            self.report(
                f"{name}: jobs are submitted; run the same command again when they are done, to join their output"
            )
            return True
        counts = ", ".join(f"{m['rows']} {split}" for split, m in manifests.items())
        self.report(f"[bold]{name:<22}[/bold] {counts}")
        return True

    def work(self, corpus: corpora.Corpus) -> corpora.Work:
        """The inputs and options with which a corpus is built in this run."""
        train_rows, test_rows = self.size.rows.get(corpus.name, (1_000_000, 1_000))
        return corpora.Work(
            rows={"train": train_rows, "test": test_rows},
            seed=self.seed,
            cache=self.cache,
            data=self.data,
            models=StageModels(corpus.stages, self.stage_model),
            report=self.report_plain,
            seconds=stages.longest_audio(self.size),
            tokenizer=self.out / "tokenizer" if corpus.tokenizer else None,
            languages=self.size.languages,
        )

    def fresh(self, stage: Stage, seed: int | None = None) -> dict[str, Fresh]:
        """Generators of fresh samples for the corpora of a stage's mix that have them at this size. The samples differ
        between stages; `seed` replaces the run's."""
        seeds = f"{self.seed if seed is None else seed} {stage.name}"
        generators = {}
        for name in stage.data.weights:
            if name in self.size.fresh:
                corpus = find_corpus(name)
                work = replace(self.work(corpus), seed=zlib.crc32(seeds.encode()))
                generators[name] = Fresh(*corpora.generator(corpus, work))
        return generators

    def stage_model(self, stage: str) -> Any:
        """A stage's model as corpora use it: the recogniser's `transcribe_bytes` after speech_0, the `Similarity` of
        images and captions after vision_0, else a `Phi` with the language model."""
        if stage == "speech_0_aed":
            return self._recogniser().transcribe_bytes
        if stage == "vision_0_encoder":
            trained = load_file(self.runs / stage / lineage.TRAINED)
            captions = (
                s.answer for s in islice(corpora.Shards(self.data / "captions" / "train"), 1000)
            )
            return Similarity(self._after(stage), trained, self.processor, captions)
        return Phi(self._after(stage), self.processor)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer, trained on its text corpora (o200k_base for a size without a vocabulary)."""
        return Tokenizer.load(self._build_tokenizer())

    def _build_tokenizer(self) -> Path:
        """Build the tokenizer, unless it exists; returns its folder."""
        folder = self.out / "tokenizer"
        if folder.exists():
            return folder
        for name in TOKENIZER_CORPORA:
            self.build(name)
        with self.exclusive("tokenizer"):
            if folder.exists():
                return folder
            with self.clock("tokenizer"):
                if self.size.vocabulary:
                    tokenizer = Tokenizer.train(self._texts(), self.size.vocabulary, WORD_SPLIT)
                else:
                    tokenizer = Tokenizer.from_ranks(sources.o200k_base(self.cache))
                with whole_folder(folder) as partial:
                    tokenizer.save(partial)
        return folder

    def _texts(self) -> Iterator[str]:
        for name in TOKENIZER_CORPORA:
            for sample in corpora.Shards(self.data / name / "train"):
                for message in sample.messages:
                    # The marks of a call are control tokens, which need no merges.
                    yield message.text.replace(CALL, "").replace(CALL_END, "")

    @cached_property
    def processor(self) -> Processor:
        vision = self.size.model.vision
        assert vision is not None
        return Processor(
            self.tokenizer,
            crop_size=vision.crop_size,
            patch_size=vision.patch_size,
            max_crops=vision.max_crops,
        )

    def _model(self, stage: Stage) -> PhiModel:
        config = lineage.configuration(stage, self.size.model, self.tokenizer)
        return lineage.assemble(stage, config, self.runs, self.seed)[0]

    def _after(self, name: str) -> PhiModel:
        return self._model(lineage.after(name)).eval()

    def train(self, name: str, base: Base | None = None) -> None:
        """Train a stage, unless it is finished, after its parents and corpora. `base` ("int8" or "int4") quantizes its
        frozen weights (`quantize_frozen`), but not those of its parents."""
        stage = stages.at_size(name, self.size)
        out = self.runs / name
        if (out / "manifest.json").exists():
            return
        _ = self.choice  # all processes compute it together, so it comes before the lock
        for parent in stage.parents:
            self.train(parent)
        for corpus in stage.data.weights:
            self.build(corpus)
        config = lineage.configuration(stage, self.size.model, self.tokenizer)
        with self.exclusive(name, shared=True):
            if not (out / "manifest.json").exists():
                self._train(stage, config, out, base)

    def _train(self, stage: Stage, config: ModelConfig, out: Path, base: Base | None) -> None:
        model, origins = lineage.assemble(stage, config, self.runs, self.seed, distributed.device())
        if base is not None:
            quantize_frozen(model, base, stage.trained(n for n, _ in model.named_parameters()))
        adapters_only = not any(
            glob.startswith("decoder.") and ".lora." not in glob for glob in stage.trainable
        )
        before = frozen_text.text_logits(model, self.processor) if adapters_only else None
        target = plan.stage_model(stage.name, self.size)
        self.report(f"\n[bold]{stage.name}[/bold]")
        with self.clock(stage.name):
            train(
                stage,
                self.size.budget(stage),
                model,
                self.processor,
                self.data,
                out,
                options=replace(self.options, base=base),
                caller=Caller(
                    precision=self.choice,
                    fresh=self.fresh(stage),
                    origins=origins,
                    watch=(lambda model: self._watch_scores(stage, model)) if stage.watch else None,
                    title=f"{self.size.name} {stage.name}",
                    flops=lambda pack: sum(
                        cost.flops(target, cost.work([pack], target.config)).values()
                    ),
                    peak_flops=plan.peak_flops(next(model.parameters()).device),
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

    def _recogniser(self) -> Recogniser:
        folder = self.out / "recogniser"
        if not folder.exists():
            trained = load_file(self.runs / "speech_0_aed" / lineage.TRAINED)
            recogniser = Recogniser.from_stage(self._after("speech_0_aed"), trained, self.processor)
            with whole_folder(folder) as partial:
                recogniser.save(partial)
        return Recogniser.load(folder, self.processor)

    def export(self) -> None:
        """Write `model`, `mini`, `reasoning` and `recogniser`, each a loadable folder."""
        for name, (stage, layout) in lineage.EXPORTS.items():
            if not (self.out / name).exists():
                files = sorted((self.out / "tokenizer").iterdir())
                with self.clock("export"):
                    save_checkpoint(self._after(stage), self.out / name, layout, files=files)
        lineages = {name: lineage.stages_of(stage) for name, (stage, _) in lineage.EXPORTS.items()}
        write_json(self.out / EXPORTS, lineages)
        self._recogniser()

    def evaluate(self, *names: str, quant: str | None = None) -> None:
        """Evaluate all tasks, or the named ones, on their held-out rows, unless they have results: the reasoning model
        on reasoning corpora, the final model on all others. With `quant` the models are quantized, and the answers are
        written to a separate folder, such as `eval-int8`."""
        folder = self.out / (f"eval-{quant}" if quant else "eval")
        models: dict[str, Phi] = {}
        for task in find(*names):
            test = self.data / task.corpus / "test"
            if not test.exists():
                self.report(f"{task.name}: skipped, no held-out rows at {test}")
                continue
            name = (
                "reasoning_3_dpo"
                if task.corpus.startswith("reasoning")
                else "joint_1_vision_speech"
            )
            if name not in models:
                model = self._after(name)
                dtype = placement.dtype_for(model, quant)
                model = model.to(dtype) if dtype else model
                if quant:
                    model = quantize(model, quant)
                models[name] = Phi(model, self.processor)
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
        if (out / "results.json").exists():
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
        return page.write(self.out)

    def report(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def report_plain(self, text: str) -> None:
        """Report a text that may quote others: brackets in it are no markup."""
        self.console.print(text, highlight=False, markup=False)

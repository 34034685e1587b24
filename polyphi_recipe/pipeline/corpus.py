"""`Corpus`: a named recipe from raw material to the splits of a shard folder. One corpus is one file of
`polyphi_recipe/corpora`.

>>> corpus = Corpus("digits", build=digits)           # digits(work) yields ("train" | "test", Sample)
>>> build(corpus, Work(rows={"train": 4000, "test": 200}, seed=0, cache=..., data=...))
"""

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample, Shards, row_hash, to_row
from polyphi.runtime import inputs
from polyphi.runtime.files import sha256
from polyphi_recipe.pipeline import pipeline
from polyphi_recipe.pipeline.drop_warning import warning
from polyphi_recipe.pipeline.image_sizes import ImageSizes
from polyphi_recipe.pipeline.pipeline import Machines
from polyphi_recipe.text.lexicon import LANGUAGES

ROOT = Path(__file__).parents[2]
CODE = (
    *(f"polyphi_recipe.{name}." for name in ("text", "pipeline", "raw", "filters", "dedup")),
    *(f"polyphi_recipe.{name}." for name in ("syntheses", "synthetic", "corpora")),
    "polyphi.text.",
    "polyphi_eval.text.",
)
"""Packages whose code and data files decide the rows of a corpus."""
FIRST = 64
"""Fresh samples that are part of a generator's hash."""


@dataclass(frozen=True)
class Work:
    """The inputs of a corpus build. `rows` bounds each split, or each part of it; `cache` holds downloaded packages;
    `data` is the folder of corpora (so that one may be built from another); `models` are the models of parent stages:
    a callable from audio bytes to text for a recognizer, a `Generate` for a language model. `report` receives progress
    messages. With several tasks each builds its `part`: (number, count). `seconds` is the longest audio clip that fits
    the rows of this size. `tokenizer` is the folder of the run's tokenizer, for corpora that need it.
    `languages`, including English, are those of questions and words; digits and numbers are in all eight. `image_sizes`
    are those of generated images, None at sizes of one small crop per image. `document_tokens` are those of the longest
    document in the public vocabulary, None at sizes with a small one. With `teachers` the samples have transcripts,
    too, which only teachers read."""

    rows: Mapping[str, int]
    seed: int
    cache: Path
    data: Path
    models: Mapping[str, Any] = field(default_factory=dict)
    report: Callable[[str], None] = print
    part: tuple[int, int] = (0, 1)
    seconds: float = 30.0
    tokenizer: Path | None = None
    languages: tuple[str, ...] = tuple(LANGUAGES)
    image_sizes: ImageSizes | None = None
    document_tokens: int | None = None
    teachers: bool = False


@dataclass(frozen=True)
class Corpus:
    """A corpus recipe. `build(work)` yields (split, sample), of one split if `work.rows` names one. `steps(work)`
    are datatrove's or polyphi's steps and process each sample of the split as a document (documents.py); held-out
    splits are built first, so that training samples can be checked against them (`decontaminate.held_out`). Steps
    `across` tasks run after `steps` (`dedup.deduplicate`), on the training split only. `spare` is the share of
    additional samples that compensates for dropped ones. `tasks` tasks build the training split, each its `work.part`,
    and `test_tasks` the held-out one.
    `corpora` and `stages` must exist first; with `tokenizer` the run's tokenizer, too. A changed input file rebuilds
    the corpus: those that polyphi's readers (`own`, `pages`, `pdf_pages`, `videos`, `feedback`) read are known; `files`
    are further files and folders that `build` and `steps` read. `fresh(work)` returns a generator of training samples
    by number, without end, none of them a row of the shards. It follows the same held-out rules, but is not processed
    by `steps`. With `settings`, a text, the corpus is the same as long as these are, whatever the seed and
    polyphi's code: imported data isn't built again by a new version. `teachers`, a text, is what decides the rows that
    teachers write among its `steps` (teacher_rows.py)."""

    name: str
    build: Callable[[Work], Iterator[tuple[str, Sample]]]
    corpora: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    tokenizer: bool = False
    steps: Callable[[Work], list[PipelineStep]] = lambda work: []
    across: tuple[Callable[..., Any], ...] = ()
    spare: float = 0.0
    tasks: int = 1
    test_tasks: int = 1
    files: tuple[str | Path, ...] = ()
    fresh: Callable[[Work], Callable[[int], Sample]] | None = None
    settings: str = ""
    teachers: str = ""


def fingerprint(corpus: Corpus, work: Work) -> str:
    """Return the hash of the corpus's file and its imports from `CODE` with their data files, its parent corpora, rows,
    longest clip and document, image sizes and seed: a changed recipe is a new corpus. Input files are compared
    separately (`is_built`)."""
    if corpus.settings:
        text = json.dumps([corpus.name, corpus.settings])
        return hashlib.sha256(text.encode()).hexdigest()
    own = inspect.getsourcefile(inspect.unwrap(corpus.build))
    assert own is not None
    code = [path.read_text() for path in imported(Path(own))]
    made_from = _parents(corpus, work)
    recipe = [corpus.name, corpus.tasks, corpus.spare, *filter(None, [corpus.teachers])]
    image_sizes = None if work.image_sizes is None else asdict(work.image_sizes)
    lengths = [work.seconds, work.document_tokens, image_sizes]
    settings = [dict(work.rows), lengths, work.seed, work.languages]
    text = json.dumps([*recipe, code, made_from, *settings])
    return hashlib.sha256(text.encode()).hexdigest()


def generator(corpus: Corpus, work: Work) -> tuple[Callable[[int], Sample], str]:
    """Return a function from number to fresh sample, and its hash: of `fingerprint` and of the first samples, which
    differ if a package is missing. The function can be sent to other processes."""
    assert corpus.fresh is not None, f"{corpus.name} has no generator of fresh samples"
    make = corpus.fresh(replace(work, report=print, models={}))
    first = [row_hash(to_row(make(n))) for n in range(FIRST)]
    text = json.dumps([fingerprint(corpus, work), first])
    return make, hashlib.sha256(text.encode()).hexdigest()


def _parents(corpus: Corpus, work: Work) -> list[str]:
    """Return the hash of each parent corpus's manifest, and of the tokenizer; "" for an absent file."""
    files = [work.data / name / "train" / "manifest.json" for name in corpus.corpora]
    if corpus.tokenizer and work.tokenizer is not None:
        files.append(work.tokenizer / "tokenizer.json")
    return [sha256(f) if f.exists() else "" for f in files]


def imported(file: Path) -> list[Path]:
    """Return a file and its transitive imports from `CODE`, each with the data file of its name (`lexicon.json` of
    `lexicon.py`)."""
    modules, new = {file}, [file]
    while new:
        path = new.pop()
        new += set(_imports(path, path.stat().st_mtime_ns)) - modules
        modules.update(new)
    data = [m.with_suffix(".json") for m in modules if m.is_relative_to(ROOT)]
    return sorted([*modules, *(path for path in data if path.exists())])


@cache
def _imports(file: Path, _modified: int) -> list[Path]:
    """Return the files that a file imports from `CODE`. They are read once, as a run asks for 130 fingerprints."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    paths = [
        ROOT.joinpath(*name.split(".")).with_suffix(".py")
        for name in names
        if name.startswith(CODE)
    ]
    return [path for path in paths if path.exists()]


def is_built(corpus: Corpus, work: Work) -> bool:
    """Return whether every split exists and was built by this recipe from the same input files."""
    hashed = fingerprint(corpus, work)
    return all(pipeline.is_built(work.data / corpus.name / split, hashed) for split in work.rows)


def build(
    corpus: Corpus,
    work: Work,
    machines: Machines = Machines(),  # noqa: B008 - frozen
) -> dict[str, dict[str, Any]]:
    """Build every split of a corpus under `work.data / corpus.name`; returns the manifests (none yet if jobs were
    submitted). Reports the changed input file that is the reason, and splits that lost most of their samples. A corpus
    that is built with a model is built in this process."""
    folder = work.data / corpus.name
    if corpus.stages:
        machines = Machines()
    task_work = work if machines == Machines() else replace(work, report=print, models={})
    manifests = {split: folder / split / "manifest.json" for split in work.rows}
    hashed = fingerprint(corpus, work)
    for split in work.rows:
        pipeline.check_own(folder / split, hashed)
    for split in sorted(work.rows, key=lambda name: name == "train"):
        rows, tasks = work.rows[split], corpus.tasks if split == "train" else corpus.test_tasks
        split_work = replace(task_work, rows={split: round(rows * (1 + corpus.spare))})
        if change := pipeline.input_change(folder / split, hashed):
            work.report(f"{corpus.name}/{split} is built again: {change}")
        inputs.start()
        steps = corpus.steps(split_work)
        for path in corpus.files:
            _note(Path(path))
        read = inputs.stop()
        is_new = pipeline.run(
            folder / split,
            [
                partial(_part, corpus.build, replace(split_work, part=(i, tasks)))
                for i in range(tasks)
            ],
            steps,
            machines,
            pipeline=hashed,
            parents=_parents(corpus, work),
            rows=rows,
            across=corpus.across if split == "train" else (),
            read=read,
        )
        if not manifests[split].exists():
            break  # jobs are submitted; training samples can't be checked against an absent split
        if is_new and rows and (text := warning(folder / split)):
            work.report(text)
    return {s: json.loads(path.read_text()) for s, path in manifests.items() if path.exists()}


def _note(path: Path) -> None:
    """Note an input file, or all files of a folder."""
    inputs.note_listing(path)
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        inputs.note(file)


def _part(make: Callable[[Work], Iterator[tuple[str, Sample]]], work: Work) -> Iterator[Sample]:
    """Yield the samples of one split, or of a part of it."""
    (rows,) = work.rows.values()
    return islice((sample for _, sample in make(work)), rows)


__all__ = ["Corpus", "Machines", "Shards", "Work", "build", "fingerprint", "generator", "is_built"]

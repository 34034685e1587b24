"""Corpora of a recipe file: rows of sources in any format (polyphi/data/sources.py), filtered by default.

    sources        ->  rows that can't be read  ->  language, rules, quality, personal data (documents and texts)
    image sizes    ->  audio length             ->  word errors  ->  held-out rows and benchmarks  ->  duplicates

A file is the unit of work: its task writes a part of the corpus whole or not at all, on this machine, Slurm or Ray.
Rows are held out by a hash of their content, so that equal rows are on one side: about `test_rows` of all files.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.data.formats import sample
from polyphi.data.row_counts import BUDGET, estimated_rows
from polyphi.data.sample import Sample
from polyphi.data.shards import document, row_hash, to_row
from polyphi.data.sources import SourceFile, rows
from polyphi.data.user_data import origin
from polyphi.media.media import audio_size
from polyphi.processing.item_reader import ItemReader
from polyphi.processing.reader import Reader
from polyphi.runtime import inputs
from polyphi.train.stage import Comparing, Stage
from polyphi.types import modality as users
from polyphi.types.messages import media
from polyphi.types.parts import Audio
from polyphi.types.routing import modalities_of
from polyphi.types.transcript import TRANSCRIBE
from polyphi_eval import heldout, scorers
from polyphi_eval.benchmark import Benchmark, Metric, Modality, Scorer
from polyphi_recipe.dedup.decontaminate import held_out
from polyphi_recipe.dedup.dedup import EXACT, IMAGES, TEXTS, Similarity, deduplicate
from polyphi_recipe.filters.images import DownscaleImages, ImageSizeFilter
from polyphi_recipe.filters.language import LanguageFilter, identify
from polyphi_recipe.filters.pii import PiiFilter
from polyphi_recipe.filters.quality import QualityClassifierFilter
from polyphi_recipe.filters.rules import QualityRulesFilter
from polyphi_recipe.filters.transcripts import WordErrorRateFilter
from polyphi_recipe.imports import recognizers
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.pipeline.documents import note
from polyphi_recipe.pipeline.pipeline import across_folder
from polyphi_recipe.recipe.file import CorpusSource, CorpusTable
from polyphi_recipe.recipe.recipe import OWN_TASK, Recipe
from polyphi_recipe.text.lexicon import LANGUAGES

VERSION = 2
"""Version of what an import does with a row: another number imports all corpora again."""
MAX_TASKS = 1000
"""Tasks of a corpus with more files: each has several of them."""
ALL = 1 << 48
"""A bound of rows that no corpus has."""
SHORT_ANSWER = 40
"""Characters up to which answers are compared as a whole."""
MIN_BAD_ROWS, CHECKED = 8, 1000
"""Unreadable rows of a task from which on their share counts, and rows after which it is checked each time."""
ESTIMATE, MIN_ESTIMATE = 256 << 20, 256 << 10
"""Bytes of all files of a corpus, and at least of each, by which its rows are estimated."""
TRIED = 8
"""Rows of each source that are read before any work begins."""
WAYS = ("quoted", "same bytes", "whole picture")
"""[ours] How imported samples are compared with held-out rows; landmarks of audio take a tenth of a second each."""
SECONDS, SUMMARY_SECONDS = 30.0, 1800.0
"""Longest audio clip, and that of summaries (report 2.2.1, 2.2.2)."""
SUMMARIES, TRANSCRIPTS = "speech_summary", "asr"
UNREADABLE = "unreadable"
"""Key of a row's error in `meta`; the first step drops it."""


@dataclass(frozen=True)
class Imported:
    """A corpus of a recipe file. `folder` is that of the file; `languages` are the run's; `others` the corpora whose
    held-out rows it must not contain, with its own; `benchmarks` files of further items; `recognizer` the folder of the
    one that judges transcripts. A source with a share is a corpus of its own: `base` is the one that it is a part of,
    and rows of `earlier` parts are dropped."""

    name: str
    table: CorpusTable
    folder: Path
    languages: tuple[str, ...] = tuple(LANGUAGES)
    others: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    modalities: tuple[users.Modality, ...] = ()
    recognizer: Path | None = None
    base: str = ""
    earlier: tuple[str, ...] = ()

    @property
    def readers(self) -> dict[str, Reader]:
        """The readers of users' modalities, which are columns of rows."""
        return {modality.name: ItemReader(modality) for modality in self.modalities}

    @cached_property
    def files(self) -> list[tuple[CorpusSource, SourceFile]]:
        """The files of all sources of training rows, or of rows of both splits. Raises ValueError for a source without
        files."""
        return [
            (s, f) for s in self.table.sources if s.split != "test" for f in s.files(self.folder)
        ]

    @cached_property
    def test_files(self) -> list[tuple[CorpusSource, SourceFile]]:
        """The files of held-out rows: those of sources for them, else of sources without a split; none if no row is
        held out."""
        if self._has_test_source:
            return [
                (s, f)
                for s in self.table.sources
                if s.split == "test"
                for f in s.files(self.folder)
            ]
        if not (self.table.held_out and self.table.test_rows):
            return []
        return [(source, file) for source, file in self.files if source.split is None]

    @property
    def _has_test_source(self) -> bool:
        return any(source.split == "test" for source in self.table.sources)

    @cached_property
    def held_out_share(self) -> float:
        """Rows of sources without a split are held out if their hash, a number in [0, 1), is below this one."""
        if self._has_test_source or not self.test_files:
            return 0.0
        rows = _estimated_rows(self.test_files)
        return min(self.table.held_out, self.table.test_rows / max(1, rows))

    @property
    def _paths(self) -> list[str]:
        """The paths of all files, relative to the recipe file's folder."""
        folder = f"{self.folder}/"
        return [str(file).removeprefix(folder) for _, file in (*self.files, *self.test_files)]

    def corpus(self, data: Path) -> Corpus:
        """The corpus as `Run.build` builds it in the folder `data`."""
        similarity = (
            IMAGES
            if "image" in self.kinds
            else EXACT
            if self.kinds - {"text", "document"}
            else TEXTS
        )
        splits = tuple(data / name / "train" for name in self.earlier)
        drop_duplicates = partial(_deduplicate, similarity, self.name, splits)
        return Corpus(
            self.name,
            build=partial(_build, self),
            steps=partial(_steps, self),
            corpora=self.earlier,
            across=(drop_duplicates,) if self.table.filters.duplicates else (),
            tasks=min(MAX_TASKS, len(self.files)),
            test_tasks=max(1, min(MAX_TASKS, len(self.test_files))),
            files=(
                *(self.folder / name for name in self.benchmarks),
                *((self.recognizer / "model.safetensors",) if self.recognizer else ()),
            ),
            settings=json.dumps(
                [
                    VERSION,
                    self.table.model_dump(exclude_unset=True),
                    self.languages,
                    self.benchmarks,
                    self._paths,
                    str(self.recognizer or "").removeprefix(f"{self.folder}/"),
                ]
            ),
        )

    @property
    def rows(self) -> dict[str, int]:
        """The bounds of the splits, as `Work.rows` has them."""
        return {"train": self.table.rows or ALL, "test": ALL if self.test_files else 0}

    def task(self) -> Benchmark | None:
        """The held-out task of the corpus: transcripts by word errors, translations and long answers by BLEU, short
        answers by whether they are exact; None for documents and a corpus without held-out rows."""
        if "document" in self.kinds or not self.test_files:
            return None
        question = self.tried[0].prompt[-1].text if self.tried[0].prompt else ""
        longest = max(len(one.answer) for one in self.tried)
        scorer: Scorer = scorers.exact
        metric: Metric = "accuracy"
        if question == TRANSCRIBE:
            scorer, metric = scorers.wer, "wer"
        elif longest > SHORT_ANSWER:
            scorer, metric = scorers.bleu, "bleu"
        has = {"image", "audio"} & self.kinds
        modality: Modality = (
            "joint"
            if len(has) == 2
            else "vision"
            if "image" in has
            else "speech"
            if has
            else "text"
        )
        return heldout.task(
            f"{OWN_TASK}{self.name}",
            f"Held-out rows of {self.name}",
            modality,
            self.name,
            scorer,
            {},
            metric,
            max_tokens=max(32, longest // 2),
            note="rows of your own corpus",
        )

    @cached_property
    def kinds(self) -> set[str]:
        """The contents of the rows, by the first ones: "document", "text", "image", "audio", a user's modality."""
        return {kind for one in self.tried for kind in _kinds(one)}

    @cached_property
    def estimated_rows(self) -> int:
        """About how many training rows the sources have."""
        return _estimated_rows(self.files)

    @cached_property
    def tried(self) -> list[Sample]:
        """The first rows of each source. Raises ValueError with a line for each source that isn't there, or of which
        none of the first rows can be read."""
        samples, mistakes = list[Sample](), list[str]()
        for number, source in enumerate(self.table.sources):
            good, errors = list[Sample](), list[str]()
            try:
                for one in islice(_read(source, source.files(self.folder)[0], self.readers), TRIED):
                    if UNREADABLE not in one.meta:
                        good.append(one)
                    else:
                        errors.append(one.meta[UNREADABLE])
            except ValueError as damage:
                errors.append(str(damage))
            if not good:
                reason = errors[0] if errors else f"{source.path} has no rows"
                mistakes.append(f"corpora.{self.name}.sources[{number}]: {reason}")
            samples += good
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return samples


@cache
def imported(recipe: Recipe, name: str) -> Imported | None:
    """The corpus `name` of a recipe file, if it has sources."""
    if (table := recipe.imported(name)) is None:
        return None
    others = tuple(other for other in recipe.imported_names if other != name)
    modalities = tuple(own.modality for own in recipe.size.model.further.values())
    recognizer = None
    if table.filters.wer is not None:
        recognizer = recognizers.folder_of(table, recipe.table.parts.audio, recipe.folder)
    base, parts = next(((b, p) for b, p in recipe.shares.items() if name in p), (name, (name,)))
    return Imported(
        name,
        table,
        recipe.folder,
        recipe.size.languages,
        others,
        recipe.benchmarks,
        modalities,
        recognizer=recognizer,
        base=base,
        earlier=parts[: parts.index(name)],
    )


def check_images(recipe: Recipe, stage: Stage) -> None:
    """Raise ValueError for a stage that compares images with texts, and a corpus of it whose sources have none."""
    if isinstance(stage.objective, Comparing):
        for name in stage.data.weights:
            if (own := imported(recipe, name)) is not None and "image" not in own.kinds:
                raise ValueError(
                    f"corpora.{name}: {stage.name} compares images with their texts; expected sources whose rows have "
                    f"an image, found {', '.join(sorted(own.kinds))} in {own.table.sources[0].path}"
                )


def _estimated_rows(files: Sequence[tuple[CorpusSource, SourceFile]]) -> int:
    """About how many rows files have; of many files, less of each is read."""
    each = max(MIN_ESTIMATE, min(BUDGET, ESTIMATE // max(1, len(files))))
    return sum(estimated_rows(file, each) for _, file in files)


def _kinds(one: Sample) -> Iterator[str]:
    yield from modalities_of(one.messages)
    yield "document" if one.messages[0].role == "document" else "text"


def _read(
    source: CorpusSource, file: SourceFile, readers: Mapping[str, Reader] = {}
) -> Iterator[Sample]:
    """Samples of a file; an unreadable row is a document with the error. Raises ValueError for a file that is damaged
    as a whole. The source of each is the path in the recipe file, by which losses are counted (drop_warning.py)."""
    return (_parse(row, location, source, file, readers) for location, row in rows(file))


def _parse(
    row: Any,
    location: str,
    source: CorpusSource,
    file: SourceFile,
    readers: Mapping[str, Reader],
    decode: bool = True,
) -> Sample:
    try:
        row_origin = replace(
            origin(file),
            source=source.path,
            licence=source.licence,
            language=source.language,
            question=source.question,
        )
        one, _ = sample(
            row, location, row_origin, columns=source.columns, readers=readers, decode=decode
        )
        return one
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix(f"{location}: ")
        return document(location, reason, source.path, source.licence, **{UNREADABLE: str(error)})


def _share_of(one: Sample) -> float:
    """A number in [0, 1) that depends on the content of a sample only."""
    row = to_row(Sample("", one.messages, "", "", {}))
    return int(row_hash(row)[:12], 16) / 16**12


def _build(imported: Imported, work: Work) -> Iterator[tuple[str, Sample]]:
    """The rows of a split, of this task's files."""
    (split,) = work.rows
    samples = _training_rows if split == "train" else _held_out_rows
    return ((split, one) for one in samples(imported, *work.part))


def _training_rows(imported: Imported, index: int, tasks: int) -> Iterator[Sample]:
    table, share, readers = imported.table, imported.held_out_share, imported.readers
    limit = math.ceil((table.rows or ALL) / tasks)
    count, readable = 0, ReadableShare(imported.name, table.filters.max_bad_rows)
    for source, file in imported.files[index::tasks]:
        for one in _read(source, file, readers):
            readable.add(one)
            if UNREADABLE in one.meta:
                yield one
                continue
            if source.split is None and share and _share_of(one) < share:
                continue
            count += 1
            yield one
            if count >= limit:
                return
    readable.check()


def _held_out_rows(imported: Imported, index: int, tasks: int) -> Iterator[Sample]:
    """Yield the held-out rows: all rows of sources for them, else those with a small hash. The media of other rows
    aren't decoded; the training split has the unreadable ones."""
    share, readers = imported.held_out_share, imported.readers
    readable = ReadableShare(imported.name, imported.table.filters.max_bad_rows)
    for source, file in imported.test_files[index::tasks]:
        is_whole = source.split == "test"
        for location, row in rows(file):
            one = _parse(row, location, source, file, readers, decode=is_whole)
            readable.add(one)
            if is_whole:
                yield one
            elif UNREADABLE not in one.meta and _share_of(one) < share:
                one = _parse(row, location, source, file, readers)
                if UNREADABLE not in one.meta:
                    yield one
    readable.check()


def _deduplicate(
    similarity: Similarity, name: str, splits: Sequence[Path], *data: Any, **options: Any
) -> Any:
    """Keep one of similar rows, and none that an earlier split has."""
    earlier = [folder for split in splits if (folder := across_folder(split, 0)) is not None]
    return deduplicate(similarity, *data, index=name, earlier=earlier, **options)


class ReadableShare:
    """The share of rows of a task that can't be read; above `largest` the import of the corpus stops."""

    def __init__(self, corpus: str, largest: float) -> None:
        self._corpus, self._largest = corpus, largest
        self._rows = self._bad = 0
        self._last = ""

    def add(self, one: Sample) -> None:
        """Count a row, and whether it is unreadable. Raises ValueError as `check`, each thousand rows."""
        self._rows += 1
        if (error := one.meta.get(UNREADABLE)) is not None:
            self._bad, self._last = self._bad + 1, error
        if self._rows % CHECKED == 0:
            self.check()

    def check(self) -> None:
        """Raise ValueError if too many rows can't be read, with the last one."""
        if self._bad >= MIN_BAD_ROWS and self._bad > self._largest * self._rows:
            raise ValueError(
                f"corpora.{self._corpus}: {self._bad:,} of {self._rows:,} rows can't be read, more than "
                f"{self._largest:.0%}; the last one: {self._last} (filters.max_bad_rows allows more)"
            )


def _steps(imported: Imported, work: Work) -> list[PipelineStep]:
    """The filters of a split."""
    _ = imported.held_out_share  # once, not in each task
    if "train" in work.rows:
        for earlier in imported.earlier:
            inputs.note(work.data / earlier / "train/manifest.json")
    filters, name = imported.table.filters, imported.name
    longest = filters.max_seconds or (SUMMARY_SECONDS if imported.base == SUMMARIES else SECONDS)
    steps: list[PipelineStep] = [ReadableRows()]
    documents = "document" in imported.kinds
    steps.append(ImportedLanguage(imported.languages, drop=filters.language))
    if filters.rules and documents:
        steps.append(QualityRulesFilter())
    if filters.quality is not None and documents:
        quality = imported.folder / filters.quality
        steps.append(QualityClassifierFilter(quality, filters.min_quality, filters.max_quality))
    if filters.personal_data:
        steps.append(PiiFilter())
    if filters.image_sizes and "image" in imported.kinds:
        steps += [ImageSizeFilter(), DownscaleImages()]
    if "audio" in imported.kinds:
        steps.append(AudioLengthFilter(longest))
        if imported.recognizer is not None and filters.wer is not None and "train" in work.rows:
            judge = recognizers.recognizer(imported.recognizer)
            steps.append(
                WordErrorRateFilter(judge, filters.wer, partial(spoken_text, imported.base))
            )
    if filters.held_out:
        items = {name: imported.folder / name for name in imported.benchmarks}
        steps += held_out(work, name, *imported.others, ways=WAYS, items=items)
    return steps


def spoken_text(corpus: str, one: Sample) -> str | None:
    """The text that is said in the audio clip of a row: its `transcript`, or the answer to a request for one; None
    where a row doesn't say it, or has several clips."""
    if len(media(one.messages, Audio)) != 1:
        return None
    if "transcript" in one.meta:
        return str(one.meta["transcript"])
    is_transcript = corpus == TRANSCRIPTS or "".join(m.text for m in one.prompt) == TRANSCRIBE
    return one.answer if is_transcript else None


class ReadableRows(BaseFilter):
    """Drops rows that couldn't be read, with the error as the reason of the stored row."""

    name, type = "Readable rows", "FILTER"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason."""
        meta: Mapping[str, Any] = doc.metadata["sample"]["meta"]
        return UNREADABLE not in meta or (False, "unreadable")


class ImportedLanguage(LanguageFilter):
    """Notes the language of a sample: of documents the one that is found, and with `drop` documents in others than
    `languages` are dropped; of texts, which are often too short to tell, the one that they name, else one that is found
    with certainty, else English."""

    name, type = "Language", "FILTER"

    def __init__(self, languages: tuple[str, ...], *, drop: bool) -> None:
        super().__init__(languages)
        self._drop = drop

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason."""
        fields = doc.metadata["sample"]
        if self._drop and fields["messages"][0]["role"] == "document":
            return super().filter(doc)
        language, score = fields["meta"].get("language"), 1.0
        if language is None:
            language, score = identify(doc.text)
            score = score if language in LANGUAGES else 0.0
        certain = score >= self._least and language in LANGUAGES
        note(doc, "language", found=language if certain else "en", score=round(score, 3))
        return True


class AudioLengthFilter(BaseFilter):
    """Drops samples with an audio clip longer than `longest` seconds, or one that can't be decoded."""

    name, type = "Audio length", "FILTER"

    def __init__(self, longest: float) -> None:
        super().__init__()
        self._longest = longest

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason."""
        for medium in doc.media:
            if medium.metadata["kind"] == "audio":
                try:
                    samples, rate = audio_size(medium.media_bytes)
                except ValueError:
                    return False, "broken"
                if samples > self._longest * rate:
                    return False, f"longer than {self._longest:g} s"
        return True

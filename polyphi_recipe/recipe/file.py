"""The recipe file: a TOML file that says what a run is made from (docs/own_data.md).

    size = "full"                                    # shapes and budgets

    [teachers]                                       # models that write rows of the built-in corpora
    text = "http://127.0.0.1:8001/v1#phi-4"

    [parts]                                          # what exists already and isn't trained from nothing
    decoder = "microsoft/Phi-4-mini-instruct"

    [corpora.captions]                               # replaces the built-in corpus of this name
    sources = ["pictures.jsonl", { path = "more/{00..11}.tar", share = 3 }]

    [stages.vision_1_align]
    steps = 2_000

Machines stay on the command line. All mistakes of a file are reported together, a line each.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from polyphi.data.addresses import is_remote, join
from polyphi.data.sources import SourceFile, find
from polyphi_eval.services.endpoint import parse_address
from polyphi_recipe import stages
from polyphi_recipe.stages import sizes
from polyphi_recipe.stages.lineage import REPLACED
from polyphi_recipe.text.lexicon import LANGUAGES

Format = Literal[
    "rows",
    "csv",
    "webdataset",
    "nemo",
    "lhotse",
    "commonvoice",
    "fleurs",
    "covost",
    "librispeech",
    "coco",
    "vqa",
    "pairs",
    "classes",
    "imagefolder",
    "datasets",
    "shards",
    "text",
    "html",
    "warc",
    "pdf",
]
FORMATS: tuple[str, ...] = get_args(Format)


class TomlTable(BaseModel):
    """A table of the file: unknown keys are errors, and values have exactly the types that are named."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class CorpusSource(TomlTable):
    """A source of rows of a corpus."""

    path: str
    """A file, a folder, a pattern with * or {000..122}, an address (s3://, https://), or hf:OWNER/NAME; relative to the
    recipe file."""
    format: Format | None = None
    """The format of the files; default: detected from their content."""
    columns: Mapping[str, str] = {}
    """Our name of a column -> its name in the rows, such as { answer = "caption" }."""
    share: PositiveFloat | None = None
    """The share of the source in the corpus, relative to the other sources; default: every row counts as one."""
    language: str | None = None
    """The language of all rows (en, de, ...)."""
    allowed_media_path: tuple[str, ...] = Field(default=(), strict=False)
    """Folders and addresses (https://HOST/...) whose files rows may name, beside those in the folder of their file;
    relative to the recipe file."""
    media_dir: str | None = None
    """The folder that paths in rows are relative to, itself relative to the recipe file; default: that of their
    file."""
    encoding: str = ""
    """The encoding of texts that aren't UTF-8, such as "cp1252"."""
    question: str | None = None
    """The question of rows about an image or audio that have none, such as "Describe the picture."."""
    licence: str = ""
    """The licence of rows that name none."""
    split: Literal["train", "test"] | None = None
    """All rows of the source are training rows or held-out rows; default: a share of them is held out."""

    def files(self, folder: Path) -> list[SourceFile]:
        """The files of the source, whose path is relative to `folder`. Raises ValueError without files."""
        allowed = [_below(folder, path) for path in self.allowed_media_path]
        media_dir = self.media_dir and _below(folder, self.media_dir)
        return find(_below(folder, self.path), self.format, allowed, self.encoding, media_dir)


def _below(folder: Path, path: str) -> str:
    """A path of the recipe file in `folder`."""
    absolute = is_remote(path) or path.startswith(("hf:", "/", "~"))
    return path if absolute else join(str(folder), path)


def _source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class Filters(TomlTable):
    """The filters of an imported corpus; each applies to the samples that it is for, and can be turned off."""

    language: bool = True
    """Documents in one of the run's languages (that of the source, where it names one)."""
    rules: bool = True
    """Gopher's, C4's and FineWeb's rules, for documents."""
    quality: str | None = None
    """The folder of a quality classifier (`python -m polyphi_recipe.filters.quality train`), for documents."""
    min_quality: Mapping[str, float] = {}
    """The smallest score of an aspect of the classifier, such as { educational = 0.3 }."""
    max_quality: Mapping[str, float] = {}
    """The largest score of an aspect of the classifier, such as { toxicity = 0.5 }."""
    personal_data: bool = True
    """Personal data in texts is replaced by [TYPE]; rows with audio that have more than names are dropped."""
    duplicates: bool = True
    """One of several equal or nearly equal samples stays."""
    held_out: bool = True
    """Samples that contain held-out rows of the run, or items of `benchmarks`, are dropped."""
    image_sizes: bool = True
    """Images that are broken, tiny or very narrow are dropped; larger ones than 1344 x 1344 are scaled down (3.2)."""
    max_seconds: PositiveFloat | None = None
    """Seconds of the longest audio clip; default: 30, and 1800 in the corpus speech_summary (2.2.1)."""
    wer: PositiveFloat | None = None
    """The largest word error rate of a training row's transcript against a recognizer (3.3); default: not measured."""
    recogniser: str | None = None
    """The recognizer of `wer`, which hasn't learned from these rows: RUN/stages/speech_0_aed of a finished run;
    default: that of parts.audio."""
    max_bad_rows: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of unreadable rows above which the import stops."""


class CorpusTable(TomlTable):
    """A corpus: its sources, or the built-in generator."""

    sources: tuple[
        Annotated[
            CorpusSource, BeforeValidator(_source, json_schema_input_type=str | CorpusSource)
        ],
        ...,
    ] = Field(default=(), strict=False)
    """Paths, or tables with a path and more."""
    rows: PositiveInt | None = None
    """The largest number of training rows; default: all."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """The largest share of rows that are held out, where no source has split = "test"."""
    test_rows: Annotated[int, Field(ge=0)] = 500
    """About the largest number of these rows: the share is smaller where the sources have more."""
    builtin: bool = False
    """Use the built-in generator, on purpose."""
    filters: Filters = Filters()


class StageTable(TomlTable):
    """A stage: values that replace those of the size, or a stage of your own."""

    file: str | None = None
    """The Python file of a stage of your own, which defines `stage`."""
    steps: PositiveInt | None = None
    batch_tokens: PositiveInt | None = None
    context: PositiveInt | None = None
    lr_factor: PositiveFloat | None = None
    """Factor on the learning rates."""
    muon_lr_factor: Annotated[float, Field(ge=0)] | None = None
    """Factor on the learning rates of the matrices that Muon trains; 0: AdamW trains them, too."""
    mix: Mapping[str, PositiveFloat] | None = None
    """Corpus -> its weight in the stage."""


class Parts(TomlTable):
    """Parts of the model that exist already, each as a checkpoint's folder, hub id (owner/name@revision), or the folder
    of a run's stage."""

    decoder: str | None = None
    """A language model of the architecture of Phi-4-mini, instead of text 1 to 4."""
    vision: str | None = None
    """A SigLIP tower, instead of vision 0."""
    audio: str | None = None
    """The audio encoder of a Phi-4-multimodal, instead of speech 0."""


def _address(value: str) -> str:
    parse_address(value)
    return value


class Teacher(TomlTable):
    """A model at an OpenAI-compatible endpoint."""

    address: Annotated[str, AfterValidator(_address)]
    """The address of the endpoint, # and the name of the model, such as http://127.0.0.1:8001/v1#phi-4."""
    key_from: str | None = None
    """The environment variable that holds the endpoint's key, if it needs one."""
    seconds: PositiveFloat = 300.0
    """How long an answer may take; a request is sent six times before the run stops."""
    requests_per_minute: PositiveInt | None = None
    """The endpoint's limit; default: none."""


def _teacher(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


SomeTeacher = Annotated[Teacher, BeforeValidator(_teacher, json_schema_input_type=str | Teacher)]


class Teachers(TomlTable):
    """Models that write rows of the built-in corpora: each an address, or a table with an address and more."""

    text: SomeTeacher | None = None
    """Writes texts: reasoning, function calls, code, instructions, summaries, preferences, questions about speech."""
    vision: SomeTeacher | None = None
    """Sees images: captions, questions about one or several, boxes."""
    speech: SomeTeacher | None = None
    """Hears recordings: questions about them."""
    judge: SomeTeacher | None = None
    """Judges what the others write; default: they themselves, in another request."""
    requests: PositiveInt | None = None
    """The largest number of requests of the run, in equal shares for its corpora; default: no limit."""
    corpora: tuple[str, ...] = Field(default=(), strict=False)
    """The corpora to write for; default: all that have a synthesis for these teachers."""
    concurrency: PositiveInt = 8
    """Requests that are sent at the same time."""


class RecipeFile(TomlTable):
    """What a run is made from."""

    size: str
    """micro, nano, lab or full: shapes and budgets."""
    targets: tuple[str, ...] = Field(default=(), strict=False)
    """The stages to reach, with those before them; default: all."""
    benchmarks: tuple[str, ...] = Field(default=(), strict=False)
    """Files of evaluation items (JSON lines) that training data must not contain."""
    teachers: Teachers = Teachers()
    parts: Parts = Parts()
    corpora: Mapping[str, CorpusTable] = {}
    stages: Mapping[str, StageTable] = {}


# ------------------------------------------------------------------------------ reading


def read(path: Path) -> RecipeFile:
    """The recipe file at `path`. Raises ValueError with a line for each mistake: its place, what was expected and
    found, and the nearest name."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no recipe file at {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: expected TOML: {error}") from None
    try:
        table = RecipeFile.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(_lines(path, error))) from None
    if mistakes := list(_mistakes(table)):
        raise ValueError("\n".join(f"{path}: {place}: {text}" for place, text in mistakes))
    return table


def _lines(path: Path, errors: ValidationError) -> Iterator[str]:
    for error in errors.errors(include_url=False):
        *places, last = error["loc"] or ("",)
        place = _place((*places, last))
        if error["type"] == "extra_forbidden":
            near = _nearest(str(last), _keys(places))
            yield f"{path}: {_place(places) or 'top level'}: unknown key {str(last)!r}; did you mean {near!r}?"
        elif error["type"] == "missing":
            yield f"{path}: {_place(places) or 'top level'}: {str(last)!r} is missing"
        elif error["type"] == "literal_error":
            near = _nearest(str(error["input"]), FORMATS if last == "format" else ("train", "test"))
            yield f"{path}: {place}: unknown value {error['input']!r}; did you mean {near!r}?"
        else:
            if error["type"] == "value_error":
                yield f"{path}: {place}: {error['msg'].removeprefix('Value error, ')}"
                continue
            message = error["msg"].removeprefix("Input should be ")
            yield f"{path}: {place}: expected {message}, found {error['input']!r:.60}"


def _place(loc: tuple[Any, ...] | list[Any]) -> str:
    """A location as TOML writes it: corpora.captions.sources[0].path."""
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _keys(places: list[Any]) -> list[str]:
    """The keys of the table at a location."""
    tables: dict[str, type[TomlTable]] = {
        "parts": Parts,
        "corpora": CorpusTable,
        "stages": StageTable,
        "sources": CorpusSource,
        "filters": Filters,
    }
    if places[:1] == ["teachers"]:
        return list((Teachers if len(places) == 1 else Teacher).model_fields)
    names = [p for p in places if p in tables]
    return list((tables[names[-1]] if names else RecipeFile).model_fields)


def _nearest(name: str, names: Any) -> str:
    return str(next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)), ""))


def _mistakes(table: RecipeFile) -> Iterator[tuple[str, str]]:
    """(place, text) of values that don't fit each other, or name what doesn't exist."""
    if table.size not in sizes.SIZES:
        yield (
            "size",
            f"unknown size {table.size!r}; did you mean {_nearest(table.size, sizes.SIZES)!r}?",
        )
    own_stages = {name for name, stage in table.stages.items() if stage.file}
    known_stages = [*stages.ORDER, *own_stages]
    for name, stage in table.stages.items():
        place = f"stages.{name}"
        if name not in known_stages:
            near = _nearest(name, stages.ORDER)
            yield (
                place,
                f"unknown stage {name!r}; did you mean {near!r}? A stage of your own has a `file`",
            )
        elif stage.file and name in stages.ORDER:
            yield (
                f"{place}.file",
                f"{name} is a stage of the recipe; give the stage of your own another name",
            )
        part = next(
            (p for p, names in REPLACED.items() if name in names and getattr(table.parts, p)), ""
        )
        if part:
            yield (
                place,
                f"this stage isn't run, since parts.{part} stands for its result; remove one of the two",
            )
        for corpus in stage.mix or ():
            if corpus not in sizes.CORPORA and corpus not in table.corpora:
                near = _nearest(corpus, (*sizes.CORPORA, *table.corpora))
                yield (
                    f"{place}.mix.{corpus}",
                    f"unknown corpus; did you mean {near!r}? A corpus of your own has sources",
                )
        if stage.mix is not None and not stage.mix:
            yield f"{place}.mix", "expected corpora with weights, found none"
    for target in table.targets:
        if target not in known_stages:
            yield (
                "targets",
                f"unknown stage {target!r}; did you mean {_nearest(target, known_stages)!r}?",
            )
    teachers = table.teachers
    if teachers.model_fields_set and not (teachers.text or teachers.vision or teachers.speech):
        yield "teachers", "expected a text, vision or speech teacher, found none that writes rows"
    for name, values in table.corpora.items():
        shares = [source for source in values.sources if source.split != "test"]
        if any(source.share for source in shares):
            clashes = [n for i in range(len(shares)) if (n := f"{name}-{i + 1}") in table.corpora]
            if clashes:
                yield (
                    f"corpora.{clashes[0]}",
                    f"the sources of {name} with shares become corpora of such names; choose another",
                )
        yield from (
            (f"corpora.{name}{place}", text) for place, text in _corpus_mistakes(name, values)
        )


def _corpus_mistakes(name: str, corpus: CorpusTable) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        yield "", "expected a name of small letters, digits, _ and -, since it is a folder's"
    if corpus.builtin and corpus.sources:
        yield "", "expected sources or builtin = true, found both"
    if not corpus.builtin and not corpus.sources:
        yield "", "expected sources, or builtin = true for the built-in generator; found neither"
    if corpus.builtin and name not in sizes.CORPORA:
        near = _nearest(name, sizes.CORPORA)
        yield ".builtin", f"there is no built-in corpus of this name; did you mean {near!r}?"
    if corpus.sources and all(source.split == "test" for source in corpus.sources):
        yield ".sources", 'expected training rows, found only sources with split = "test"'
    for number, source in enumerate(corpus.sources):
        if source.language is not None and source.language not in LANGUAGES:
            yield (
                f".sources[{number}].language",
                f"expected one of {', '.join(LANGUAGES)}, found {source.language!r}",
            )
        if source.share is not None and source.split == "test":
            yield f".sources[{number}].share", 'a source with split = "test" has no share'
    filters = corpus.filters
    if (filters.min_quality or filters.max_quality) and filters.quality is None:
        yield (
            ".filters.quality",
            "expected the folder of a classifier for min_quality and max_quality, found none",
        )


def schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RecipeFile.model_json_schema(mode="validation"),
    }

"""The recogniser that judges the transcripts of a corpus (`filters.wer`): speech 0 of a finished run.

    [corpora.calls]
    sources = ["calls.jsonl"]
    filters = { wer = 0.4, recogniser = "runs/nano/stages/speech_0_aed" }

It may not have learned from the rows that it judges: wrong transcripts would seem right.
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import multiprocess
import torch

from polyphi.data.addresses import is_remote
from polyphi.data.sources import SourceFile
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train import aed
from polyphi_recipe.curate.transcripts import Recogniser
from polyphi_recipe.recipe_file import CorpusTable, RecipeFile

STAGE = "speech_0_aed"


def folder_of(table: CorpusTable, part: str | None, folder: Path) -> Path:
    """The folder of the recogniser that a corpus names, or that of the part `audio`; paths are relative to `folder`.
    Raises ValueError where there is none."""
    source = table.filters.recogniser or part
    stage = folder / (source or "")
    recogniser = stage.parent.parent / "recogniser"
    if stage.parent.name != "stages" or not (recogniser / "config.json").exists():
        raise ValueError(
            f"expected the recogniser of a finished run, found {source or 'none'}; name a stage of that run: "
            f'recogniser = "RUN/stages/{STAGE}"'
        )
    return recogniser


def mistakes(table: RecipeFile, folder: Path) -> Iterator[str]:
    """A line for each corpus without a recogniser, or with one that has learned from its rows."""
    for name, corpus in table.corpora.items():
        if corpus.filters.wer is None:
            continue
        try:
            run = folder_of(corpus, table.parts.audio, folder).parent
        except ValueError as error:
            yield f"corpora.{name}.filters.wer: {error}"
            continue
        known = _learned(run)
        for number, source in enumerate(corpus.sources):
            try:
                files = source.files(folder)
            except ValueError:
                continue  # `Run.check_corpora` says it
            if path := next((_place(f) for f in files if _is_below(_place(f), known)), None):
                yield (
                    f"corpora.{name}.filters.wer: expected rows that the recogniser hasn't learned, found {path} of "
                    f"sources[{number}], from which {run} learned; name another recogniser, or leave wer out"
                )
                break


def _learned(run: Path) -> set[str]:
    """The files from which speech 0 of a run has learned: sources of its corpora, and its corpora."""
    from polyphi_recipe.from_file import recorded, stages_of_run
    from polyphi_recipe.recipe import RECORD

    corpora = [c for stage in stages_of_run(run) if stage.name == STAGE for c in stage.data.weights]
    places = {str(path.resolve()) for name in corpora for path in run.glob(f"data/{name}*")}
    if (run / RECORD).exists():
        table, file = recorded(run)
        sources = [
            s for name in corpora if name in table.corpora for s in table.corpora[name].sources
        ]
        for source in sources:
            try:
                places |= {_place(f) for f in source.files(file.parent)}
            except ValueError:
                continue  # it isn't there any more
    return places


def _place(file: SourceFile) -> str:
    return file.path if is_remote(file.path) else str(Path(file.path).resolve())


def _is_below(place: str, known: set[str]) -> bool:
    return place in known or any(str(parent) in known for parent in Path(place).parents)


def recogniser(folder: Path) -> Recogniser:
    """The recogniser in a folder; each process loads it at its first clip."""
    return Recogniser(f"{folder.parent.name} {STAGE}", partial(_transcribe, folder))


def _transcribe(folder: Path, audio: bytes, language: str) -> str:
    return _load(folder).transcribe_bytes(audio)


@cache
def _load(folder: Path) -> aed.Recogniser:
    if multiprocess.parent_process() is not None:
        torch.set_num_threads(1)  # one of several workers
    return aed.Recogniser.load(folder, Processor(Tokenizer.load(folder)))

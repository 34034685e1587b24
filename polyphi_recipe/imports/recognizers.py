"""The recognizer that judges the transcripts of a corpus (`filters.wer`): speech 0 of a finished run.

    [corpora.calls]
    sources = ["calls.jsonl"]
    filters = { wer = 0.4, recogniser = "runs/nano/stages/speech_0_aed" }

It may not have learned from the rows that it judges: wrong transcripts would seem right.
"""

from functools import cache, partial
from pathlib import Path

import multiprocess
import torch

from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train import aed
from polyphi_recipe.filters.transcripts import Recogniser
from polyphi_recipe.recipe.file import CorpusTable

STAGE = "speech_0_aed"


def folder_of(table: CorpusTable, part: str | None, folder: Path) -> Path:
    """The folder of the recognizer that a corpus names, or that of the part `audio`; paths are relative to `folder`.
    Raises ValueError where there is none."""
    source = table.filters.recogniser or part
    stage = folder / (source or "")
    recognizer = stage.parent.parent / "recogniser"
    if stage.parent.name != "stages" or not (recognizer / "config.json").exists():
        raise ValueError(
            f"expected the recognizer of a finished run, found {source or 'none'}; name a stage of that run: "
            f'recogniser = "RUN/stages/{STAGE}"'
        )
    return recognizer


def recognizer(folder: Path) -> Recogniser:
    """The recognizer in a folder; each process loads it at its first clip."""
    return Recogniser(f"{folder.parent.name} {STAGE}", partial(_transcribe, folder))


def _transcribe(folder: Path, audio: bytes, language: str) -> str:
    return _load(folder).transcribe_bytes(audio)


@cache
def _load(folder: Path) -> aed.Recognizer:
    if multiprocess.parent_process() is not None:
        torch.set_num_threads(1)  # one of several workers
    return aed.Recognizer.load(folder, Processor(Tokenizer.load(folder)))

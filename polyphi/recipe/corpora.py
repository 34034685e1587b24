"""The corpora of a run: where each recipe stands, what earlier stages give it, and what is built."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.curate import cards
from polyphi.curate.corpus import Corpus
from polyphi.stages import sizes


def find_corpus(name: str) -> Corpus:
    """One of ours, or the `corpus` of somebody's own Python file."""
    if name.endswith(".py"):
        file = Path(name).resolve()
        if not file.exists():
            raise ValueError(f"no corpus at {name}: expected a Python file that defines `corpus`")
        sys.path.insert(0, str(file.parent))  # where worker processes look, too
        corpus = getattr(importlib.import_module(file.stem), "corpus", None)
        if not isinstance(corpus, Corpus):
            raise ValueError(f"{name} defines no `corpus`: expected a polyphi.curate.corpus.Corpus")
        return corpus
    if name not in sizes.CORPORA:
        raise ValueError(f"unknown corpus {name!r}; the corpora are {', '.join(sizes.CORPORA)}")
    made: Corpus = importlib.import_module(f"polyphi.corpora.{name}").corpus
    return made


class StageModels(Mapping[str, Any]):
    """Models of stages, each loaded when a corpus first asks for it."""

    def __init__(self, stages: Sequence[str], made_by: Callable[[str], Any]) -> None:
        self._stages, self._made_by = stages, made_by

    def __getitem__(self, stage: str) -> Any:
        if stage not in self._stages:
            raise KeyError(stage)
        return self._made_by(stage)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)


def show(data: Path, name: str, tell: Callable[[str], None]) -> None:
    """Print what the corpora in the folder `data` hold; the card of a corpus; or, by its id (CORPUS/ID), all that is
    known of a sample. Raises ValueError for a corpus that isn't there."""
    corpus, _, sample = name.partition("/")
    manifests = sorted(data.glob(f"{corpus or '*'}/*/manifest.json"))
    if corpus and not manifests:
        built = sorted({path.parts[-3] for path in data.glob("*/*/manifest.json")})
        raise ValueError(
            f"{data.parent} holds no corpus {corpus!r}; it has {', '.join(built) or 'none as yet'}"
        )
    for path in manifests if not sample else ():
        manifest = json.loads(path.read_text())
        corpus_name, split = path.parts[-3:-1]
        tell(f"{corpus_name:<22}{split:<7}{manifest['rows']:>7}  {', '.join(manifest['licences'])}")
    if sample:
        tell(cards.explain(data / corpus, sample))
    elif corpus:
        tell(cards.card(data / corpus))

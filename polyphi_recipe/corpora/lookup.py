"""The corpora of a run: finding their recipes, models of earlier stages for them, printing what is built."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi_recipe.corpora import cards
from polyphi_recipe.pipeline.corpus import Corpus
from polyphi_recipe.pipeline.drop_warning import warning
from polyphi_recipe.stages import sizes


def find_corpus(name: str) -> Corpus:
    """The corpus with a name of the package, or the `corpus` of a user's Python file. Raises ValueError for none."""
    if name.endswith(".py"):
        file = Path(name).resolve()
        if not file.exists():
            raise ValueError(f"no corpus at {name}: expected a Python file that defines `corpus`")
        sys.path.insert(0, str(file.parent))  # worker processes import from there, too
        corpus = getattr(importlib.import_module(file.stem), "corpus", None)
        if not isinstance(corpus, Corpus):
            raise ValueError(
                f"{name} defines no `corpus`: expected a polyphi_recipe.pipeline.corpus.Corpus"
            )
        return corpus
    if name not in sizes.CORPORA:
        raise ValueError(f"unknown corpus {name!r}; the corpora are {', '.join(sizes.CORPORA)}")
    built_in: Corpus = importlib.import_module(f"polyphi_recipe.corpora.{name}").corpus
    return built_in


class StageModels(Mapping[str, Any]):
    """Models of stages by name, each loaded at its first use."""

    def __init__(self, stages: Sequence[str], load: Callable[[str], Any]) -> None:
        self._stages, self._load = stages, load

    def __getitem__(self, stage: str) -> Any:
        if stage not in self._stages:
            raise KeyError(stage)
        return self._load(stage)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)


def report_kept(folder: Path, report: Callable[[str], None]) -> None:
    """Report that a corpus wasn't built again, with its rows and warnings."""
    manifests = sorted(folder.glob("*/manifest.json"), reverse=True)
    counts = (f"{json.loads(p.read_text())['rows']} {p.parent.name}" for p in manifests)
    report(f"{folder.name}: no input file has changed; {', '.join(counts)} are kept")
    for text in filter(None, (warning(path.parent) for path in manifests)):
        report(text)


def show(data: Path, name: str, report: Callable[[str], None]) -> None:
    """Print the corpora in the folder `data`, or the card of the corpus `name`, or all information about a sample
    (CORPUS/ID). Raises ValueError for a corpus that isn't there."""
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
        report(
            f"{corpus_name:<22}{split:<7}{manifest['rows']:>7}  {', '.join(manifest['licences'])}"
        )
    if sample:
        report(cards.explain(data / corpus, sample))
    elif corpus:
        report(cards.card(data / corpus))

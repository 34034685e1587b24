"""A recipe: what a run is made from. A size has the built-in corpora and all sixteen stages; a recipe file
(recipe_file.py) changes both, and adds parts that exist already."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from polyphi.runtime.files import write_json
from polyphi.text.quantity import quantity
from polyphi.train.loss import NextToken
from polyphi.train.preference import DPO
from polyphi.train.stage import Budget, Stage
from polyphi.types.modality import ModalityEntry, load_modality
from polyphi_recipe import stages
from polyphi_recipe.corpora import capacities
from polyphi_recipe.recipe.parts import ModelPart
from polyphi_recipe.stages.lineage import EXPORTED, Lineage
from polyphi_recipe.stages.sizes import Size


@dataclass(frozen=True, eq=False)  # one per run
class Recipe:
    """What a run is made from. `size` has the shapes of the parts and the budgets of the file, `stages` all stages of
    the run by name, parents first, with the mixes of the size; `corpora` the tables of the file. A corpus whose sources
    have shares is divided into those that `shares` names. Relative paths are relative to `folder`."""

    name: str
    size: Size
    stages: Mapping[str, Stage]
    parts: Mapping[str, ModelPart] = field(default_factory=dict)
    corpora: Mapping[str, Any] = field(default_factory=dict)
    shares: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    folder: Path = Path()
    file: Path | None = None
    table: Any = None

    @cached_property
    def lineage(self) -> Lineage:
        """The origins of all tensors."""
        return Lineage(self.stages, self.parts)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The stages that are run: the targets and what they start from, in order."""
        needed = set(self.targets)
        for name in reversed(list(self.stages)):
            if name in needed:
                needed |= set(self.lineage.parents(name))
        return tuple(name for name in self.stages if name in needed)

    @cached_property
    def exports(self) -> dict[str, tuple[str, str]]:
        """Folder of a run with an exported model -> the stage after which it is exported, and its layout. A further one
        of the report's stages that no other starts from, such as the last of vision without joint 1, has its name."""
        exports = {name: (s, layout) for name, (s, layout) in EXPORTED.items() if s in self.order}
        if "model" not in exports and (final := self.final) is not None:
            exports["model"] = (final, self._layout(final))
        exported = {stage for stage, _ in exports.values()}
        parents = {parent for name in self.order for parent in self.lineage.parents(name)}
        for name in self._answering:
            if name in stages.ORDER and name not in exported | parents:
                exports[name] = (name, self._layout(name))
        return exports

    def _layout(self, stage: str) -> str:
        has = self.lineage.parts_of(self.stages[stage])
        return "native" if {"vision", "audio"} & has else "mini"

    @property
    def _answering(self) -> list[str]:
        """The stages after which a model answers, and isn't one of reasoning."""
        return [
            name
            for name in self.order
            if isinstance(self.stages[name].objective, NextToken | DPO) and "reasoning" not in name
        ]

    @property
    def final(self) -> str | None:
        """The last of the report's stages, or else of others, whose model answers, and isn't one of reasoning; None if
        only encoders are trained."""
        names = self._answering
        return next((n for n in reversed(names) if n in stages.ORDER), names[-1] if names else None)

    @property
    def imported_names(self) -> tuple[str, ...]:
        """The corpora with sources."""
        return tuple(name for name, table in self.corpora.items() if table.sources)

    def check_corpora(self, names: Iterable[str]) -> None:
        """Raise ValueError with a line for each corpus that is generated at a size at which nothing is silently a toy
        (`lab`, `full`), unless the file says builtin = true: what the generator gives, and which share of the budget of
        the stages that is."""
        if self.size.name not in REAL_SIZES:
            return
        missing = [n for n in names if n not in self.corpora]
        if missing:
            lines = [f"  {name:<22}{self.generated(name)}" for name in dict.fromkeys(missing)]
            raise ValueError(
                f"at the size {self.size.name} these corpora need sources in a recipe file ([corpora.NAME], "
                "`polyphi recipe new` writes one), or builtin = true for the generator:\n"
                + "\n".join(lines)
            )

    def tokens_needed(self) -> dict[str, float]:
        """Corpus -> the tokens of it that the stages that are run take, in the order of stages."""
        tokens: dict[str, float] = {}
        for name in self.order:
            stage = self.stages[name]
            budget, total = self.budget(stage), sum(stage.data.weights.values())
            for corpus, weight in stage.data.weights.items():
                share = budget.steps * budget.batch_tokens * weight / total
                tokens[corpus] = tokens.get(corpus, 0.0) + share
        return tokens

    def generated(self, corpus: str) -> str:
        """A text that compares what the built-in generator gives of a corpus with what the stages of this recipe
        take."""
        rows, tokens = capacities.of(corpus, self.size)
        needed = self.tokens_needed().get(corpus, 0.0)
        if not needed:
            return f"{quantity(rows, 'row')}, {short(tokens)} tokens"
        share = f"{100 * tokens / needed:.2g} % of the {short(needed)} that its stages take"
        return f"{quantity(rows, 'row')}, {short(tokens)} tokens, {share}"

    @property
    def is_built_in(self) -> bool:
        """Whether this recipe is a size without changes, and with all stages."""
        return self.file is None and len(self.order) == len(stages.ORDER)

    def imported(self, name: str) -> Any:
        """The table of a corpus with sources, None for a built-in corpus."""
        table = self.corpora.get(name)
        return table if table is not None and table.sources else None

    @property
    def teachers(self) -> Any:
        """The table of teachers of the file, if it names any."""
        table = self.table.teachers if self.table is not None else None
        return table if table is not None and (table.text or table.vision or table.speech) else None

    def budget(self, stage: Stage) -> Budget:
        """The stage's budget."""
        return self.size.budget(stage)

    def save(self, out: Path) -> None:
        """Record the file of this recipe in a run's folder."""
        if self.file is not None and self.table is not None:
            record = {
                "file": str(self.file.resolve()),
                "order": list(self.order),
                "generated": [c for c in self.tokens_needed() if c not in self.imported_names],
                "recipe": self.table.model_dump(mode="json", exclude_unset=True),
            }
            write_json(out / RECORD, record)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that the file says about parts and the shapes of the model, which can't change in a run."""
        model = self.size.model
        values = [self.size.name, repr(model), {n: p.source for n, p in self.parts.items()}]
        if model.further:
            values.append(repr(dict(model.further)))
        text = json.dumps(values)
        return hashlib.sha256(text.encode()).hexdigest()


def with_modalities(recipe: Recipe, files: Iterable[str | Path]) -> Recipe:
    """The recipe with users' modalities, whose stages train `NAME.*` and `decoder.*.lora.NAME.*`. Raises ValueError for
    a file without one."""
    further = dict(recipe.size.model.further)
    adapters = dict(recipe.size.model.adapters)
    for modality in map(load_modality, files):
        further[modality.name] = ModalityEntry(modality, modality.config(), 0)
        adapters[modality.name] = modality.adapter
    model = replace(recipe.size.model, further=further, adapters=adapters)
    return replace(recipe, size=replace(recipe.size, model=model))


PARTS = "parts.json"
"""File of a run with the repositories, revisions and hashes of its parts."""
OWN_TASK = "own_"
"""Beginning of the names of the held-out tasks of corpora with sources."""
RECORD = "recipe.json"
"""The file of a run with the content and the path of its recipe file."""
REAL_SIZES = ("lab", "full")
"""Sizes at which generated data is used on purpose only."""


def short(n: float) -> str:
    """A number as text: 4.57M."""
    n = float(f"{n:.3g}")  # 999,999 is 1M
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def of_size(size: Size) -> Recipe:
    """The recipe of a size: all sixteen stages on the built-in corpora."""
    every = {stage: stages.at_size(stage, size) for stage in stages.ORDER}
    return Recipe(size.name, size, every, targets=tuple(stages.ORDER))

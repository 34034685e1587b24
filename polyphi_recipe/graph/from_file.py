"""A recipe file's content -> the recipe of a run: stages, parts, shapes, and a corpus for each source with a share."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from torch import Tensor

from polyphi.data.addresses import is_remote
from polyphi.data.sources import SourceFile
from polyphi.finetuning.stages import load_stage
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train.checkpoint import MANIFEST, TRAINED
from polyphi.train.stage import Mix, Stage
from polyphi_eval.services import sandbox
from polyphi_recipe import stages
from polyphi_recipe.corpora.lookup import find_corpus
from polyphi_recipe.graph.teacher_rows import TABLE, rows_of
from polyphi_recipe.imports import recognizers
from polyphi_recipe.recipe.file import CorpusTable, RecipeFile
from polyphi_recipe.recipe.parts import ModelPart, open_part
from polyphi_recipe.recipe.recipe import RECORD, Recipe, of_size
from polyphi_recipe.stages import sizes
from polyphi_recipe.stages.lineage import REPLACED
from polyphi_recipe.stages.sizes import Size

BUDGET = {"steps", "batch_tokens", "context", "lr_factor", "muon_lr_factor"}
"""Keys of a stage's table that replace values of its budget."""


def of_run(out: Path) -> Recipe:
    """The recipe of a run's folder. Raises ValueError for a folder without a run, and as `of`."""
    if not (out / "run.json").is_file():
        raise ValueError(
            f"expected the folder of a run of `polyphi reproduce`, found no run.json in {out}"
        )
    if (out / RECORD).exists():
        return recipe_of(*_recorded(out))
    return of_size(sizes.load(json.loads((out / "run.json").read_text())["size"]))


def stages_of_run(out: Path) -> list[Stage]:
    """The stages of a run's folder in order; parts are not opened. Those of the recipe for a folder without a run."""
    if not (out / RECORD).exists():
        return list(stages.BUILT_IN.values())
    table, file = _recorded(out)
    every, _ = all_stages(table, sizes.load(table.size), file.parent)
    order = json.loads((out / RECORD).read_text(encoding="utf-8"))["order"]
    return [every[name] for name in order if name in every]


def _recorded(out: Path) -> tuple[Any, Path]:
    """The recipe file that a run's folder has, and its path."""
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    return RecipeFile.model_validate(record["recipe"]), Path(record["file"])


def recipe_of(table: RecipeFile, path: Path) -> Recipe:
    """The recipe of a file's content. Raises ValueError with a line for each mistake."""
    folder = path.resolve().parent
    size = sizes.load(table.size)
    every, mistakes = all_stages(table, size, folder)
    if not mistakes:
        mistakes = list(_unused_corpora(table, every))
    for name in table.benchmarks:
        if not (folder / name).is_file():
            mistakes.append(f"benchmarks: expected a file of evaluation items, found no {name}")
    mistakes += [f"teachers.corpora: {text}" for text in _teacher_mistakes(table)]
    mistakes += _recognizer_mistakes(table, folder)
    parts = {}
    for name, source in table.parts:
        if source is None:
            continue
        try:
            parts[name] = _part_of_run(name, source, folder) or open_part(
                name, source, folder, size.model
            )
        except ValueError as error:
            mistakes.append(f"parts.{name}: {error}")
    if mistakes:
        raise ValueError("\n".join(f"{path}: {mistake}" for mistake in mistakes))
    replaced = {stage for part in parts for stage in REPLACED[part]}
    corpora, every, shares = _by_share(table.corpora, every)
    imported = {name for name, corpus in corpora.items() if corpus.sources}
    every = {name: _on_imported_rows(stage, imported) for name, stage in every.items()}
    recipe = Recipe(
        path.stem,
        _size(table, size, parts, every),
        every,
        parts,
        corpora,
        shares,
        table.targets or tuple(name for name in every if name not in replaced),
        table.benchmarks,
        folder,
        path,
        table,
    )
    if mistakes := list(_share_mistakes(recipe)):
        raise ValueError("\n".join(f"{path}: {mistake}" for mistake in mistakes))
    return recipe


def _on_imported_rows(stage: Stage, imported: set[str]) -> Stage:
    """The stage without what only generated rows have: an order from easy to difficult, and annotations for auxiliary
    losses if all of its rows are imported."""
    unordered = tuple(name for name in stage.data.curriculum if name not in imported)
    stage = replace(stage, data=replace(stage.data, curriculum=unordered))
    return stages.without_auxiliary(stage) if imported.issuperset(stage.data.weights) else stage


def _share_mistakes(recipe: Recipe) -> Iterator[str]:
    """A line for each built-in corpus that is made from one whose sources have shares: its parts have other names, and
    the rows of its generator would be taken."""
    built_in = [n for n in recipe.tokens_needed() if recipe.shares and recipe.imported(n) is None]
    for name in built_in:
        for parent in find_corpus(name).corpora:
            if parent in recipe.shares:
                yield (
                    f"corpora.{parent}: expected sources without shares, since {name} is built from {parent}; found "
                    f"shares, which divide it into {', '.join(recipe.shares[parent])}; remove them, or give {name} "
                    "sources"
                )


def _unused_corpora(table: RecipeFile, every: Mapping[str, Stage]) -> Iterator[str]:
    """Corpora of the file that no stage is trained on, and from which no built-in corpus of a stage is made."""
    used = dict.fromkeys(corpus for stage in every.values() for corpus in stage.data.weights)
    unused = [name for name in table.corpora if name not in used]
    if not unused:
        return
    generated = [name for name in used if name in sizes.CORPORA and name not in table.corpora]
    parents = {parent for name in generated for parent in find_corpus(name).corpora}
    for name in unused:
        if name not in parents:
            (near,) = get_close_matches(name, used, n=1, cutoff=0.0)
            yield (
                f"corpora.{name}: no stage uses it; did you mean {near!r}? The mix of a stage names a "
                f"corpus of your own: [stages.STAGE] mix = {{ {name} = 1 }}"
            )


def _teacher_mistakes(table: RecipeFile) -> Iterator[str]:
    for name in table.teachers.corpora:
        if name not in TABLE:
            (near,) = get_close_matches(name, TABLE, n=1, cutoff=0.0)
            yield f"no synthesis writes for {name!r}; did you mean {near!r}?"
        elif name in table.corpora and table.corpora[name].sources:
            yield f"{name} has sources of its own; teachers write for built-in corpora"
        elif not any(getattr(table.teachers, row.teacher) for row in TABLE[name]):
            needed = " or ".join(sorted({row.teacher for row in TABLE[name]}))
            yield f"{name} needs a {needed} teacher, found none"
        elif not rows_of(name, table.teachers):
            yield f"{name} needs the sandbox, in which tests run: {sandbox.unavailable()}"


def _recognizer_mistakes(table: RecipeFile, folder: Path) -> Iterator[str]:
    """A line for each corpus without a recognizer, or with one that has learned from its rows."""
    for name, corpus in table.corpora.items():
        if corpus.filters.wer is None or not corpus.sources:
            continue
        try:
            run = recognizers.folder_of(corpus, table.parts.audio, folder).parent
        except ValueError as error:
            yield f"corpora.{name}.filters.wer: {error}"
            continue
        known = _learned(run)
        for number, source in enumerate(corpus.sources):
            try:
                files = source.files(folder)
            except ValueError:
                continue  # `Run.check_corpora` says it
            if path := next((p for p in map(_path, files) if _is_below(p, known)), None):
                yield (
                    f"corpora.{name}.filters.wer: expected rows that the recognizer hasn't learned, found {path} of "
                    f"sources[{number}], from which {run} learned; name another recognizer, or leave wer out"
                )
                break


def _learned(run: Path) -> set[str]:
    """The files from which speech 0 of a run has learned: sources of its corpora, and its corpora."""
    corpora = [
        c
        for stage in stages_of_run(run)
        if stage.name == recognizers.STAGE
        for c in stage.data.weights
    ]
    own = [path for name in corpora for path in (run / "data").glob(f"{name}*")]
    paths = {str(p.resolve()) for p in own if re.sub(r"-\d+$", "", p.name) in corpora}
    if (run / RECORD).exists():
        table, file = _recorded(run)
        sources = [
            s for name in corpora if name in table.corpora for s in table.corpora[name].sources
        ]
        for source in sources:
            try:
                paths |= {_path(f) for f in source.files(file.parent)}
            except ValueError:
                continue  # it isn't there any more
    return paths


def _path(file: SourceFile) -> str:
    """The address of a file, or its absolute path with links followed."""
    return file.path if is_remote(file.path) else str(Path(file.path).resolve())


def _is_below(path: str, known: set[str]) -> bool:
    """Whether a path, or a folder above it, is among the known ones."""
    return path in known or any(str(parent) in known for parent in Path(path).parents)


def _part_of_run(name: str, source: str, folder: Path) -> ModelPart | None:
    """The part from RUN/stages/NAME, a finished stage of another run; None for another source. Raises ValueError where
    the stage's model lacks it."""
    stage_folder = folder / source
    run = stage_folder.parent.parent
    if stage_folder.parent.name != "stages" or not (stage_folder / MANIFEST).exists():
        return None
    other = of_run(run)
    lineage, after = other.lineage, other.lineage.after(stage_folder.name)
    config = lineage.configuration(after, other.size.model, Tokenizer.load(run / "tokenizer"))
    if getattr(config, name) is None:
        raise ValueError(f"the model after {source} has no {name} encoder")
    seed = json.loads((run / "run.json").read_text())["seed"]

    def tensors() -> Mapping[str, Tensor]:
        model, _ = lineage.assemble(after, config, run / "stages", seed)
        return model.state_dict()

    return ModelPart(
        name,
        source,
        getattr(config, name),
        tensors,
        tuple(run / "stages" / s / TRAINED for s in lineage.stages_of(stage_folder.name)),
        partial(Tokenizer.load, run / "tokenizer") if name == "decoder" else None,
    )


def _size(
    table: RecipeFile, size: Size, parts: Mapping[str, ModelPart], every: Mapping[str, Stage]
) -> Size:
    """The size with the shapes of parts, and the budgets of the file."""
    model = ModelConfig(
        **{
            **{name: getattr(size.model, name) for name in ("decoder", "vision", "audio")},
            **{name: part.config for name, part in parts.items()},
        },
        adapters=size.model.adapters,
    )
    budgets = {**size.budgets}
    for name, values in table.stages.items():
        changed = values.model_dump(include=BUDGET, exclude_none=True)
        budgets[name] = replace(size.budget(every[name]), **changed)
    text_1 = table.stages.get("text_1_pretrain")
    has_own_lr = text_1 is not None and text_1.lr_factor is not None
    return replace(size, model=model, budgets=budgets, follows_law=not has_own_lr)


def all_stages(table: RecipeFile, size: Size, folder: Path) -> tuple[dict[str, Stage], list[str]]:
    """(all stages with the mixes of the size and the file, parents first; mistakes)."""
    every = {name: stages.at_size(name, size) for name in stages.ORDER}
    mistakes = []
    for name, values in table.stages.items():
        if values.file is not None:
            try:
                every[name] = replace(load_stage(folder / values.file), name=name)
            except ValueError as error:
                mistakes.append(f"stages.{name}.file: {error}")
                continue
        stage = every[name]
        if values.mix is not None:
            stage = replace(stage, data=_mix(stage.data, values.mix), small=None)
        every[name] = stage
    known = {*every, *(part for part, source in table.parts if source)}
    for name, stage in every.items():
        for parent in stage.parents:
            if parent not in known:
                mistakes.append(
                    f"stages.{name}: starts from {parent!r}, which is neither a stage nor a part of this file"
                )
        for corpus in stage.data.weights:
            if corpus not in sizes.CORPORA and corpus not in table.corpora:
                mistakes.append(
                    f"stages.{name}: its mix has {corpus!r}, which is neither built in nor in [corpora]"
                )
    if mistakes:
        return every, mistakes
    try:
        order = TopologicalSorter(
            {n: [p for p in s.parents if p in every] for n, s in every.items()}
        )
        after = list(order.static_order())
    except CycleError as error:
        return every, [f"stages: they start from each other: {' > '.join(error.args[1])}"]
    own = [name for name in after if name not in stages.ORDER]
    return {name: every[name] for name in (*stages.ORDER, *own)}, []


def _mix(mix: Mix, weights: Mapping[str, float]) -> Mix:
    """A mix with other weights, which keeps what it says about corpora that it still has."""
    late = {c: n for c, n in mix.late.items() if c in weights}
    return Mix(
        dict(weights),
        {c: a for c, a in mix.adapter.items() if c in weights},
        tuple(c for c in mix.curriculum if c in weights),
        late if set(late) != set(weights) else {},
    )


def _by_share(
    corpora: Mapping[str, CorpusTable], every: Mapping[str, Stage]
) -> tuple[dict[str, CorpusTable], dict[str, Stage], dict[str, tuple[str, ...]]]:
    """Corpora whose sources have shares become a corpus for each source, NAME-1, NAME-2, ..., which share its weight in
    every mix: so the shares are exact, whatever the sizes of the sources. The last value has these names."""
    tables: dict[str, CorpusTable] = {}
    shares: dict[str, dict[str, float]] = {}
    for name, table in corpora.items():
        if not any(source.share for source in table.sources):
            tables[name] = table
            continue
        held_out = tuple(s for s in table.sources if s.split == "test")
        training = [s for s in table.sources if s.split != "test"]
        total = sum(s.share or 1.0 for s in training)
        shares[name] = {}
        for number, source in enumerate(training, 1):
            changes: dict[str, Any] = {"sources": (source, *(held_out if number == 1 else ()))}
            if held_out and number > 1:
                changes["held_out"] = 0.0
            tables[f"{name}-{number}"] = table.model_copy(update=changes)
            shares[name][f"{name}-{number}"] = (source.share or 1.0) / total
    if shares:
        every = {name: replace(s, data=_divided(s.data, shares)) for name, s in every.items()}
    return tables, dict(every), {name: tuple(parts) for name, parts in shares.items()}


def _divided(mix: Mix, shares: Mapping[str, Mapping[str, float]]) -> Mix:
    def each(names: Sequence[str]) -> list[tuple[str, str, float]]:
        return [(new, old, s) for old in names for new, s in shares.get(old, {old: 1.0}).items()]

    return Mix(
        {new: mix.weights[old] * share for new, old, share in each([*mix.weights])},
        {new: mix.adapter[old] for new, old, _ in each([*mix.adapter])},
        tuple(new for new, _, _ in each(mix.curriculum)),
        {new: mix.late[old] for new, old, _ in each([*mix.late])},
    )

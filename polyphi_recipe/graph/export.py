"""Exported models of a run: loadable folders, and the origin of each of their tensors, which model cards name."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from polyphi.checkpoints.names import empty_model
from polyphi.checkpoints.write import save_checkpoint
from polyphi.hub.model_card import EXPORTS
from polyphi.runtime.files import sha256, write_json
from polyphi.train.checkpoint import TRAINED
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.graph.models import Models
from polyphi_recipe.recipe.recipe import PARTS, Recipe
from polyphi_recipe.stages.lineage import Origin

LINEAGE = "lineage.json"
"""File of a run with parts: the origin of every exported tensor."""


def export(recipe: Recipe, folder: RunFolder, models: Models) -> None:
    """Write `model`, `mini`, `reasoning` and `recogniser`, each a loadable folder, where its stage was run; again where
    an earlier export has fewer stages (`Run.finish`)."""
    exported = {n: (s, f) for n, (s, f) in recipe.exports.items() if folder.is_trained(s)}
    lineages = {name: recipe.lineage.stages_of(stage) for name, (stage, _) in exported.items()}
    path = folder.path / EXPORTS
    before = {**lineages, **json.loads(path.read_text())} if path.exists() else lineages
    for name, (stage, layout) in exported.items():
        out = folder.path / name
        if not out.exists() or before[name] != lineages[name]:
            files = sorted(folder.tokenizer.iterdir())
            with folder.timings.clock("export"):
                save_checkpoint(models.exported(stage), out, layout, files=files)
    write_json(path, lineages)
    if recipe.parts:
        origins = {n: origins_of(s, recipe, folder, models) for n, (s, _) in exported.items()}
        write_json(folder.path / LINEAGE, origins)
    if folder.is_trained("speech_0_aed"):
        models.recognizer()


def origins_of(
    stage: str, recipe: Recipe, folder: RunFolder, models: Models
) -> dict[str, dict[str, Any]]:
    """The origin of every tensor of the model after a stage: the stage that trained it with the hash of its tensors, or
    the part with its repository, revision and hashes."""
    lineage, after = recipe.lineage, recipe.lineage.after(stage)
    records = json.loads((folder.path / PARTS).read_text())
    keys = ("source", "repository", "revision", "files")

    @cache
    def of(source: Origin) -> dict[str, Any]:
        if source.part is not None:
            return {"part": source.part} | {k: records[source.part][k] for k in keys}
        if source.stage is None:
            return {"fresh": True}
        return {"stage": source.stage, "sha256": sha256(folder.stages / source.stage / TRAINED)}

    config = lineage.configuration(after, recipe.size.model, models.processor.tokenizer)
    origins = {n: lineage.origin(n, after) for n in empty_model(config).state_dict()}
    return {n: of(replace(o, name="")) | {"name": o.name} for n, o in origins.items()}

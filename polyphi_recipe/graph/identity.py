"""What can't change within a run: its size, seed and precision (`run.json`), and the hashes of its parts
(`parts.json`)."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from polyphi.devices.precision import Choice, Requested, choose
from polyphi.prepared.matrix_products import matrix_products
from polyphi.runtime import distributed
from polyphi.runtime.files import write_json
from polyphi.train.state import REASON, recorded
from polyphi_recipe.graph import processes
from polyphi_recipe.recipe.recipe import PARTS, RECORD, Recipe


@dataclass(frozen=True)
class Identity:
    """A run's folder, and the recipe, seed and precision that were requested for it."""

    out: Path
    recipe: Recipe
    seed: int
    requested: Requested

    def check(self) -> None:
        """Write run.json, or raise ValueError if it holds another run."""
        identity: dict[str, Any] = {"size": self.recipe.size.name, "seed": self.seed}
        if self.recipe.file is not None:
            identity |= {"recipe": self.recipe.name, "shapes": self.recipe.fingerprint}
        elif (self.out / RECORD).exists():
            raise ValueError(
                f"{self.out} holds a run of a recipe file, but the size {self.recipe.name} was requested; name the "
                "file again, or choose another --out"
            )
        path = self.out / "run.json"
        if not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            self.recipe.save(self.out)
            write_json(path, identity)
            return
        values = json.loads(path.read_text())
        present = {key: values.get(key) for key in identity}
        if self.requested != "auto" and (choice := recorded(values)) is not None:
            identity["precision"], present["precision"] = self.requested, choice.precision
        if present != identity:
            others = {key for key in identity if present[key] != identity[key]}
            changed = "the parts or the shapes of the model have changed, which a run can't; "
            raise ValueError(
                f"{self.out} holds a run of {_in_words(present)}, but {_in_words(identity)} was requested; "
                f"{changed if others == {'shapes'} else ''}choose another --out"
            )
        self.recipe.save(self.out)

    def choose_precision(self) -> Choice:
        """The precision of the run and its reason: that of run.json, else the requested one or by the rules for this
        machine. It is recorded in run.json."""

        def record(values: dict[str, Any]) -> dict[str, Any]:
            choice = recorded(values) or choose(
                self.requested, distributed.device(), matrix_products(self.recipe.size.model)
            )
            return {**values, "precision": choice.precision, REASON: choice.reason}

        processes.update_json(self.out / "run.json", {}, record)
        choice = recorded(json.loads((self.out / "run.json").read_text()))
        assert choice is not None
        return choice


@cache  # it hashes all weights, and each stage calls it
def check_parts(out: Path, recipe: Recipe) -> None:
    """Record the hashes of all parts in the run's folder. Raises ValueError for a part that has changed since."""
    if not recipe.parts or distributed.rank() > 0:
        return
    path = out / PARTS
    before = json.loads(path.read_text()) if path.exists() else {}
    records = {name: part.record() for name, part in recipe.parts.items()}
    for name, record in before.items():
        if records.get(name, {}).get("files") != record["files"]:
            raise ValueError(
                f"{out} began with another {name} than {record['source']} has now; restore that checkpoint, or choose "
                "another --out"
            )
    write_json(path, records)


def _in_words(identity: dict[str, Any]) -> str:
    """An identity in words: "lab.toml at the size full with seed 0 in bf16"."""
    size, precision = f"the size {identity['size']}", identity.get("precision")
    name = f"{identity['recipe']}.toml at {size}" if identity.get("recipe") else size
    return f"{name} with seed {identity['seed']}{f' in {precision}' if precision else ''}"

"""The model card that `polyphi export` writes: a README.md with the Hub's header, training, results, limits and
licences.

>>> card(Path("runs/nano/model"), "native", results=Path("runs/nano/benchmarks"))
"""

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from polyphi.checkpoints.accuracy_file import Measurement
from polyphi.checkpoints.headers import read_config
from polyphi.checkpoints.names import LAYOUTS, PUBLISHED_ADAPTERS, TEXT_LAYOUTS
from polyphi.checkpoints.parts import part_of, parts
from polyphi.hub.fingerprint import fingerprint as checkpoint_fingerprint
from polyphi.model.config import VisionConfig
from polyphi.runtime.files import write_whole
from polyphi.runtime.rendering import environment

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LICENCES = {
    "microsoft/Phi-4-mini-instruct": "mit",
    "microsoft/Phi-4-multimodal-instruct": "mit",
}
"""Licences of base models."""
LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "pt", "zh")
HEADER = re.compile(r"---\n.*?\n---\n", re.DOTALL)
"""The part of a model card that the Hub reads."""
LICENCE = re.compile(r"^license: *[\"']?([\w.+-]{1,64})[\"']? *$", re.MULTILINE)
"""The licence in the header of a model card."""
EXPORTS = "exports.json"
"""File of a run of the recipe: the stages that an exported model comes from, by its folder."""
QUANTIZED = {
    "int8": "8 bits (adapters and encoders in bfloat16)",
    "int4": "4 bits (adapters and encoders in bfloat16)",
    "int8-all": "8 bits",
    "int4-all": "4 bits (adapters and encoders in 8)",
}
NAMES = ("README.md", "README.polyphi.md")
"""File names of a card: the second one where the user has a file with the first."""
SIGNATURE = re.compile(r"\n<!-- polyphi export, ([0-9a-f]{64}) -->\n$")


def card(
    folder: Path,
    layout: str,
    *,
    source: str | None = None,
    merged: str | None = None,
    results: Path | None = None,
    quant: str | None = None,
    repository: str | None = None,
    accuracy: Measurement | None = None,
) -> str:
    """The model card of an exported checkpoint. `source` is the user's name of the checkpoint, `merged` the adapter
    that was merged, `quant` the quantization scheme, `repository` the one on the Hub that it is for, and `accuracy`
    the measured one of a quantized checkpoint. It has no paths of this machine. Raises ValueError where `results` is no
    results folder, or that of another model."""
    if layout not in LAYOUTS:
        raise ValueError(f"expected a layout of {', '.join(LAYOUTS)}, found {layout!r}")
    evaluated = _results(results, folder) if results else None
    run, manifest = _run(folder), _manifest(folder)
    manifests = [manifest] if manifest else list(run["stages"].values()) if run else []
    base = _base(source, manifest) or (run or {}).get("base")
    name = repository.rpartition("/")[2] if repository else (manifest or {}).get("stage")
    title = (run or {}).get("title") or name or folder.name
    config = read_config(folder)
    adapters = {n: a for n, a in config.adapters.items() if n != merged}
    adapters = {} if layout in TEXT_LAYOUTS and run else adapters
    header = {
        "license": "other" if run else LICENCES.get(base, "other") if base else None,
        "license_name": "see-the-card" if run else None,
        "base_model": base,
        "base_model_relation": "quantized" if base and quant else None,
        "library_name": "polyphi" if quant else "transformers",
        "pipeline_tag": "text-generation" if layout in TEXT_LAYOUTS else "image-text-to-text",
        "language": LANGUAGES,
        "tags": [
            "polyphi",
            *(() if layout in TEXT_LAYOUTS else ("vision", "speech")),
            *(("peft",) if adapters and not quant else ()),
        ],
        "model-index": _index(title, evaluated),
    }
    own = [name for name in adapters if name not in PUBLISHED_ADAPTERS]
    loss, evaluation = _losses(manifest or {})
    measured = (evaluated["card"]["measured"] if evaluated else "", run["measured"] if run else "")
    text = TEMPLATES.get_template("model_card.md").render(
        # JSON is valid YAML, and needs no library.
        header={k: json.dumps(v, ensure_ascii=False) for k, v in header.items() if v},
        title=title,
        folder=folder.name,
        layout=layout,
        quant=quant,
        quantized=quant and QUANTIZED[quant],
        accuracy=accuracy,
        base=base,
        base_licence=LICENCES.get(base or ""),
        merged=merged,
        run=run,
        manifest=manifest,
        loss=loss,
        evaluation=evaluation,
        parts=[
            part
            for part in parts(config)
            if part.parameters and (layout not in TEXT_LAYOUTS or part.name == "language model")
        ],
        adapters=adapters,
        trained_adapters=[n for n in adapters if any(_is_trained(n, m) for m in manifests)],
        measured=[text for text in measured if text],
        licences=sorted((run or {}).get("licences", {}).items(), key=lambda x: -x[1]),
        # model_use.md: `name` is the model's repository, or its folder, which the reader is in.
        repository=repository,
        name=repository or ".",
        own=own,
        option=f"--adapter {own[0]} " if own else "",
        other_layout=quant is not None or layout == "original",
        published_crops=config.vision is not None
        and config.vision.crop_size == VisionConfig.crop_size,
    )
    return text.rstrip("\n") + "\n"


def placed(text: str, out: Path) -> dict[str, str]:
    """The files to write for a card, by name: the signed card, and an existing card of the user, unchanged. An
    unchanged card of an earlier export is replaced. Raises ValueError where the user has files with both names."""
    signed = f"{text}\n<!-- polyphi export, {_digest(text)} -->\n"
    existing: dict[str, str] = {}
    for name in NAMES:
        path = out / name
        if not path.exists() or _is_generated(
            old := path.read_text(encoding="utf-8", errors="replace")
        ):
            return {**existing, name: signed}
        existing[name] = old
    raise ValueError(
        f"{out} has files of your own named {' and '.join(NAMES)}, which are not overwritten; move one away"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_generated(text: str) -> bool:
    """Whether a card was written by `polyphi export` and not changed since."""
    sign = SIGNATURE.search(text)
    return sign is not None and _digest(text[: sign.start()]) == sign[1]


def _results(results: Path, folder: Path) -> dict[str, Any]:
    if not (results / "results.json").exists():
        raise ValueError(
            f"--results {results}: expected the --out folder of `polyphi eval MODEL --suite ...`, found no results.json"
        )
    content: dict[str, Any] = json.loads((results / "results.json").read_text())
    if "card" not in content:
        raise ValueError(
            f"--results {results} lacks what a card shows; `polyphi eval score {results}` adds it"
        )
    measured = json.loads((results / "model.json").read_text())["fingerprint"].split()
    fingerprint = measured[0] if measured else ""
    if re.fullmatch("[0-9a-f]{32}", fingerprint) and fingerprint != checkpoint_fingerprint(folder):
        raise ValueError(
            f"--results {results} has the results of another model, {content['model']}, not of {folder}"
        )
    return content


def _run(folder: Path) -> dict[str, Any] | None:
    """Stages, licences and results of the run of the recipe that a checkpoint comes from; None for no run."""
    root = folder.parent
    exports = json.loads((root / EXPORTS).read_text()) if (root / EXPORTS).exists() else {}
    if folder.name not in exports:
        return None
    identity, names = json.loads((root / "run.json").read_text()), exports[folder.name]
    manifests = {n: root / "stages" / n / "manifest.json" for n in names}
    finished = {n: json.loads(path.read_text()) for n, path in manifests.items() if path.exists()}
    mixes = dict.fromkeys(c for manifest in finished.values() for c in manifest["mix"])
    licences: dict[str, int] = {}
    for corpus in mixes:
        path = root / "data" / corpus / "train" / "manifest.json"
        corpus_licences = json.loads(path.read_text())["licences"] if path.exists() else {}
        for licence, rows in corpus_licences.items():
            licences[licence] = licences.get(licence, 0) + rows
    freeze, report_json, record, part_records = (
        json.loads((root / name).read_text(encoding="utf-8")) if (root / name).exists() else {}
        for name in ("freeze.json", "report.json", "recipe.json", "parts.json")
    )
    freeze = [check for check in freeze if check["stage"] in names]
    return {
        "title": f"polyphi {identity.get('recipe', identity['size'])}"
        + ("" if folder.name == "model" else f" {folder.name}"),
        "size": identity["size"],
        "recipe": identity.get("recipe"),
        "parts": part_origins(part_records),
        "base": part_records.get("decoder", {}).get("repository"),
        "generated": [corpus for corpus in mixes if corpus in record.get("generated", ())],
        "seed": identity["seed"],
        "stages": finished,
        "licences": licences,
        "frozen_in": len(freeze),
        "unchanged_in": sum(c["logits_sha256_before"] == c["logits_sha256_after"] for c in freeze),
        "measured": report_json.get("cards", {}).get(folder.name, ""),
    }


def part_origins(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The repository and revision, or the folder's name, of each part of a run, and the licence that it states, from
    its parts.json."""
    return {
        name: (
            f"{part['repository']} at revision {part['revision']}"
            if part["repository"]
            else f"a checkpoint named {Path(part['source']).name}"
        )
        + (f", licence {part['licence']}" if part.get("licence") else "")
        for name, part in records.items()
    }


def licence(folder: Path) -> str:
    """The licence that the model card in a folder states, such as "apache-2.0"; "" where it states none."""
    if not (path := folder / "README.md").is_file():
        return ""
    header = HEADER.match(path.read_text(encoding="utf-8", errors="replace"))
    statement = header and LICENCE.search(header[0])
    return statement[1] if statement else ""


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The training manifest of a fine-tuned checkpoint (finetune.py), None for other checkpoints."""
    path = folder.parent / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else None
    return manifest if isinstance(manifest, dict) and "trainable" in manifest else None


def _base(source: str | None, manifest: Mapping[str, Any] | None) -> str | None:
    """The Hub id of the base model, None where it has none."""
    names = [*(manifest or {}).get("parents", ()), *([] if manifest else [source])]
    for name in (str(name).removeprefix("hf:") for name in names if name):
        if HUB_ID.fullmatch(name) and not Path(name).exists() and not name.startswith("copy of"):
            return name
    return None


def _losses(
    manifest: Mapping[str, Any],
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The losses of a fine-tuning and its evaluation, None for what its manifest lacks."""
    loss, evaluation = manifest.get("loss", {}), manifest.get("evaluation")
    if loss.get("first") is None:
        return None, None
    return loss, evaluation if evaluation and evaluation["best"]["loss"] is not None else None


def _is_trained(adapter: str, manifest: Mapping[str, Any]) -> bool:
    name = f"decoder.layers.0.x.lora.{adapter}.a"
    return any(fnmatch.fnmatchcase(name, glob) for glob in manifest.get("learning_rates", {}))


def _trained_parts(globs: Iterable[str]) -> list[str]:
    """The parts of the model that globs of parameters match, each once."""
    return list(dict.fromkeys(part for glob in globs for part in part_of(glob)))


TEMPLATES = environment("polyphi.hub")
TEMPLATES.filters["trained_parts"] = _trained_parts


def write(folder: Path, layout: str, repository: str | None = None) -> None:
    """Write the card of a fine-tuned model into its folder; a card that the user has changed is kept (`placed`)."""
    for name, text in placed(card(folder, layout, repository=repository), folder).items():
        write_whole(folder / name, text)


def _index(title: str, evaluated: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """The Hub's list of results: rows of the report on the public data, no others."""
    results = evaluated["card"]["results"] if evaluated else None
    return [{"name": title, "results": results}] if results else None

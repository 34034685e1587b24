"""The model card that `polyphi export` writes: a README.md with the Hub's header, training, results, limits and
licences.

>>> card(Path("runs/nano/model"), "native", results=Path("runs/nano/benchmarks"))
"""

import fnmatch
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.checkpoints.fingerprint import fingerprint as checkpoint_fingerprint
from polyphi.checkpoints.names import LAYOUTS, PUBLISHED_ADAPTERS
from polyphi.checkpoints.parts import part_of, parts
from polyphi.checkpoints.read import read_config
from polyphi.model.config import AdapterConfig
from polyphi.runtime.files import write_whole
from polyphi.runtime.rendering import environment

TEMPLATES = environment("polyphi.checkpoints")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LICENCES = {
    "microsoft/Phi-4-mini-instruct": "mit",
    "microsoft/Phi-4-multimodal-instruct": "mit",
}
"""Licences of base models."""
LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "pt", "zh")
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

LIMITS = """\
The technical report (section 6) names limits of its models. They apply at least as much to smaller or further trained
models:

- Facts: a model of this size knows few of them and invents others (for example who won which medal). Give it the text
  to answer from.
- Languages: English is best. Other languages are weaker, because the training data have more code and less of them.
- Undesirable content: like any such model it can produce harmful or offensive text. Applications need measures of their
  own: system prompts, filters for inputs and outputs, human review.
- **No biometric categorisation.** The model is not intended for sorting people by their bodies, faces or voices in
  order to infer their race, political opinions, trade union membership, religious or philosophical beliefs, sex life or
  sexual orientation, and must not be used for it.
"""


def card(
    folder: Path,
    layout: str,
    *,
    source: str | None = None,
    merged: str | None = None,
    results: Path | None = None,
    quant: str | None = None,
    repository: str | None = None,
) -> str:
    """The model card of an exported checkpoint. `source` is the user's name of the checkpoint, `merged` the adapter
    that was merged, `quant` the quantization scheme, `repository` the one on the Hub that it is for. It has no paths of
    this machine. Raises ValueError where `results` is no results folder, or that of another model."""
    if layout not in LAYOUTS:
        raise ValueError(f"expected a layout of {', '.join(LAYOUTS)}, found {layout!r}")
    evaluated = _results(results, folder) if results else None
    run, manifest = _run(folder), _manifest(folder)
    base = _base(source, manifest)
    title = (run or {}).get("title") or (manifest or {}).get("stage") or folder.name
    adapters = {n: a for n, a in read_config(folder).adapters.items() if n != merged}
    adapters = {} if layout == "mini" and run else adapters
    header = {
        "license": LICENCES.get(base or "", "other") if base or run else None,
        "license_name": "see-the-card" if run else None,
        "base_model": base,
        "base_model_relation": "quantized" if base and quant else None,
        "library_name": "polyphi" if quant else "transformers",
        "pipeline_tag": "text-generation" if layout == "mini" else "image-text-to-text",
        "language": LANGUAGES,
        "tags": [
            "polyphi",
            *(() if layout == "mini" else ("vision", "speech")),
            *(("peft",) if adapters and not quant else ()),
        ],
        "model-index": _index(title, evaluated),
    }
    # JSON is valid YAML, and needs no library
    lines = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in header.items() if v]
    parts = [
        "---\n" + "\n".join(lines) + "\n---",
        f"# {title}",
        _description(folder, layout, base, quant),
        "## Use",
        _use(repository or "FOLDER", layout, list(adapters), quant is not None),
        "## How it was made",
        _training(folder, run, manifest, base, merged, quant),
        *_adapters(adapters, manifest),
        "## What was measured",
        _measured(evaluated, run),
        "## Limits",
        LIMITS.strip(),
        "## Licences",
        _licences(run, base),
    ]
    return "\n\n".join(parts) + "\n"


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
    licences: dict[str, int] = {}
    for corpus in {c for manifest in finished.values() for c in manifest["mix"]}:
        path = root / "data" / corpus / "train" / "manifest.json"
        corpus_licences = json.loads(path.read_text())["licences"] if path.exists() else {}
        for licence, rows in corpus_licences.items():
            licences[licence] = licences.get(licence, 0) + rows
    checks, report_json = (
        json.loads((root / name).read_text()) if (root / name).exists() else None
        for name in ("freeze.json", "report.json")
    )
    return {
        "title": f"polyphi {identity['size']}"
        + ("" if folder.name == "model" else f" {folder.name}"),
        "identity": identity,
        "stages": finished,
        "licences": licences,
        "freeze": [c for c in checks or () if c["stage"] in names],
        "measured": (report_json or {}).get("cards", {}).get(folder.name, ""),
    }


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


def _description(folder: Path, layout: str, base: str | None, quant: str | None) -> str:
    layout_text = {
        "native": "the layout of transformers, with `vision-lora/` and `speech-lora/` next to it",
        "original": "Microsoft's layout of Phi-4-multimodal",
        "mini": "the language model alone, in the layout of Phi-4-mini",
    }[layout]
    if quant:
        alone = "the language model alone, " if layout == "mini" else ""
        layout_text = f"{alone}weights in {QUANTIZED[quant]}, in a layout that polyphi reads"
    rows = parts(read_config(folder))
    table = ["| part | parameters |", "|---|---:|"]
    table += [
        f"| {part.name} | {part.parameters:,} |"
        for part in rows
        if part.parameters and (layout != "mini" or part.name == "language model")
    ]
    from_base = f" It comes from [{base}](https://huggingface.co/{base})." if base else ""
    return (
        f"A model of the Phi-4-Mini family: {layout_text}.{from_base} Written by polyphi, an open implementation of "
        "the Phi-4-Mini technical report.\n\n" + "\n".join(table)
    )


def _use(name: str, layout: str, adapters: Sequence[str], quantized: bool) -> str:
    """Commands of polyphi, and code for transformers and PEFT. `name` is the model's repository, or a word for its
    folder."""
    own = [adapter for adapter in adapters if adapter not in PUBLISHED_ADAPTERS]
    section = TEMPLATES.get_template("model_use.md").render(
        name=name,
        layout=layout,
        adapters=adapters,
        own=own,
        option=f"--adapter {own[0]} " if own else "",
        other_layout=quantized or layout == "original",
        model_class="AutoModelForCausalLM" if layout == "mini" else "Phi4MultimodalForCausalLM",
    )
    return section.strip()


def _training(
    folder: Path,
    run: Mapping[str, Any] | None,
    manifest: Mapping[str, Any] | None,
    base: str | None,
    merged: str | None,
    quant: str | None,
) -> str:
    paragraphs = []
    if run:
        identity = run["identity"]
        paragraphs.append(
            f"Trained from scratch by `polyphi reproduce {identity['size']} --seed {identity['seed']}`: the report's "
            f"recipe at the size {identity['size']}, {len(run['stages'])} stages of it."
        )
        rows = ["| stage | trained | steps | tokens | data |", "|---|---|---:|---:|---|"]
        rows += [_stage_row(*stage) for stage in run["stages"].items()]
        paragraphs.append("\n".join(rows))
        same = sum(c["logits_sha256_before"] == c["logits_sha256_after"] for c in run["freeze"])
        if run["freeze"]:
            paragraphs.append(
                f"The language model was frozen in {len(run['freeze'])} of these stages: in {same} of them its logits "
                "on fixed prompts were bit-identical before and after."
            )
    elif manifest:
        trained = ", ".join(f"`{glob}`" for glob in manifest["learning_rates"])
        paragraphs.append(
            f"Trained further from {base or 'a checkpoint in a folder'} in {manifest['steps']:,} steps: "
            f"{trained} were trained on {', '.join(manifest['mix'])}. All other parameters were frozen: "
            f"{len(manifest['frozen'])} tensors have the same SHA-256 as before."
        )
        paragraphs += _losses(manifest)
    else:
        paragraphs.append(
            f"Converted by polyphi from {base or f'the checkpoint {folder.name}'}, without training."
        )
    if merged:
        paragraphs.append(f"The adapter `{merged}` was merged into the base weights.")
    if quant:
        paragraphs.append(
            f"Then it was quantized (`polyphi export --quant {quant}`): results measured before that are those of the "
            "unquantized weights."
        )
    return "\n\n".join(paragraphs)


def _losses(manifest: Mapping[str, Any]) -> list[str]:
    """A sentence with the losses of a fine-tuning, if its manifest has them."""
    loss, evaluation = manifest.get("loss", {}), manifest.get("evaluation")
    if loss.get("first") is None:
        return []
    text = f"The loss was {loss['first']:.3f} in the first step and {loss['last']:.3f} on average of the last ten."
    if evaluation and evaluation["best"]["loss"] is not None:
        best = evaluation["best"]
        text += (
            f" On {evaluation['rows']:,} rows that were not trained on, it was lowest after {best['step']:,} steps: "
            f"{best['loss']:.3f}; these are the weights after {evaluation['exported_step']:,} steps."
        )
    return [text]


def _adapters(
    adapters: Mapping[str, AdapterConfig], manifest: Mapping[str, Any] | None
) -> list[str]:
    """The table of adapters, if there are any."""
    if not adapters:
        return []
    globs = (manifest or {}).get("learning_rates", {})
    rows = ["| adapter | rank | alpha | trained here |", "|---|---:|---:|---|"]
    for name, adapter in adapters.items():
        trained = any(fnmatch.fnmatchcase(f"decoder.layers.0.x.lora.{name}.a", g) for g in globs)
        rows.append(
            f"| {name} | {adapter.rank} | {adapter.alpha:g} | {'yes' if trained else 'no'} |"
        )
    return ["\n".join(rows)]


def write(folder: Path, layout: str, repository: str | None = None) -> None:
    """Write the card of a fine-tuned model into its folder; a card that the user has changed is kept (`placed`)."""
    for name, text in placed(card(folder, layout, repository=repository), folder).items():
        write_whole(folder / name, text)


def _stage_row(name: str, manifest: Mapping[str, Any]) -> str:
    trained = dict.fromkeys(part for glob in manifest["learning_rates"] for part in part_of(glob))
    steps, tokens = manifest["steps"], manifest["counters"]["tokens"]
    return (
        f"| {name} | {', '.join(trained)} | {steps:,} | {tokens:,} | {', '.join(manifest['mix'])} |"
    )


def _measured(evaluated: Mapping[str, Any] | None, run: Mapping[str, Any] | None) -> str:
    texts = (evaluated["card"]["measured"] if evaluated else "", run["measured"] if run else "")
    return "\n\n".join(text for text in texts if text) or (
        "There are no results yet; `polyphi eval MODEL --suite all --data DIR` produces them."
    )


def _index(title: str, evaluated: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """The Hub's list of results: rows of the report on the public data, no others."""
    results = evaluated["card"]["results"] if evaluated else None
    return [{"name": title, "results": results}] if results else None


def _licences(run: Mapping[str, Any] | None, base: str | None) -> str:
    if run:
        rows = "\n".join(
            f"- {licence}: {rows:,} rows"
            for licence, rows in sorted(run["licences"].items(), key=lambda x: -x[1])
        )
        return (
            "polyphi's code is MIT-licensed. These weights were trained on data under the licences below; decide "
            "yourself whether a licence of data applies to the weights before you redistribute them.\n\n"
            + rows
        )
    if base in LICENCES:
        return (
            f"{base} is under the {LICENCES[base].upper()} licence. "
            "Your own training data keep their licence."
        )
    return (
        "The licence of the base weights is unknown to polyphi: add it here, and as `license:` in the header. Your own "
        "training data keep their licence."
    )

"""The model card that `polyphi export` writes: a README.md with the Hub's header, what was measured, how the model was
made, its limits and licences.

>>> card(Path("runs/nano/model"), "native", results=Path("runs/nano/benchmarks"))
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi import stages
from polyphi.checkpoints.names import LAYOUTS
from polyphi.checkpoints.read import read_config
from polyphi.eval.report import heldout as report
from polyphi.eval.report.paper import STATUSES, points
from polyphi.eval.report.tables import decimals, markdown
from polyphi.model.parts import parts
from polyphi.recipe import evaluation
from polyphi.recipe.graph import EXPORTS
from polyphi.recipe.report.drawing import part_of

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LICENCES = {
    "microsoft/Phi-4-mini-instruct": "mit",
    "microsoft/Phi-4-multimodal-instruct": "mit",
}
"""Of base models whose licence we know."""
LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "pt", "zh")
LAST = {name: stage for name, (stage, _) in EXPORTS.items()}
"""What a run's folders hold: the model after which stage."""
QUANTISED = {
    "int8": "8 bits (adapters and encoders in bfloat16)",
    "int4": "4 bits (adapters and encoders in bfloat16)",
    "int8-all": "8 bits",
    "int4-all": "4 bits (adapters and encoders in 8)",
}
NAMES = ("README.md", "README.polyphi.md")
"""Where a card goes: the second name where the first is taken by somebody's own."""
SIGNED = re.compile(r"\n<!-- polyphi export, ([0-9a-f]{64}) -->\n$")

LIMITS = """\
The technical report (section 6) names limits of its models; a smaller or further trained one has them at least as
much:

- Facts: a model of this size holds few of them, and makes up what it doesn't hold (who won which medal, say). Give it
  the text to answer from.
- Languages: English is best. Others are weaker, because the training data hold more code and less of them.
- Undesirable content: like any such model it can say what it shouldn't. Whoever builds on it needs measures of their
  own around it: system prompts, filters of what goes in and comes out, people who look.
- **No biometric categorisation.** It is not made, and not to be used, to sort people by their bodies, faces or voices
  in order to find out or guess their race, political opinions, trade union membership, religious or philosophical
  beliefs, sex life or sexual orientation.
"""


def card(
    folder: Path,
    layout: str,
    *,
    source: str | None = None,
    merged: str | None = None,
    results: Path | None = None,
    quant: str | None = None,
) -> str:
    """The card of what `export` makes of a checkpoint. `source` is what the user called it, `merged` the adapter that
    was folded in, `quant` what it is quantised to. Raises ValueError where `results` is no results folder, or another
    model's."""
    if layout not in LAYOUTS:
        raise ValueError(f"layouts are {', '.join(LAYOUTS)}; found {layout!r}")
    told = _results(results, folder) if results else None
    run, manifest = _run(folder), _manifest(folder)
    base = _base(source, manifest)
    title = (run or {}).get("title") or folder.name
    header = {
        "license": LICENCES.get(base or "", "other") if base or run else None,
        "license_name": "see-the-card" if run else None,
        "base_model": base,
        "base_model_relation": "quantized" if base and quant else None,
        "library_name": "polyphi" if quant else "transformers",
        "pipeline_tag": "text-generation" if layout == "mini" else "image-text-to-text",
        "language": LANGUAGES,
        "tags": ["polyphi", *(() if layout == "mini" else ("vision", "speech"))],
        "model-index": _index(title, told["rows"]) if told else None,
    }
    # JSON is YAML, and needs no library
    lines = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in header.items() if v]
    parts = [
        "---\n" + "\n".join(lines) + "\n---",
        f"# {title}",
        _what(folder, layout, base, quant),
        "## How it was made",
        _made(folder, run, manifest, base, merged, quant),
        "## What was measured",
        _measured(told, run),
        "## Limits",
        LIMITS.strip(),
        "## Licences",
        _licences(run, base),
    ]
    return "\n\n".join(parts) + "\n"


def placed(text: str, out: Path) -> dict[str, str]:
    """The files by name that a card makes in a folder: itself, signed, and a card of somebody's own that is there, as
    it is. A card of ours that nobody has changed since is replaced. Raises ValueError where both names are taken."""
    signed = f"{text}\n<!-- polyphi export, {_digest(text)} -->\n"
    kept: dict[str, str] = {}
    for name in NAMES:
        path = out / name
        if not path.exists() or _ours(found := path.read_text(encoding="utf-8", errors="replace")):
            return {**kept, name: signed}
        kept[name] = found
    raise ValueError(
        f"{out} has cards of your own under {' and '.join(NAMES)}, and nothing is written over them; move one away"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ours(found: str) -> bool:
    sign = SIGNED.search(found)
    return sign is not None and _digest(found[: sign.start()]) == sign[1]


def _results(results: Path, folder: Path) -> dict[str, Any]:
    if not (results / "results.json").exists():
        raise ValueError(
            f"--results {results}: expected the --out folder of `polyphi eval MODEL --suite ...`, with its results.json"
        )
    told = evaluation.saved_results(results)
    measured = json.loads((results / "model.json").read_text())["fingerprint"].split()
    fingerprint = measured[0] if measured else ""
    if re.fullmatch("[0-9a-f]{32}", fingerprint) and fingerprint != evaluation.fingerprint(folder):
        raise ValueError(
            f"--results {results} holds the results of another model, {told['model']}, not of {folder}"
        )
    return told


def _run(folder: Path) -> dict[str, Any] | None:
    """What is known of a run of the recipe that a checkpoint comes from: its stages and what they learned from."""
    root = folder.parent
    if not (root / "run.json").exists() or folder.name not in LAST:
        return None
    identity = json.loads((root / "run.json").read_text())
    names = [n for n in stages.ORDER if n in _lineage(LAST[folder.name])]
    read = {n: root / "stages" / n / "manifest.json" for n in names}
    made = {n: json.loads(path.read_text()) for n, path in read.items() if path.exists()}
    licences: dict[str, int] = {}
    for corpus in {c for manifest in made.values() for c in manifest["mix"]}:
        path = root / "data" / corpus / "train" / "manifest.json"
        told = json.loads(path.read_text())["licences"] if path.exists() else {}
        for licence, rows in told.items():
            licences[licence] = licences.get(licence, 0) + rows
    checks, told = (
        json.loads((root / name).read_text()) if (root / name).exists() else None
        for name in ("freeze.json", "report.json")
    )
    reasoning = folder.name == "reasoning"
    return {
        "title": f"polyphi {identity['size']}"
        + ("" if folder.name == "model" else f" {folder.name}"),
        "identity": identity,
        "stages": made,
        "licences": licences,
        "freeze": [c for c in checks or () if c["stage"] in names],
        "tasks": [
            task
            for task in (told or {}).get("tasks", ())
            if folder.name != "mini" and task["corpus"].startswith("reasoning") == reasoning
        ],
    }


def _lineage(name: str) -> set[str]:
    return {name}.union(*(_lineage(parent) for parent in stages.load(name).parents))


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Of a fine-tuned checkpoint: what its training noted (finetune.py)."""
    path = folder.parent / "manifest.json"
    found = json.loads(path.read_text()) if path.exists() else None
    return found if isinstance(found, dict) and "who_learns" in found else None


def _base(source: str | None, manifest: Mapping[str, Any] | None) -> str | None:
    """The Hub's name of the model that this one comes from, where it has one."""
    told = [*(manifest or {}).get("parents", ()), *([] if manifest else [source])]
    for name in (str(name).removeprefix("hf:") for name in told if name):
        if HUB_ID.fullmatch(name) and not Path(name).exists() and not name.startswith("copy of"):
            return name
    return None


def _what(folder: Path, layout: str, base: str | None, quant: str | None) -> str:
    reader = {
        "native": "the layout that transformers reads, with `vision-lora/` and `speech-lora/` beside it",
        "original": "Microsoft's layout of Phi-4-multimodal",
        "mini": "the language model alone, in the layout of Phi-4-mini",
    }[layout]
    if quant:
        alone = "the language model alone, " if layout == "mini" else ""
        reader = f"{alone}weights in {QUANTISED[quant]}, in a layout that polyphi reads"
    rows = parts(read_config(folder))
    table = ["| part | parameters |", "|---|---:|"]
    table += [
        f"| {part.name} | {part.parameters:,} |"
        for part in rows
        if part.parameters and (layout != "mini" or part.name == "language model")
    ]
    from_base = f" It comes from [{base}](https://huggingface.co/{base})." if base else ""
    return (
        f"A model of the Phi-4-Mini family: {reader}.{from_base} Written by polyphi, an open implementation of the "
        "Phi-4-Mini technical report.\n\n"
        + "\n".join(table)
        + '\n\n```\npolyphi chat FOLDER "How much is 3 plus 4?"\npolyphi serve FOLDER\n```'
    )


def _made(
    folder: Path,
    run: Mapping[str, Any] | None,
    manifest: Mapping[str, Any] | None,
    base: str | None,
    merged: str | None,
    quant: str | None,
) -> str:
    out = []
    if run:
        identity = run["identity"]
        out.append(
            f"From nothing, by `polyphi reproduce {identity['size']} --seed {identity['seed']}`: the report's recipe "
            f"at the size {identity['size']}, these {len(run['stages'])} stages of it."
        )
        rows = ["| stage | learned | steps | tokens | data |", "|---|---|---:|---:|---|"]
        rows += [_stage_row(name, made) for name, made in run["stages"].items()]
        out.append("\n".join(rows))
        same = sum(c["logits_sha256_before"] == c["logits_sha256_after"] for c in run["freeze"])
        if run["freeze"]:
            out.append(
                f"The language model stayed frozen while others learned: in {same} of {len(run['freeze'])} such stages "
                "its logits on fixed prompts were bit-identical before and after."
            )
    elif manifest:
        learned = ", ".join(f"`{glob}`" for glob in manifest["learn"])
        out.append(
            f"Trained further from {base or ', '.join(map(str, manifest['parents']))} in {manifest['steps']:,} steps: "
            f"{learned} learned, from {', '.join(manifest['mix'])}. Everything else kept its values: "
            f"{len(manifest['frozen'])} tensors have the same SHA-256 as before."
        )
    else:
        out.append(
            f"polyphi wrote it from {base or f'the checkpoint {folder.name}'} without training it."
        )
    if merged:
        out.append(f"The adapter `{merged}` was folded into the base weights.")
    if quant:
        out.append(
            f"Then it was quantised (`polyphi export --quant {quant}`): numbers measured before that are those of the "
            "whole weights."
        )
    return "\n\n".join(out)


def _stage_row(name: str, made: Mapping[str, Any]) -> str:
    learned = dict.fromkeys(part for glob in made["learn"] for part in part_of(glob))
    tokens = made["counters"]["tokens"]
    return f"| {name} | {', '.join(learned)} | {made['steps']:,} | {tokens:,} | {', '.join(made['mix'])} |"


def _measured(told: Mapping[str, Any] | None, run: Mapping[str, Any] | None) -> str:
    out = []
    if told and told["rows"]:
        found = {row["status"] for row in told["rows"]}
        out += [
            f"By `polyphi eval`, {told['date']}; *report* is the number of the report's own model in the same row. "
            "Scores are strict: an answer that doesn't parse is wrong.",
            "\n".join(f"- *{k}*: {v}." for k, v in STATUSES.items() if k in found),
            markdown(told["rows"]).strip(),
        ]
        if left := ", ".join(entry["title"] for entry in told["skipped"].values()):
            out.append(f"Left out, because what they need wasn't there: {left}.")
    if run and run["tasks"]:
        beats = sum(task["verdict"] == "beats" for task in run["tasks"])
        out += [
            f"On held-out data of the run {beats} of {len(run['tasks'])} tasks beat the best of their baselines: a "
            "constant answer, the question without its picture or clip, and with another one's.",
            report.markdown(run["tasks"]).strip(),
        ]
    return "\n\n".join(out) or (
        "Nothing was measured for this card. `polyphi eval MODEL --suite all --data DIR` measures it."
    )


def _index(title: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The Hub's list of results: rows of the report on the public data, no others."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": row["label"], "type": row["benchmark"]},
            "metrics": [
                {
                    "type": row["metric"],
                    "value": round(points(row["metric"], row["score"]), decimals(row)),
                    "name": f"{row['table']}, {row['label']}",
                }
            ],
        }
        for row in rows
        if row["table"] and row["status"] == "reproduced setting" and row["score"] is not None
    ]
    return [{"name": title, "results": results}] if results else None


def _licences(run: Mapping[str, Any] | None, base: str | None) -> str:
    if run:
        rows = "\n".join(
            f"- {licence}: {rows:,} rows"
            for licence, rows in sorted(run["licences"].items(), key=lambda x: -x[1])
        )
        return (
            "polyphi's code is MIT-licensed. These weights learned from data under the licences below; whether a "
            "licence of data reaches weights is for you to judge before you pass them on.\n\n"
            + rows
        )
    if base in LICENCES:
        return (
            f"{base} is under the {LICENCES[base].upper()} licence. "
            "Data of your own that it learned from keep theirs."
        )
    return (
        "polyphi doesn't know the licence of the weights that these come from: add it here, and as `license:` in the "
        "header. Data of your own that they learned from keep their own."
    )

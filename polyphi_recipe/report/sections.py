"""The report page as HTML, rendered from the report (`page.collect`) by the templates in this package.

>>> html = render(report, media)          # media: SHA-256 -> bytes, for the samples

`templates/page.html` is the page and `SECTIONS` names the template of each section. This module has the functions that
the templates call: numbers as text, and rows of tables that combine several of the report's values.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from polyphi.runtime.rendering import environment
from polyphi.train.report import curves
from polyphi.train.report.page import count, duration, inputs, render_page
from polyphi_eval.report import heldout as tables
from polyphi_eval.report import tables as eval_tables
from polyphi_recipe.report import drawing

Report = Mapping[str, Any]
SECTIONS = {
    "examples": "Examples",
    "core": "Core tasks",
    "beyond": "Other tasks",
    "samples": "More samples",
    "stages": "Stages",
    "losses": "Losses",
    "learned": "Trained parameters",
    "frozen": "Frozen parameters",
    "claims": "Claims",
    "benchmarks": "Benchmarks",
    "size": "Size",
    "data": "Data",
    "again": "Reproduce",
}
"""Each section's template (and id), in the page's order, with its title in the navigation."""
MAX_OPEN_ROWS = 10
"""Most rows of other tasks that are shown without folding."""
MAX_TEXT = 240
"""Characters of an example's text in Markdown."""

# Sentences of the page that the Markdown has too.
ABOUT_EXAMPLES = "Held-out samples of core tasks, drawn at random before the answers were known. ✓ correct, ✗ wrong."
ABOUT_CORE = (
    "Results on scans, images, templates and speakers that were not used in training. Each score is compared with the "
    "best of its baselines: the best constant answer; the same model without the image or audio; with images or audio "
    "exchanged between questions; and without the adapter, with the same encoder and projector. A task beats its "
    "baselines when the 95 % interval of its lead over the best one (paired bootstrap) is above zero. The goals are "
    "set by this project, not by the report."
)
ABOUT_BEYOND = "Most of these tasks are intended for larger sizes than this one."
CHECKED = (
    "SHA-256 of every frozen tensor before and after its stage, and of the fp32 logits of fixed text prompts before "
    "and after each stage that adds a modality."
)
CLAIMED = (
    "Claims of the technical report, tested at the size of this run, which is smaller than the report's. A claim holds "
    "where the 95 % interval (paired bootstrap over items and seeds) is above the claimed value, doesn't hold where it "
    "is below, and is undecided otherwise. “Detectable” is the smallest effect that this experiment detects in four of "
    "five cases."
)
SYNTHETIC = (
    "The benchmarks of the report's tables that need no judge, prompted and scored as on their public data, but with "
    "synthetic samples in the same format. They test that the evaluation works, not the abilities of the model: do not "
    "compare these scores with the report's."
)


def render(report: Report, media: Mapping[str, bytes]) -> str:
    """The page as HTML, without scripts and external requests, in light and dark colours. Sections without content are
    omitted."""
    return render_page(
        TEMPLATES,
        "page.html",
        SECTIONS,
        report,
        media,
        title=report["recipe"] or report["size"],
        intro=intro(report),
    )


# ---------------------------------------------------------------------- numbers as text


def memory(n: float | None) -> str:
    """Bytes as GB (10^9 bytes)."""
    return f"{n / 1e9:.1f} GB" if n else "–"


def losses(stage: Report) -> str:
    """The loss at the beginning and end of a stage: "8.3 → 2.1"."""
    return f"{stage['loss_first']:.3g} → {stage['loss_last']:.3g}" if stage["curve"] else "–"


def speed(stage: Report) -> str:
    """A stage's training throughput: "1.2k tokens/s, 30 s of audio/s"."""
    rates = stage["speed"]
    texts = [
        f"{count(round(rates[k]))} {k}/s" for k in ("tokens", "samples", "crops") if k in rates
    ]
    if frames := rates.get("frames"):
        texts.append(f"{frames / 100:.0f} s of audio/s")
    return ", ".join(texts) or "–"


def waste(stage: Report) -> str:
    """Shares of padding: of the rows in attention, and of the crops' patches."""
    padded, blank = stage["waste"]["padding"], stage["waste"]["blank"]
    if padded is None:
        return "–"
    return f"{padded:.1%}" + (f", patches {blank:.1%}" if blank else "")


def dropped(split: Report) -> str:
    """Numbers of samples that the steps of a split dropped: "dropped: 33 Language, 5 Duplicates; of 4,600"; "" for
    none."""
    steps = [f"{n:,} {step.split('-')[0]}" for step, n in split.get("dropped", {}).items()]
    return f"dropped: {', '.join(steps)}; of {split['read']:,}" if steps else ""


def warnings(report: Report) -> list[str]:
    """The warnings about splits and sources that lost most of their samples."""
    splits = (split for corpus in report["data"]["corpora"].values() for split in corpus.values())
    return [split["warning"] for split in splits if split["warning"]]


def effect(result: Report) -> tuple[str, str, str, str]:
    """An effect's value, its interval, the value that it exceeds by the claim, and the smallest detectable one."""
    unit = f" {result['unit']}".rstrip()
    value, low, high, above, smallest = (
        f"{result[key]:.3g}" for key in ("value", "low", "high", "above", "smallest")
    )
    return value + unit, f"{low} to {high}", above, smallest


def precision(report: Report) -> str:
    """The precision of training and its reason: "fp32: this CPU has no bfloat16 instructions"."""
    choice = report["precision"]
    return f"{choice['precision']}: {choice['reason']}" if choice else "–"


def code(text: str) -> str:
    """A text of a sample as a line of code in Markdown, cut after `MAX_TEXT` characters."""
    line = " ".join(text.replace("`", "'").split()) or "–"
    return f"`{line[:MAX_TEXT]}{'…' if len(line) > MAX_TEXT else ''}`"


def intro(report: Report) -> str:
    """One or two sentences that describe the model of the run."""
    sentences = (
        "A language model is trained and then frozen; encoders, projectors and a mixture of LoRAs add vision and "
        "speech."
    )
    if report["parts"]:
        whole = report["parts"][-1]
        own, paper = count(whole["parameters"]), count(whole["report"])
        sentences += f" It has {own} parameters; the report's model has {paper}."
    return sentences


def headline(report: Report) -> list[tuple[str, str]]:
    """The key numbers of the run, each with its label."""
    s = report["summary"]
    numbers = [(f"{s['stages_done']} of {s['stages']}", "stages")]
    if s["frozen_checks"]:
        proof = f"{s['frozen_checks_equal']} of {s['frozen_checks']}"
        numbers.append((proof, "stages with bit-identical frozen text logits"))
    if s["tasks"]:
        numbers.append((f"{s['core_beats']} of {s['core']}", "core tasks beat their baselines"))
    if s["seconds"]:
        numbers.append((duration(s["seconds"]), f"on {report['environment']['cores']} cores"))
    if report["precision"]:
        numbers.append((report["precision"]["precision"], "training precision"))
    return numbers


# ---------------------------------------------------------------------- rows of tables


def by_modality(rows: Iterable[Report]) -> list[dict[str, Any]]:
    """The rows of tasks grouped by modality: modality, title, a note on how many beat their baselines, rows."""
    rows, groups = list(rows), []
    for modality, title in tables.MODALITIES.items():
        if members := [r for r in rows if r["modality"] == modality]:
            beats = sum(r["verdict"] == "beats" for r in members)
            note = f"{beats} of {len(members)} beat their best baseline"
            if goals := [tables.reaches_goal(r) for r in members if r["goal"] is not None]:
                note += f", {sum(goals)} of {len(goals)} reach their goal"
            if lead := tables.mean_adapter_lead(members):
                note += f"; {lead[0]} points {lead[1]} by the adapter in the mean"
            group = {"modality": modality, "title": title, "note": note}
            groups.append({**group, "rows": [task_row(r) for r in members]})
    return groups


def task_row(r: Report) -> dict[str, Any]:
    """A task's result as the texts of its row; None for a part that the result doesn't have."""
    metric = r["metric"]
    unit = 100 if metric == "bleu" else 1
    ticks = [(k.removesuffix("_clip"), m["score"] / unit) for k, m in r["baselines"].items()]
    goal = baseline = lead = None
    if texts := tables.goal(r):
        ticks.append(("goal", r["goal"] / unit))
        goal = {"value": texts[0], "text": texts[1], "reached": tables.reaches_goal(r)}
    if r["best"]:
        score, name = tables.best(r)
        answer = r["baselines"][r["best"]]["answer"]
        baseline = {"score": score, "name": name, "answer": answer}
        lead = tables.lead(r)
    return {
        "title": r["title"],
        "note": r["note"],
        "languages": [
            f"{language} {tables.number(metric, value['score'])} (n {value['n']:.0f})"
            for language, value in r["languages"].items()
        ],
        "score": tables.number(metric, r["score"]),
        "no_adapter": tables.no_adapter(r),
        "metric": None if metric == "accuracy" else tables.METRICS[metric],
        "interval": tables.interval(metric, r["low"], r["high"]),
        "plot": drawing.plot(r["low"] / unit, r["score"] / unit, r["high"] / unit, ticks),
        "n": r["n"],
        "baseline": baseline,
        "lead": lead,
        "beats": r["verdict"] == "beats",
        "goal": goal,
    }


def frozen_rows(report: Report) -> list[tuple[Report, Report | None]]:
    """Stages that have frozen tensors or a check of the text logits, each with that check."""
    checks = {e["stage"]: e for e in report["freeze"]}
    rows = [(s, checks.get(s["name"])) for s in report["stages"]]
    return [(s, check) for s, check in rows if s["frozen_tensors"] or check]


def benchmark_rows(report: Report) -> list[dict[str, Any]]:
    """The run's scores on the benchmarks of the report's tables, in the tables' order."""
    return [
        {
            "label": label,
            "table": table.name,
            "score": eval_tables.as_text(row, row["score"], eval_tables.decimals(row)),
            "n": row["n"],
            "benchmark": row["benchmark"] or "average",
        }
        for table, lines in eval_tables.by_table(report["benchmarks"]["rows"])
        for label, row in lines
        if row and row["table"]
    ]


def step_seconds(report: Report) -> dict[str, float]:
    """The seconds of each step of the run, without their total."""
    seconds = report["timings"].get("seconds", {})
    return {step: time for step, time in seconds.items() if step != "total"}


TEMPLATES = environment("polyphi_recipe.report", "polyphi.train.report")
TEMPLATES.filters.update(
    count=count,
    dropped=dropped,
    duration=duration,
    effect=effect,
    inputs=inputs,
    losses=losses,
    memory=memory,
    precision=precision,
    speed=speed,
    warnings=warnings,
    waste=waste,
    code=code,
)
TEMPLATES.globals.update(
    ABOUT_BEYOND=ABOUT_BEYOND,
    ABOUT_CORE=ABOUT_CORE,
    ABOUT_EXAMPLES=ABOUT_EXAMPLES,
    CHECKED=CHECKED,
    CLAIMED=CLAIMED,
    MODALITIES=tables.MODALITIES,
    MAX_OPEN_ROWS=MAX_OPEN_ROWS,
    SYNTHETIC=SYNTHETIC,
    benchmark_rows=benchmark_rows,
    by_modality=by_modality,
    curves=curves,
    drawing=drawing,
    frozen_rows=frozen_rows,
    headline=headline,
    intro=intro,
    tasks_markdown=tables.markdown,
    benchmarks_markdown=eval_tables.markdown,
    step_seconds=step_seconds,
)

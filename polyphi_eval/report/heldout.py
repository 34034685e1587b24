"""Results of held-out tasks as text: one line each, or a Markdown table.

>>> line(result)
'digits                      97.3 %  [93.3, 99.0]  n=150  best baseline 10.0 % (majority)   beats'
"""

from collections.abc import Mapping, Sequence
from typing import Any

from polyphi.runtime.rendering import environment
from polyphi_eval.baselines import Lead, TaskResult
from polyphi_eval.statistics import combined, direction

MODALITIES = {
    "text": "Text",
    "vision": "Vision",
    "speech": "Speech and sound",
    "joint": "Vision and speech together",
    "safety": "Safety",
}
METRICS = {
    "accuracy": "accuracy",
    "balanced": "balanced accuracy",
    "wer": "WER ↓",
    "cer": "CER ↓",
    "bleu": "BLEU",
}
CONDITIONS = {
    "majority": "majority answer",
    "without": "without the image or audio",
    "shuffled": "shuffled images or audio",
    "without_clip": "without the audio",
    "shuffled_clip": "shuffled audio",
    "no_adapter": "without the adapter",
}


def number(metric: str, value: float, *, sign: bool = False) -> str:
    """Format a score: per cent for shares and error rates, BLEU as it is."""
    text = format(value if metric == "bleu" else 100 * value, "+.1f" if sign else ".1f")
    return text if metric == "bleu" else f"{text} %"


def interval(metric: str, low: float, high: float) -> str:
    scale = 1 if metric == "bleu" else 100
    return f"[{scale * low:.1f}, {scale * high:.1f}]"


def reaches_goal(result: Mapping[str, Any]) -> bool:
    """Whether the score of a row that has a goal reaches it."""
    sign = direction(result["metric"])
    return bool(sign * result["score"] >= sign * result["goal"])


def goal(result: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the goal for a row's score, formatted, and whether it is reached: ("90 %", "not reached")."""
    if (value := result["goal"]) is None:
        return None
    text = f"{value:g}" if result["metric"] == "bleu" else f"{100 * value:g} %"
    return text, "reached" if reaches_goal(result) else "not reached"


def best(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return score and name of a row's best baseline: ("10.0 %", "majority answer")."""
    score = result["baselines"][result["best"]]["score"]
    return number(result["metric"], score), CONDITIONS[result["best"]]


def lead(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return a row's lead over its best baseline, and its interval."""
    metric = result["metric"]
    return (
        number(metric, result["margin"], sign=True),
        interval(metric, result["margin_low"], result["margin_high"]),
    )


def no_adapter(result: Mapping[str, Any]) -> str | None:
    """Return a row's score without the adapter; None for text."""
    baseline = result["baselines"].get("no_adapter")
    return baseline and number(result["metric"], baseline["score"])


def mean_adapter_lead(results: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return the mean lead over the model without its adapter of the rows that have one, in points, and its interval
    (as `statistics.measure_mean`). Error rates above 100 % count as 100 %, which an empty answer has."""
    leads = []
    for r in results:
        if lead := r["adapter_lead"]:
            excess = 0.0
            if direction(r["metric"]) < 0:
                errors = r["score"], r["baselines"]["no_adapter"]["score"]
                excess = errors[1] - errors[0] - (min(1.0, errors[1]) - min(1.0, errors[0]))
            unit = 1 if r["metric"] == "bleu" else 100
            leads.append([unit * (lead[key] - excess) for key in Lead.__annotations__])
    if not leads:
        return None
    mean, low, high = combined(leads)
    return f"{mean:+.1f}", f"[{low:.1f}, {high:.1f}]"


TEMPLATES = environment("polyphi_eval.report")
TEMPLATES.globals.update(
    METRICS=METRICS,
    number=number,
    interval=interval,
    best=best,
    lead=lead,
    no_adapter=no_adapter,
    goal=goal,
)


def line(result: TaskResult | Mapping[str, Any]) -> str:
    """Return one line of plain text for a terminal."""
    r = result.as_dict() if isinstance(result, TaskResult) else result
    if not r["n"]:
        return f"{r['task']:<26} no held-out samples"
    metric = r["metric"]
    text = f"{r['task']:<26} {number(metric, r['score']):>8}  {interval(metric, r['low'], r['high']):<15} n={r['n']:<4}"
    if r["best"]:
        score, name = best(r)
        text += f" best baseline {score:>8} ({name})  {r['verdict']}"
    if texts := goal(r):
        text += f"  goal {', '.join(texts)}"
    return text


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table per modality."""
    tables = [
        (title, rows)
        for modality, title in MODALITIES.items()
        if (rows := [r for r in results if r["modality"] == modality])
    ]
    return TEMPLATES.get_template("heldout.md").render(tables=tables)

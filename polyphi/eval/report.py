"""Results as people read them: one line each, or a table in Markdown.

>>> line(result)
'digits                      97.3 %  [93.3, 99.0]  n=150  best baseline 10.0 % (majority)   beats'
"""

from collections.abc import Mapping, Sequence
from typing import Any

from polyphi.eval.run import Result, direction

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
    "without": "without the picture or clip",
    "shuffled": "shuffled pictures or clips",
    "without_clip": "without the clip",
    "shuffled_clip": "shuffled clips",
}


def number(metric: str, value: float, *, sign: bool = False) -> str:
    """A score in the unit that people quote: per cent for shares and error rates, BLEU as it is."""
    text = format(value if metric == "bleu" else 100 * value, "+.1f" if sign else ".1f")
    return text if metric == "bleu" else f"{text} %"


def interval(metric: str, low: float, high: float) -> str:
    scale = 1 if metric == "bleu" else 100
    return f"[{scale * low:.1f}, {scale * high:.1f}]"


def line(result: Result | Mapping[str, Any]) -> str:
    """One line of plain text for a terminal."""
    r = result.as_dict() if isinstance(result, Result) else result
    if not r["n"]:
        return f"{r['task']:<26} no held-out samples"
    metric = r["metric"]
    text = f"{r['task']:<26} {number(metric, r['score']):>8}  {interval(metric, r['low'], r['high']):<15} n={r['n']:<4}"
    if r["best"]:
        best = number(metric, r["baselines"][r["best"]]["score"])
        text += f" best baseline {best:>8} ({CONDITIONS[r['best']]})  {r['verdict']}"
    return text


def column(result: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A baseline's measure for a table of three baselines: where a question has a picture and a clip, the stronger
    of the two ways of taking one away (or swapping it)."""
    found = [result["baselines"][k] for k in (name, f"{name}_clip") if k in result["baselines"]]
    return max(found, key=lambda m: direction(result["metric"]) * m["score"], default=None)


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """A table per modality."""
    out = []
    for modality, title in MODALITIES.items():
        rows = [r for r in results if r["modality"] == modality]
        if not rows:
            continue
        out.append(f"### {title}\n")
        out.append(
            "| task | metric | score | 95 % interval | n | majority | without | shuffled | lead over the best | |"
        )
        out.append("|---|---|---:|---|---:|---:|---:|---:|---|---|")
        for r in rows:
            m = r["metric"]
            columns = [column(r, name) for name in ("majority", "without", "shuffled")]
            cells = ["–" if c is None else number(m, c["score"]) for c in columns]
            lead = (
                f"{number(m, r['margin'], sign=True)} {interval(m, r['margin_low'], r['margin_high'])}"
                if r["best"]
                else "–"
            )
            verdict = "**beats**" if r["verdict"] == "beats" else r["verdict"]
            own = [number(m, r["score"]), interval(m, r["low"], r["high"]), str(r["n"])]
            out.append(f"| {' | '.join([r['title'], METRICS[m], *own, *cells, lead, verdict])} |")
        out.append("")
    return "\n".join(out)

"""What a model card shows of an evaluation. `polyphi export --results` copies it (checkpoints/model_card.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

from polyphi_eval.report import heldout
from polyphi_eval.report.paper import STATUSES, points
from polyphi_eval.report.tables import decimals, markdown


def of_benchmarks(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `measured`, the Markdown of a results folder's `results.json`, and `results`, its rows of the report on
    the public data as entries of the Hub's model index."""
    return {"measured": _tables(content), "results": _index(content["rows"])}


def of_heldout(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown of the results of held-out tasks; "" for none."""
    if not tasks:
        return ""
    beats = sum(task["verdict"] == "beats" for task in tasks)
    return (
        f"On held-out data of the run {beats} of {len(tasks)} tasks beat the best of their baselines: a constant "
        "answer, the question without its image or audio, and the question with that of another sample.\n\n"
        + heldout.markdown(tasks).strip()
    )


def _tables(content: Mapping[str, Any]) -> str:
    if not content["rows"]:
        return ""
    statuses = {row["status"] for row in content["rows"]}
    paragraphs = [
        f"Results of `polyphi eval`, {content['date']}; *report* is the score of the report's model in the same "
        "row. Scores are strict: an answer that can't be parsed is wrong.",
        "\n".join(f"- *{k}*: {v}." for k, v in STATUSES.items() if k in statuses),
        markdown(content["rows"]).strip(),
    ]
    if skipped := ", ".join(entry["title"] for entry in content["skipped"].values()):
        paragraphs.append(f"Skipped, because their data or tools were missing: {skipped}.")
    return "\n\n".join(paragraphs)


def _index(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
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

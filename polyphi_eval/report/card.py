"""The part of a model card that shows an evaluation. `polyphi export --results` copies it (hub/model_card.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

from polyphi_eval.report import heldout
from polyphi_eval.report.paper import STATUSES, points
from polyphi_eval.report.tables import TEMPLATES, decimals, markdown


def of_benchmarks(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `measured`, the Markdown of a results folder's `results.json`, and `results`, its rows of the report on
    the public data as entries of the Hub's model index."""
    return {"measured": _tables(content), "results": _index(content["rows"])}


def of_heldout(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown of the results of held-out tasks; "" for none."""
    if not tasks:
        return ""
    beats = sum(task["verdict"] == "beats" for task in tasks)
    return TEMPLATES.get_template("card_heldout.md").render(
        beats=beats, count=len(tasks), tables=heldout.markdown(tasks).strip()
    )


def _tables(content: Mapping[str, Any]) -> str:
    if not content["rows"]:
        return ""
    used = {row["status"] for row in content["rows"]}
    text = TEMPLATES.get_template("card_benchmarks.md").render(
        date=content["date"],
        statuses={status: text for status, text in STATUSES.items() if status in used},
        tables=markdown(content["rows"]).strip(),
        skipped=content["skipped"].values(),
    )
    return text.strip()


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

"""All suites, end to end, from recorded answers."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi_eval import evaluation
from polyphi_eval.benchmark import benchmarks
from polyphi_eval.cache import as_text
from polyphi_eval.eval_options import EvalOptions


class Says:
    """A model whose answers depend on the prompt; some are right."""

    def generate(self, messages: Sequence[Message], **_: Any) -> Completion:
        text = as_text(messages)
        kinds = ("A", "yes", "42", "[[7]]", '{"score": 3}', f"{len(text)} letters: {text[:40]}")
        return Completion(kinds[zlib.crc32(text.encode(errors="replace")) % len(kinds)], (1, 2))

    def generate_many(self, conversations: Sequence[Any], **_: Any) -> list[Completion]:
        return [self.generate(c) for c in conversations]


@pytest.mark.long
def test_recorded_answers_drive_every_suite_to_the_same_rows(tmp_path: Path) -> None:
    """All benchmarks with their judge, from synthetic data to the page, then again from recorded answers alone."""
    options = EvalOptions(limit=1, judges=("self",))
    first = evaluation.EvaluatedModel(Says(), "says", "f")  # type: ignore[arg-type]
    rows = evaluation.measure(first, ("all",), tmp_path / "first", data=None, options=options)
    second = evaluation.evaluated_model(str(tmp_path / "first"))
    again = evaluation.measure(second, ("all",), tmp_path / "second", data=None, options=options)
    assert {row.benchmark for row in rows} == {b.name for b in benchmarks()}
    assert {row.table for row in rows} - {""} >= {f"Table {n}" for n in (1, 2, *range(4, 16))}

    def comparable(rows: Sequence[Any]) -> list[Any]:
        return [json.dumps(replace(row, rtfx=None).as_dict()) for row in rows]

    assert comparable(again) == comparable(rows)
    assert comparable(evaluation.rescored(tmp_path / "second")) == comparable(rows)
    pages = [(tmp_path / name / "report.html").read_text() for name in ("first", "second")]
    assert len(pages[0]) > 50_000 and "Table 15" in pages[0]

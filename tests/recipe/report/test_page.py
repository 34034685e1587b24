"""The report page, from a synthetic run folder."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from polyphi.data import shards
from polyphi_eval import baselines, scorers
from polyphi_eval.heldout import CORE, GOALS
from polyphi_eval.heldout import task as held_out_task
from polyphi_eval.report import heldout
from polyphi_eval.score import Measured
from polyphi_recipe.graph.from_file import stages_of_run
from polyphi_recipe.report import page, sections
from tests.fixtures.made_run import Model, make_run, sample


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = make_run(tmp_path_factory.mktemp("run"), n=24, steps=30)
    assert page.write(out, stages_of_run(out)) == out / "report.html"
    return out


def test_the_page_is_self_contained(run: Path) -> None:
    text = (run / "report.html").read_text()
    assert len(text) < 5_000_000
    assert (
        not re.search(r"(src|href)=\"(?!data:|#)", text)
        and "url(http" not in text
        and "<script" not in text
    )
    assert "What is it, number" in text and "<b>&<" not in text and "&lt;b&gt;&amp;" in text
    assert "$" not in re.sub(r"base64,[^\"]+", "", text)


def test_examples_come_first_then_the_core_then_the_rest(run: Path) -> None:
    page_html, text = ((run / f"report.{kind}").read_text() for kind in ("html", "md"))
    ids = re.findall(r'<section id="(\w+)"', page_html)
    assert ids[:4] == ["examples", "core", "beyond", "samples"]
    assert {"stages", "losses", "learned", "frozen", "data", "again"} == set(ids[4:])
    report = json.loads((run / "report.json").read_text())
    content = dict(re.findall(r'(?s)<section id="(\w+)">(.*?)</section>', page_html))
    assert content["examples"].count("card sample") == len(report["examples"]) == 18
    for row in report["tasks"]:
        assert row["core"] == (row["task"] in {task.name for task in CORE})
        assert f"<td>{row['title']}<" in content["core" if row["core"] else "beyond"]
    # As many rows in Markdown, the core's before all others.
    offsets = {row["task"]: text.index(f"\n| {row['title']} |") for row in report["tasks"]}
    last = max(offsets[row["task"]] for row in report["tasks"] if row["core"])
    assert all(offsets[row["task"]] > last for row in report["tasks"] if not row["core"])
    assert text.index(report["examples"][0]["title"]) < min(offsets.values())


def test_goals_are_shown_with_the_scores(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert {row["task"]: row["goal"] for row in report["tasks"]} == {
        row["task"]: GOALS.get(row["task"]) for row in report["tasks"]
    }
    page_html, text = ((run / f"report.{kind}").read_text() for kind in ("html", "md"))
    rows = {row["task"]: row for row in report["tasks"]}
    with_goal = sum(row["goal"] is not None for row in rows.values())
    assert page_html.count('<i class="tick goal" style="left:') == with_goal > 0
    assert rows["digit"]["score"] < rows["digit"]["goal"]
    for task, goal in (("digit", "90 %"), ("asr_digits", "8 %"), ("ast_direct", "30")):
        assert f"goal {goal}<" in page_html
        assert re.search(rf"\| {rows[task]['title']} \|.*\| {goal}, ", text)


def test_the_score_without_the_adapter_is_beside_each_score(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    rows = [row for row in report["tasks"] if "no_adapter" in row["baselines"]]
    assert {row["modality"] for row in rows} == {"vision", "speech", "joint"}
    page_html, text = ((run / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page_html.count('<i class="tick no_adapter" style="left:') == len(rows) > 5
    for row in rows:
        without = heldout.no_adapter(row)
        assert without and re.search(rf"\| {row['title']} \|.*\| {without} \|", text)
        assert row["adapter_lead"]["low"] <= row["adapter_lead"]["value"]
    assert "by the adapter in the mean" in page_html


def test_tags_are_closed(run: Path) -> None:
    class Check(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "img", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: Any) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    check = Check()
    check.feed((run / "report.html").read_text())
    assert not check.open


def test_every_number_is_in_the_json(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert len(report["stages"]) == 16 and report["summary"]["stages_done"] == 16
    assert report["tasks"] == baselines.rescore(run / "eval")
    beats = [r["core"] for r in report["tasks"] if r["verdict"] == "beats"]
    assert report["summary"]["beats"] == len(beats) > sum(beats) > 0
    assert report["summary"]["core_beats"] == sum(beats) and report["summary"]["core"] == len(CORE)
    assert report["summary"]["frozen_checks"] == report["summary"]["frozen_checks_equal"] == 9
    media = {m["sha256"]: b"x" for e in report["examples"] + report["gallery"] for m in e["media"]}
    # The pages are functions of the JSON (and the media) alone.
    assert page.render_markdown(report) == (run / "report.md").read_text()
    assert report["examples"][0]["title"] in page.render(report, media)


def test_the_page_says_what_each_step_dropped(tmp_path: Path) -> None:
    sample = shards.document("a", "text", "here", "MIT")
    shards.write(tmp_path / "part", [sample], pipeline="p")
    history = {"read": 1234, "dropped": {"Rules": 1200, "Duplicates-0": 33}}
    shards.join(tmp_path / "data" / "pages" / "train", [tmp_path / "part"], history)
    dropped = {
        "id": "b",
        "reason": "short <",
        "text": "Ruf an: +49 30 901820.",
        "source": "here",
        "lineage": [{"step": "language", "found": "de", "score": 0.9}],
    }
    folder = tmp_path / "data/pages/.made/p/train/dropped/Rules"
    folder.mkdir(parents=True)
    (folder / "00000.jsonl").write_text(json.dumps(dropped) + "\n")
    (tmp_path / "run.json").write_text('{"size": "micro", "seed": 3}')
    page_html, text = (
        page.write(tmp_path, stages_of_run(tmp_path)).read_text(),
        (tmp_path / "report.md").read_text(),
    )
    for content in (html.unescape(page_html), text):
        assert "dropped: 1,200 Rules, 33 Duplicates; of 1,234" in content
        assert content.count("b: short <: Ruf an: [PHONE].") == 2  # below its step, and the warning
        assert "of 1,234 samples 1,233 were dropped" in content
    data = json.loads((tmp_path / "report.json").read_text())["data"]["corpora"]
    assert data["pages"]["train"]["dropped"] == history["dropped"]


def test_the_page_of_a_recipe_file_is_about_its_run(tmp_path: Path) -> None:
    """Its command, its parts, and its corpora: their rows are the examples, and their tasks are counted."""
    run = make_run(tmp_path / "run", n=4, steps=3)
    task = held_out_task(
        "own_photos", "Held-out rows of photos", "vision", "photos", scorers.exact, {}, "accuracy"
    )
    rows = [replace(sample(task, i), source="photos.jsonl", licence="") for i in range(4)]
    baselines.evaluate(Model(task, rows, 0.0), task, rows, run / "eval")
    shards.write(run / "data/photos/test", rows, pipeline="p")
    identity = {"size": "micro", "seed": 7, "recipe": "lab"}
    (run / "run.json").write_text(json.dumps(identity))
    recipe = {"size": "micro", "parts": {"decoder": "models/mine"}}
    record = {"file": "lab.toml", "order": ["vision_1_align"], "generated": [], "recipe": recipe}
    (run / "recipe.json").write_text(json.dumps(record))
    part = {"source": "models/mine", "repository": "", "revision": ""}
    (run / "parts.json").write_text(json.dumps({"decoder": part}))
    page_html, text = (
        page.write(run, stages_of_run(run)).read_text(),
        (run / "report.md").read_text(),
    )
    report = json.loads((run / "report.json").read_text())
    assert {entry["source"] for entry in report["examples"]} == {"photos.jsonl"}
    assert all(entry["media"] for entry in report["examples"])
    for content in (page_html, text):
        assert "polyphi reproduce lab.toml --out DIR --seed 7" in content
        assert "reproduce micro" not in content and "our own renderings" not in content
        assert f"of {len(CORE)}" not in content and "decoder (a checkpoint named mine)" in content
    assert "**0 of 1** tasks" in text and "**1 of 1** stages" in text


def test_a_recipe_file_without_sources_has_the_tasks_of_generated_rows(run: Path) -> None:
    report = page.collect(run, stages_of_run(run))[0] | {"recipe": "lab"}
    summary = report["summary"]
    beats = f"{summary['beats']} of {summary['tasks']}"
    assert summary["tasks"] and (beats, "tasks beat their baselines") in sections.headline(report)


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"size": "micro", "seed": 3}')
    for text in (
        page.write(tmp_path, stages_of_run(tmp_path)).read_text(),
        (tmp_path / "report.md").read_text(),
    ):
        assert "0 of 16" in text


def test_the_reports_benchmarks_are_shown_with_their_explanation(tmp_path: Path) -> None:
    row = Measured(
        "Table 1", "ChartQA (test)", "chartqa", "accuracy", 2, 0.5, 0.1, 0.9, "substitute data"
    )
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results.json").write_text(json.dumps({"rows": [row.as_dict()]}))
    (tmp_path / "run.json").write_text('{"size": "micro", "seed": 3}')
    page_html, text = (
        page.write(tmp_path, stages_of_run(tmp_path)).read_text(),
        (tmp_path / "report.md").read_text(),
    )
    for content in (html.unescape(page_html), text):
        assert "ChartQA (test)" in content and sections.SYNTHETIC in content
    assert 'href="benchmarks/report.html"' in page_html
    assert json.loads((tmp_path / "report.json").read_text())["benchmarks"]["rows"][0]["n"] == 2

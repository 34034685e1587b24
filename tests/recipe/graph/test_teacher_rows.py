"""Teachers of a recipe file: what they write enters a built-in corpus; budgets, resuming, endpoints that fail."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from polyphi import cli
from polyphi.data.shards import Sample, Shards, row_hash, to_row
from polyphi_eval.services.endpoint import Endpoint
from polyphi_eval.services.response_cache import whole_lines
from polyphi_recipe.corpora import cards
from polyphi_recipe.corpora.lookup import find_corpus
from polyphi_recipe.graph import find, teacher_rows
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.pipeline import corpus
from polyphi_recipe.stages import sizes
from polyphi_recipe.syntheses.synthesis_step import MAX_REFUSED
from tests.fixtures.processes import ROOT
from tests.scripted_teacher import ScriptedTeacher

NAME = "reasoning_sft"


def recipe_file(folder: Path, address: str, *keys: str) -> Path:
    file = folder / "lab.toml"
    lines = ['size = "micro"', "[teachers]", f'text = "{address}#phi-4"', *keys]
    file.write_text("\n".join(lines))
    return file


def build(folder: Path, address: str, *keys: str) -> str:
    """Build the corpus in `folder/run`; returns what the run reports."""
    run, lines = Run(recipe_file(folder, address, *keys), folder / "run"), list[str]()
    run.folder.report = run.folder.report_plain = lines.append  # type: ignore[method-assign]
    run.build(NAME)
    return "\n".join(lines)


def rows(folder: Path, split: str = "train") -> list[Sample]:
    return list(Shards(folder / "run" / "data" / NAME / split))


def hashes(folder: Path, split: str = "train") -> list[str]:
    return [row_hash(to_row(sample)) for sample in rows(folder, split)]


def stored(folder: Path) -> int:
    return len(list(whole_lines(folder / "run" / "teachers" / NAME / "answers" / "answers.jsonl")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """(a folder with the corpus, what the run reported, the number of requests)."""
    folder = tmp_path_factory.mktemp("finished")
    with ScriptedTeacher() as teacher:
        text = build(folder, teacher.where, "concurrency = 2")
        return folder, text, len(teacher.requests)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Endpoints that try twice and don't wait in between."""

    def open_(teacher: teacher_rows.Teacher, concurrency: int) -> Endpoint:
        quick = partial(Endpoint.at, attempts=2, sleep=lambda seconds: None)
        return quick(teacher.address, seconds=teacher.seconds, concurrency=concurrency)

    monkeypatch.setattr(teacher_rows, "_open", open_)
    yield


def test_rows_of_a_teacher_enter_the_corpus(finished: tuple[Path, str, int]) -> None:
    folder, text, requests = finished
    written = [s for s in rows(folder) if "lineage" in s.meta and "teacher" in s.meta["lineage"][0]]
    steps = {sample.meta["lineage"][0]["step"] for sample in written}
    assert steps == {"reasoning_problem", "math_reasoning"} and len(written) < len(rows(folder))
    assert not [s for s in rows(folder, "test") if "phi-4" in s.source]
    assert f"{requests} requests, 0 of them answered by an earlier run" in text
    assert f"({len(written)} are in the corpus)" in text and stored(folder) == requests


def test_the_card_and_the_page_say_what_was_refused_and_why(
    finished: tuple[Path, str, int],
) -> None:
    folder = finished[0]
    card = cards.card(folder / "run" / "data" / NAME)
    assert "Teacher (text phi-4): total" in card and "reasoning_problem: requests" in card
    page = (folder / "run" / "teachers" / NAME / "report.md").read_text()
    refused = (folder / "run" / "teachers" / NAME / "refused.train-00000.jsonl").read_text()
    reasons = {json.loads(line)["reason"] for line in refused.splitlines()}
    assert reasons and all(reason in page for reason in reasons if ":" not in reason)
    assert rows(folder)[1].id in page and rows(folder)[1].answer.splitlines()[0] in page


def test_a_run_that_ended_asks_only_for_the_rest(
    finished: tuple[Path, str, int], impatient: None, tmp_path: Path
) -> None:
    """The endpoint dies after some answers; on another port the same model goes on, with the same rows."""
    with ScriptedTeacher() as teacher:
        teacher.dies_after = 5
        with pytest.raises(ValueError, match="gave up after 2 attempts") as error:
            build(tmp_path, teacher.where, "concurrency = 2")
        assert "\n" not in str(error.value)
    first = stored(tmp_path)
    assert 0 < first <= 5
    with ScriptedTeacher() as teacher:
        text = build(tmp_path, teacher.where, "concurrency = 2")
        assert len(teacher.requests) == stored(tmp_path) - first
    assert f"{first} of them answered by an earlier run" in text
    assert hashes(tmp_path) == hashes(finished[0])


def test_a_budget_is_never_exceeded_and_can_be_raised(tmp_path: Path) -> None:
    keys = ("concurrency = 2", f'corpora = ["{NAME}"]')
    with ScriptedTeacher() as teacher:
        assert "the budget is spent" in build(tmp_path, teacher.where, *keys, "requests = 4")
        assert len(teacher.requests) == stored(tmp_path) == 4
        few = len(rows(tmp_path))
        build(tmp_path, teacher.where, *keys, "requests = 4")
        assert len(teacher.requests) == 4
        build(tmp_path, teacher.where, *keys, "requests = 7")
        assert len(teacher.requests) == 7 and len(rows(tmp_path)) >= few


@pytest.mark.parametrize(
    ("fault", "keys", "message"),
    [
        ("dead", (), "can't be reached"),
        (0.6, (), "can't be reached: .*timed out"),
        ("garbage", (), "returned something that isn't JSON"),
        (401, (), "it needs a key: name the environment variable"),
    ],
)
def test_an_endpoint_that_fails_is_one_line(
    fault: object,
    keys: tuple[str, ...],
    message: str,
    impatient: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ScriptedTeacher() as teacher:
        teacher.faults = [fault] * 40
        address = teacher.where if fault != "dead" else "http://127.0.0.1:9/v1"
        file = recipe_file(tmp_path, address)
        file.write_text(file.read_text().replace(
            f'text = "{address}#phi-4"', f'text = {{ address = "{address}#phi-4", seconds = 0.2 }}'
        ))  # fmt: skip
        with pytest.raises(SystemExit):
            cli.main(["curate", str(file), NAME, "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert re.search(message, error.replace("\n", " "))
    assert "Traceback" not in error


def test_a_teacher_that_is_never_right_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rows of the generator remain; the teacher isn't asked for each of them in vain."""
    monkeypatch.setattr("polyphi_recipe.syntheses.synthesis_step.MAX_REFUSED", 3)
    with ScriptedTeacher(flaws=lambda check, number: "declined") as teacher:
        text = build(tmp_path, teacher.where, "concurrency = 1")
    assert "given up, since nothing was accepted: " in text and MAX_REFUSED > 3
    assert not [s for s in rows(tmp_path) if "phi-4" in s.source]
    assert len(rows(tmp_path)) == sizes.MICRO.rows[NAME][0]


def test_without_teachers_a_corpus_is_as_before(tmp_path: Path) -> None:
    recipe, built_in = find.of("micro"), find_corpus(NAME)
    assert teacher_rows.with_teachers(built_in, recipe, tmp_path) is built_in
    file = recipe_file(tmp_path, "http://127.0.0.1:9/v1")
    taught = teacher_rows.with_teachers(built_in, find.of(file), tmp_path)
    work = corpus.Work({"train": 1}, 0, tmp_path, tmp_path)
    assert corpus.fingerprint(taught, work) != corpus.fingerprint(built_in, work)
    assert taught.fresh is None


def test_equal_shares_of_the_budget(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "http://127.0.0.1:9/v1", "requests = 100")
    recipe = find.of(file)
    names = teacher_rows.corpora_of(recipe)
    shares = [teacher_rows.requests_of(name, recipe) for name in names]
    assert sum(filter(None, shares)) == 100 and max(shares) - min(shares) <= 1
    assert {"captions", "ocr"}.isdisjoint(names) and {"tools", "speech_summary"} <= {*names}


def test_every_synthesis_is_on_the_page_with_its_requests() -> None:
    page = (ROOT / "docs" / "synthesis.md").read_text()
    rows = re.findall(r"(?m)^\| `(\w+)`(?:, ...)? \| `(\w+)` \| (\w+) \|.*\| (\d+) \|$", page)
    written = {
        (s.name, corpus, use.teacher, str(s.tries * (1 + s.most_checked * len(s.checks))))
        for corpus, uses in teacher_rows.TABLE.items()
        for use in uses
        if not (s := use.synthesis).name.startswith("speech_translation_") or s.name.endswith("_de")
    }
    assert set(rows) == written

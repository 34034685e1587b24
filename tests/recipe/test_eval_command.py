"""`polyphi eval` with a run of the recipe, and what a model's name means."""

import json
from pathlib import Path

import pytest

from polyphi.cli import main
from polyphi_eval import evaluation
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.graph.models import Models
from polyphi_recipe.recipe.recipe import Recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps({"size": "micro", "seed": 7}))
    return tmp_path


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What commands evaluate, instead of evaluating it."""
    calls: list[tuple[object, ...]] = []

    def evaluate(
        recipe: Recipe, folder: RunFolder, models: Models, tasks: tuple[str, ...], quant: str | None
    ) -> None:
        calls.append((recipe.name, folder.path, models.seed, tasks, quant))

    def model(name: str, **options: object) -> evaluation.EvaluatedModel:
        return evaluation.EvaluatedModel(None, name, name)  # type: ignore[arg-type]

    def measure(
        own: evaluation.EvaluatedModel, suites: tuple[str, ...], *_: object, **__: object
    ) -> list[object]:
        calls.append((own.name, list(suites)))
        return []

    monkeypatch.setattr("polyphi_recipe.graph.evaluation.evaluate", evaluate)
    monkeypatch.setattr(evaluation, "evaluated_model", model)
    monkeypatch.setattr(evaluation, "measure", measure)
    return calls


def test_a_run_without_a_suite_means_its_held_out_tasks(run: Path, evaluated: list[object]) -> None:
    main(["eval", str(run), "arithmetic", "--quant", "int8"])
    assert evaluated == [("micro", run, 7, ("arithmetic",), "int8")]


def test_the_suite_mini_of_a_run_includes_its_held_out_tasks(
    run: Path, evaluated: list[object]
) -> None:
    main(["eval", str(run), "--suite", "mini"])
    assert evaluated == [("micro", run, 7, (), None), (str(run), ["mini"])]
    evaluated.clear()
    with pytest.raises(SystemExit):
        main(["eval", str(run), "--suite", "mini", "--part", "9/8"])
    assert not evaluated, "a wrong option is found before the evaluation"
    main(["eval", str(run), "--suite", "table7", "--mini"])
    assert evaluated == [(str(run), ["table7"])]


@pytest.mark.parametrize("command", [[], ["heldout"]])
def test_a_model_that_is_no_run_needs_a_suite(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["eval", *command, str(tmp_path)])
    assert f"{tmp_path} is no run" in capsys.readouterr().err

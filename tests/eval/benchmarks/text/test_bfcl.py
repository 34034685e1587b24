"""BFCL's possible answers are right and others wrong, by bfcl-eval's checker; prompts equal bfcl-eval's."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi_eval import calls
from polyphi_eval.benchmarks.text import bfcl
from polyphi_eval.run import SavedLine
from polyphi_eval.score import rows_of
from polyphi_eval.services import sandbox
from polyphi_eval.sources import Data, check
from tests.eval.wheels import unpacked

SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
UNACCEPTED = {
    # Empty lists as values, a parameter that the function doesn't have, Java lists of mixed types: the checker accepts
    # no combination of the values that the data list as possible.
    "live_multiple_862-181-3",
    "live_multiple_964-207-0",
    "live_simple_106-63-0",
    "live_simple_112-68-0",
    "simple_java_36",
    "simple_java_64",
    "simple_java_65",
}
CHANGED_BY_PARSER = {f"simple_java_{n}" for n in (1, 35, 48, 67, 68, 85)}
"""Calls with values that bfcl-eval's Java parser changes."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    root = tmp_path_factory.mktemp("data")
    folder = unpacked("bfcl-eval", bfcl.VERSION, SHA256)
    (root / "bfcl_eval").symlink_to(folder / "bfcl_eval")
    assert not check(Data(root), bfcl.SOURCE)
    return list(bfcl.load(Data(root)))


@pytest.mark.long
@pytest.mark.skipif(sandbox.unavailable() is not None, reason="no namespaces")
def test_possible_answers_are_right_and_others_wrong(samples: list[Sample]) -> None:
    assert len(samples) == 2 * 3641
    scores = bfcl.score_many([([s.answer], s) for s in samples])
    wrong = {s.id for s, score in zip(samples, scores, strict=True) if not score.value}
    by_tools = {f"{name}-tools" for name in UNACCEPTED}
    by_prompt = {f"{name}-prompt" for name in UNACCEPTED | CHANGED_BY_PARSER}
    assert wrong <= by_tools | by_prompt and len(wrong) <= 19
    changed = bfcl.score_many([([_wrong(s)], s) for s in samples])
    assert sum(score.value for score in changed) == 0


def _wrong(sample: Sample) -> str:
    """A call of another function; no call if a function fits (relevance)."""
    if sample.meta["group"] == "relevance":
        return "None fits."
    if sample.meta["mode"] == "tools":
        return '[{"name": "another", "arguments": {"a": 1}}]'
    return "[another(a=1)]"


@pytest.mark.long
def test_prompts_equal_those_of_bfcl_eval(samples: list[Sample], tmp_path: Path) -> None:
    script = """
import json, sys, types
from collections import defaultdict
registry = types.ModuleType("bfcl_eval.constants.model_config")
registry.MODEL_CONFIG_MAPPING = {}
sys.modules[registry.__name__] = registry
from bfcl_eval.model_handler.utils import system_prompt_pre_processing_chat_model as ask
from bfcl_eval.utils import load_dataset_entry
prompts = {}
for category in json.load(sys.stdin):
    for row in load_dataset_entry(category):
        prompts[row["id"]] = [ask(row["question"][0], row["function"], row["id"]), row["function"]]
print(json.dumps(prompts))
"""
    process = subprocess.run(
        [str(bfcl.ENVIRONMENT.python()), "-c", script],
        input=json.dumps(bfcl.CATEGORIES),
        env={"BFCL_PROJECT_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(process.stdout)
    for sample in samples:
        name, _, mode = sample.id.rpartition("-")
        messages, functions = expected[name]
        if mode == "prompt":
            ours: Any = [{"role": m.role, "content": m.text} for m in sample.prompt]
            assert ours == messages
        else:
            assert json.loads(sample.prompt[0].tools or "[]") == functions


def test_sums_are_evaluated_without_running_code() -> None:
    assert calls.evaluate("2 * (3 + 4) - -1") == 15 and calls.evaluate("'a' + 'b'") == "ab"
    assert calls.evaluate("2 ** 10") == 1024 and calls.evaluate("5 / 2") == 2.5
    for text in (
        "__import__('os').system('true') + 1",
        "9 ** 9 ** 9 ** 9",
        "[1] * 10",
        "'a' * 9",
        "x + 1",
    ):
        with pytest.raises((ValueError, OverflowError)):
            calls.evaluate(text)


def test_groups_have_equal_weights() -> None:
    weights = bfcl._weights({category: 10 for category in bfcl.CATEGORIES})
    for group in bfcl.GROUPS.values():
        assert sum(10 * weights[category] for category in group) == pytest.approx(1)
    assert weights["simple_java"] == weights["multiple"] / 3

    def line(group: str, category: str, value: float) -> SavedLine:
        meta = {"mode": "prompt", "group": group, "weight": weights[category]}
        shared = {"extracted": "", "parts": {}, "error": None, "cut": False}
        return {"meta": meta, "value": value, "sound_seconds": 0, "seconds": 0, **shared}

    lines = [line("live", "live_simple", 1.0) for _ in range(10)]
    lines += [line("relevance", "live_relevance", 0.0) for _ in range(10)]
    whole = next(r for r in rows_of(bfcl.benchmark, lines) if r.label == "BFCL")
    assert whole.score == pytest.approx(0.25 / 1.25)


def test_the_fixture_checker_accepts_reference_answers(tmp_path: Path) -> None:
    bfcl.benchmark.write_fixtures(tmp_path)
    for sample in bfcl.load(Data(tmp_path)):
        right, wrong = (bfcl._request(a, sample) for a in (sample.answer, _wrong(sample)))
        assert bfcl._check_fixture(right) and not bfcl._check_fixture(wrong)
        if sample.meta["possible"]:
            incomplete = copy.deepcopy(right)
            incomplete["possible"].append(incomplete["possible"][0])
            assert not bfcl._check_fixture(incomplete)

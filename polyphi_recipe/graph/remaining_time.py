"""The remaining time of a run, from the expected time of its stages and the speed of the steps so far.

7 of 16 stages, about 12 minutes left
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from polyphi.planning.assumptions import Hardware
from polyphi.runtime.progress import read_metrics
from polyphi.train.checkpoint import MANIFEST
from polyphi.train.state import METRICS
from polyphi_eval.heldout import TASKS
from polyphi_recipe import stages
from polyphi_recipe.graph.plan import plan
from polyphi_recipe.graph.processes import periodically
from polyphi_recipe.recipe.recipe import Recipe

REPORT_SECONDS = 60.0
"""Seconds between two reports of the remaining time."""
NANO_SECONDS = {
    "text_1_pretrain": 395,
    "text_2_long": 29,
    "text_3_post": 506,
    "text_4_align": 32,
    "reasoning_1_pretrain": 74,
    "reasoning_2_sft": 259,
    "reasoning_3_dpo": 14,
    "vision_0_encoder": 413,
    "vision_1_align": 38,
    "vision_2_joint": 50,
    "vision_3_generative": 450,
    "vision_4_multiframe": 86,
    "speech_0_aed": 618,
    "speech_1_pretrain": 120,
    "speech_2_post": 413,
    "joint_1_vision_speech": 242,
}
"""Seconds of each stage, without its corpora, with another one running on two cores of a Zen 4."""
FINAL_SHARE = 0.05
"""Export, evaluation and page, as a share of the time of all stages."""


def status_line(recipe: Recipe, out: Path) -> str:
    """A line of text: finished stages, and minutes left."""
    done = sum((out / "stages" / name / MANIFEST).exists() for name in recipe.order)
    minutes = seconds_left(recipe, out) / 60
    left = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "about a minute"
    return f"{done} of {len(recipe.order)} stages, {left} left"


def expected(recipe: Recipe) -> dict[str, float]:
    """Expected seconds of each stage: measured for nano, else from the FLOPs of its plan."""
    if recipe.is_built_in and recipe.name == "nano":
        return dict(NANO_SECONDS)
    return {name: plan(name, recipe, Hardware("1xcpu")).seconds for name in recipe.order}


def seconds_left(recipe: Recipe, out: Path) -> float:
    """Seconds until the page is written: those of the longer of the branches that train in parallel, and of the
    steps after them."""
    expected_seconds = expected(recipe)
    branches = stages.BRANCHES if recipe.is_built_in else (recipe.order,)
    left, spent, due = dict(expected_seconds), 0.0, 0.0
    for name in recipe.order:
        folder = out / "stages" / name
        if (folder / MANIFEST).exists():
            share, seconds = 1.0, json.loads((folder / MANIFEST).read_text())["seconds"]
        elif records := read_metrics(folder / METRICS):
            share = (records[-1]["step"] + 1) / recipe.budget(recipe.stages[name]).steps
            seconds = sum(r["tokens"] / r["tokens_per_second"] for r in records)
        else:
            continue
        left[name] *= 1 - share
        spent, due = spent + seconds, due + share * expected_seconds[name]

    @cache
    def end(name: str) -> float:
        """Seconds until a stage ends: it starts after its parents and after the stage before it in its branch."""
        branch = next(branch for branch in branches if name in branch)
        predecessors = (*recipe.lineage.parents(name), *branch[: branch.index(name)][-1:])
        return left[name] + max(map(end, predecessors), default=0.0)

    measured = len(list((out / "eval").glob("*.jsonl"))) / len(TASKS)
    after = FINAL_SHARE * sum(expected_seconds.values()) * (1 - min(1.0, measured))
    return (spent / due if due else 1.0) * (max(map(end, recipe.order)) + after)


@contextlib.contextmanager
def reported(recipe: Recipe, out: Path, report: Callable[[str], None]) -> Iterator[None]:
    """A context that reports the remaining time every minute."""
    with periodically(
        REPORT_SECONDS, lambda: report(f"[dim]{status_line(recipe, out)}[/dim]"), "remaining"
    ):
        yield

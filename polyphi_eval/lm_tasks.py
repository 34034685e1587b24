"""lm-eval's tasks as benchmarks: its prompts, few-shot examples, filters and metrics, run and cached by our harness.

>>> task = letter_task("polyphi_arc_c")                  # of our lm_eval/polyphi_arc_c.yaml
>>> samples(task, {"train": rows, "test": rows}, "arc_c", source)
>>> Benchmark(..., score_many=scoring(letter_task))

A request of lm-eval becomes a sample: its context with few-shot examples is a single user message (as lm-eval sends it
with `--apply_chat_template --fewshot_as_multiturn false`, except that a task's description is part of it, not a system
message). The document is in `meta`, so that answers are filtered and scored without the data. The benchmark sets the
maximum length of answers, and there are no stop strings: lm-eval's ("Q:", the end of a line) are for base models, which
continue with the next question, and would cut the answers of chat models.

Our YAML files are in `lm_eval/` and work with lm-eval alone: `lm-eval run --include_path polyphi_eval/lm_eval --tasks
polyphi_arc_c`. lm-eval is imported in functions, because that takes seconds.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from polyphi.data.sample import Sample
from polyphi.runtime.installation import pip_install
from polyphi.types.messages import Message
from polyphi_eval.benchmark import LENIENT, Score
from polyphi_eval.sources import BenchmarkSource

TASK_FOLDER = Path(__file__).parent / "lm_eval"
SEED = 0
"""Seed of Python's global generator, with which tasks shuffle their options; lm-eval's default."""
MAX_CHARACTERS = 60_000
"""Characters of an answer that are read: the time of some filters is quadratic in them."""
Rows = Iterable[Mapping[str, Any]]
ScoreMany = Callable[[Sequence[tuple[Sequence[str], Sample]]], Sequence[Score]]


@dataclass(frozen=True)
class LmTask:
    """A task's name and its folder below lm-eval's `tasks` (None: a file in `TASK_FOLDER`).

    `changes` replace settings of the task. The score's value is the result `metric` with the filter `strict`, its
    lenient part that with `lenient`; every filter's result is a part of the score by its name. Without filters `strict`
    is "none", and `lenient` may name another result.
    """

    name: str
    folder: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "exact_match"
    strict: str = "none"
    lenient: str | None = None


def letter_task(name: str) -> LmTask:
    """Return a task in `TASK_FOLDER` whose answers are option letters."""
    return LmTask(name, strict="first-letter", lenient="any-letter")


def samples(
    task: LmTask,
    splits: Mapping[str, Rows],
    name: str,
    source: BenchmarkSource,
    meta: Mapping[str, Any] | None = None,
    reference: Callable[[Mapping[str, Any]], str] | None = None,
) -> Iterator[Sample]:
    """Yield the requests of a task on these splits, with ids `name`-0, `name`-1...; `meta` is added to each one's. The
    reference answer is the task's target, or `reference` of the document."""
    state = random.getstate()
    random.seed(SEED)
    try:
        lm_task = _build(task, {split: list(rows) for split, rows in splits.items()})
        documents = lm_task.eval_docs
    finally:
        random.setstate(state)
    shots = lm_task.config.num_fewshot or 0
    if shots > len(lm_task.sampler.df):
        raise ValueError(f"{name}: expected {shots} examples, found {len(lm_task.sampler.df)}")
    for number, document in enumerate(documents):
        prefix = lm_task.doc_to_prefix(document)
        context = lm_task.fewshot_context(document, shots, gen_prefix=prefix)
        answer = reference(document) if reference else str(lm_task.doc_to_target(document))
        fields = {"task": task.name, "document": document, **(meta or {})}
        yield source.sample(f"{name}-{number}", Message.user(context), answer, fields)


def scoring(task_of: Callable[[str], LmTask]) -> ScoreMany:
    """Return a `score_many` that applies the filters and the metric of the samples' tasks, `task_of(name)`."""

    def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
        groups = defaultdict(list)
        for index, (_, sample) in enumerate(pairs):
            groups[sample.meta["task"]].append(index)
        scores: dict[int, Score] = {}
        for name, indices in groups.items():
            documents = [pairs[i][1].meta["document"] for i in indices]
            answers = [_truncate(pairs[i][0][-1]) if pairs[i][0] else "" for i in indices]
            scores |= zip(indices, _score_all(task_of(name), documents, answers), strict=True)
        return [scores[i] for i in range(len(pairs))]

    return score_many


def _truncate(answer: str) -> str:
    half = MAX_CHARACTERS // 2
    return answer if len(answer) <= MAX_CHARACTERS else f"{answer[:half]}\n{answer[-half:]}"


def _score_all(
    task: LmTask, documents: Sequence[dict[str, Any]], answers: Sequence[str]
) -> list[Score]:
    changes = {
        "test_split": "test",
        "process_docs": None,  # the documents are already processed
        "num_fewshot": 0,
        **dict.fromkeys(("training_split", "validation_split", "fewshot_split", "fewshot_config")),
    }
    lm_task = _build(task, {"test": documents[:1]}, changes)
    # An error here isn't caused by an answer, so it is raised instead of counted as wrong answers.
    for text in _filter(lm_task, documents[:1], ["x"])[0].values():
        lm_task.process_results(documents[0], [text])
    try:
        texts = _filter(lm_task, documents, answers)
    except Exception:  # a filter failed on one answer: filter each alone
        texts = [_filter_one(lm_task, *pair) for pair in zip(documents, answers, strict=True)]
    return [_score(task, lm_task, d, each) for d, each in zip(documents, texts, strict=True)]


def _filter_one(lm_task: Any, document: dict[str, Any], answer: str) -> dict[str, str]:
    try:
        return _filter(lm_task, [document], [answer])[0]
    except Exception:  # lm-eval's code doesn't support this answer: it is wrong
        return {}


def _filter(
    lm_task: Any, documents: Sequence[dict[str, Any]], answers: Sequence[str]
) -> list[dict[str, str]]:
    """Return the text that each filter of a task extracts, for each answer."""
    from lm_eval.api.instance import Instance

    lm_task._instances = [
        Instance("generate_until", document, ("", {}), 0, resps=[answer])
        for document, answer in zip(documents, answers, strict=True)
    ]
    lm_task.apply_filters()
    return [instance.filtered_resps for instance in lm_task._instances]


def _score(task: LmTask, lm_task: Any, document: dict[str, Any], texts: Mapping[str, str]) -> Score:
    results = dict.fromkeys((f.name for f in lm_task._filters), 0.0)
    for name, text in texts.items():
        try:
            scores = lm_task.process_results(document, [text])
        except Exception:  # as in `_filter_one`
            scores = {}
        results[name] = float(scores.get(task.metric, 0.0))
        if task.lenient and task.lenient in scores:
            results[task.lenient] = float(scores[task.lenient])
    value = results.pop(task.strict, 0.0)
    if task.lenient:
        # The lenient score is at least the strict one.
        results[LENIENT] = max(value, results.get(task.lenient, 0.0))
    return Score(value, str(texts.get(task.strict, "")), results)


def _build(
    task: LmTask, splits: Mapping[str, Sequence[Mapping[str, Any]]], changes: Any = ()
) -> Any:
    """Return lm-eval's task with its data in memory, without downloads or caches."""
    try:
        import datasets
        import lm_eval.api.task
        import lm_eval.tasks
        import lm_eval.utils
    except ImportError as error:
        raise ValueError(f"this benchmark needs lm-eval ({error}); {pip_install('eval')}") from None
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    templates = lm_eval.utils.env
    if not hasattr(templates.from_string, "cache_info"):
        # Otherwise templates are compiled for each example of each document, which takes minutes.
        templates.from_string = cache(templates.from_string)
    splits_in_memory = {
        name: datasets.Dataset.from_list([dict(r) for r in rows]) for name, rows in splits.items()
    }
    settings = {
        "task": task.name,
        **task.changes,
        **dict(changes),
        "custom_dataset": lambda **_: splits_in_memory,
    }
    if task.folder is None:
        return lm_eval.api.task.ConfigurableTask(config=_settings(task.name) | settings)
    # lm-eval changes settings of its own tasks through a group.
    manager = _task_manager(task.folder)
    return manager.load({"group": "polyphi", "task": [settings]})["tasks"][task.name]


@cache
def _task_manager(folder: str) -> Any:
    """Return lm-eval's manager of its tasks in a folder."""
    from lm_eval import tasks

    path = Path(tasks.__file__).parent / folder
    return tasks.TaskManager(include_path=[path], include_defaults=False)


def _settings(name: str) -> dict[str, Any]:
    """Return the settings in a file of `TASK_FOLDER`; of a group, those that its tasks share."""
    import yaml

    settings = yaml.safe_load((TASK_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    included = settings.pop("include", None)
    shared = _settings(included.removesuffix(".yaml")) if included else {}
    return shared | {
        k: v for k, v in settings.items() if k not in ("group", "aggregate_metric_list")
    }

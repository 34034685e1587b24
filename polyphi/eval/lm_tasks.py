"""lm-eval's tasks as benchmarks: its prompts, few-shots, filters and metrics, run and cached by our harness.

>>> task = letters("polyphi_arc_c")                      # of lm_eval/polyphi_arc_c.yaml, ours
>>> samples(task, {"train": rows, "test": rows}, "arc_c", source)
>>> Benchmark(..., score_many=scoring(letters))

A request of lm-eval becomes a sample: its whole context, few-shots in it, is the one message of a user (what lm-eval
sends with `--apply_chat_template --fewshot_as_multiturn false`, but that a task's description stands there too, and
not in a system message). The document goes along in `meta`, so that answers are filtered and scored without the data.
How long an answer may be is the benchmark's to say, and nothing but its end stops it: lm-eval's stops ("Q:", the end of
a line) are made for base models, which continue with the next question, and cut the answers of chat models.

Our own YAML files lie in `lm_eval/` and work with lm-eval alone: `lm-eval run --include_path polyphi/eval/lm_eval
--tasks polyphi_arc_c`. lm-eval is imported late: it takes seconds.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import LENIENT, Score
from polyphi.eval.sources import Source
from polyphi.messages import Message

OWN = Path(__file__).parent / "lm_eval"
SEED = 0
"""Of tasks that shuffle their options with Python's global generator; lm-eval's own default."""
LONGEST = 60_000
"""Characters of an answer that are read: some filters take time with the square of them."""
Rows = Iterable[Mapping[str, Any]]
ScoreMany = Callable[[Sequence[tuple[Sequence[str], Sample]]], Sequence[Score]]


@dataclass(frozen=True)
class LmTask:
    """A task by its name and, for lm-eval's own, the folder below its `tasks` (None: a file of ours).

    `changes` replace settings of the task. The result `metric` counts as the filter `strict` reads answers; the one
    `lenient` is the generous reading, and every filter's result is a part of the score by its name. Tasks that judge
    whole answers have no filters: `strict` is "none", and `lenient` may name another result.
    """

    name: str
    folder: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "exact_match"
    strict: str = "none"
    lenient: str | None = None


def letters(name: str) -> LmTask:
    """A task of ours whose answers are letters."""
    return LmTask(name, strict="first-letter", lenient="any-letter")


def samples(
    task: LmTask,
    splits: Mapping[str, Rows],
    name: str,
    source: Source,
    meta: Mapping[str, Any] | None = None,
    reference: Callable[[Mapping[str, Any]], str] | None = None,
) -> Iterator[Sample]:
    """The requests of a task whose data are these splits, called `name`-0, `name`-1...; `meta` is added to each one's.
    The reference is what the task aims at, unless `reference` gives another for a document."""
    state = random.getstate()
    random.seed(SEED)
    try:
        built = _build(task, {split: list(rows) for split, rows in splits.items()})
        documents = built.eval_docs
    finally:
        random.setstate(state)
    shots = built.config.num_fewshot or 0
    if shots > len(built.sampler.df):
        raise ValueError(f"{name}: expected {shots} examples, found {len(built.sampler.df)}")
    for number, document in enumerate(documents):
        context = built.fewshot_context(document, shots, gen_prefix=built.doc_to_prefix(document))
        answer = reference(document) if reference else str(built.doc_to_target(document))
        fields = {"task": task.name, "document": document, **(meta or {})}
        yield source.sample(f"{name}-{number}", Message.user(context), answer, fields)


def scoring(task_of: Callable[[str], LmTask]) -> ScoreMany:
    """Scores of samples by the filters and the metric of their tasks, which `task_of` gives by their names."""

    def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
        groups = defaultdict(list)
        for place, (_, sample) in enumerate(pairs):
            groups[sample.meta["task"]].append(place)
        scores: dict[int, Score] = {}
        for name, places in groups.items():
            documents = [pairs[i][1].meta["document"] for i in places]
            answers = [_short(pairs[i][0][-1]) if pairs[i][0] else "" for i in places]
            scores |= zip(places, _scored(task_of(name), documents, answers), strict=True)
        return [scores[i] for i in range(len(pairs))]

    return score_many


def _short(answer: str) -> str:
    half = LONGEST // 2
    return answer if len(answer) <= LONGEST else f"{answer[:half]}\n{answer[-half:]}"


def _scored(
    task: LmTask, documents: Sequence[dict[str, Any]], answers: Sequence[str]
) -> list[Score]:
    changes = {
        "test_split": "test",
        "process_docs": None,  # they were processed when the request was made
        "num_fewshot": 0,
        **dict.fromkeys(("training_split", "validation_split", "fewshot_split", "fewshot_config")),
    }
    built = _build(task, {"test": documents[:1]}, changes)
    # What fails here isn't an answer's fault, and must not look as if all were wrong.
    for text in _filtered(built, documents[:1], ["x"])[0].values():
        built.process_results(documents[0], [text])
    try:
        read = _filtered(built, documents, answers)
    except Exception:  # a filter failed on one of them, which must cost no other's score
        read = [_alone(built, *pair) for pair in zip(documents, answers, strict=True)]
    return [_score(task, built, d, answer) for d, answer in zip(documents, read, strict=True)]


def _alone(built: Any, document: dict[str, Any], answer: str) -> dict[str, str]:
    try:
        return _filtered(built, [document], [answer])[0]
    except Exception:  # others' code met an answer that it wasn't made for: wrong
        return {}


def _filtered(
    built: Any, documents: Sequence[dict[str, Any]], answers: Sequence[str]
) -> list[dict[str, str]]:
    """What each filter of a task reads out of each answer."""
    from lm_eval.api.instance import Instance

    built._instances = [
        Instance("generate_until", document, ("", {}), 0, resps=[answer])
        for document, answer in zip(documents, answers, strict=True)
    ]
    built.apply_filters()
    return [instance.filtered_resps for instance in built._instances]


def _score(task: LmTask, built: Any, document: dict[str, Any], read: Mapping[str, str]) -> Score:
    results = dict.fromkeys((f.name for f in built._filters), 0.0)
    for name, text in read.items():
        try:
            scores = built.process_results(document, [text])
        except Exception:  # as above
            scores = {}
        results[name] = float(scores.get(task.metric, 0.0))
        if task.lenient and task.lenient in scores:
            results[task.lenient] = float(scores[task.lenient])
    value = results.pop(task.strict, 0.0)
    if task.lenient:
        # A reading that finds less than the strict one isn't generous.
        results[LENIENT] = max(value, results.get(task.lenient, 0.0))
    return Score(value, str(read.get(task.strict, "")), results)


def _build(
    task: LmTask, splits: Mapping[str, Sequence[Mapping[str, Any]]], changes: Any = ()
) -> Any:
    """lm-eval's task, its data in memory: nothing is fetched, nothing goes into a cache."""
    try:
        import datasets
        import lm_eval.api.task
        import lm_eval.tasks
        import lm_eval.utils
    except ImportError as error:
        raise ValueError(
            f"this benchmark needs lm-eval ({error}); pip install 'polyphi[eval]'"
        ) from None
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    templates = lm_eval.utils.env
    if not hasattr(templates.from_string, "cache_info"):
        # They would be compiled anew for each example of each question, which takes minutes.
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
        return lm_eval.api.task.ConfigurableTask(config=_own(task.name) | settings)
    # A group is lm-eval's way to change settings of a task that it knows.
    return _known(task.folder).load({"group": "polyphi", "task": [settings]})["tasks"][task.name]


@cache
def _known(folder: str) -> Any:
    """lm-eval's own tasks of a folder."""
    from lm_eval import tasks

    place = Path(tasks.__file__).parent / folder
    return tasks.TaskManager(include_path=[place], include_defaults=False)


def _own(name: str) -> dict[str, Any]:
    """The settings in a file of ours; of a group those that its tasks share."""
    import yaml

    settings = yaml.safe_load((OWN / f"{name}.yaml").read_text(encoding="utf-8"))
    shared = _own(settings.pop("include").removesuffix(".yaml")) if "include" in settings else {}
    return shared | {
        k: v for k, v in settings.items() if k not in ("group", "aggregate_metric_list")
    }

"""Held-out tasks: a model's score compared with its baselines, with the answers on disk.

>>> (task,) = find("digit")
>>> result = evaluate(model, task, Shards("data/image_qa/test"), Path("eval"))
>>> result.score, result.low, result.high, result.verdict

`OUT/TASK.jsonl` has a line for each sample and condition. Its answers to the same prompts by the same model are reused,
so that an interrupted evaluation resumes; `rescore` computes every number again from these files.

Conditions: `with` is the task itself. `majority` is the best constant answer among the references. `without` removes
the images (the audio, if there are no images) and `shuffled` permutes them among samples; the adapter stays the same,
so that only the input differs. Prompts with both an image and audio also have `without_clip` and `shuffled_clip`.
`no_adapter` is the same input, encoder and projector without the adapter. Text tasks have only the majority baseline.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyphi.data.sample import Sample
from polyphi.types.generate import Generate
from polyphi.types.messages import Message
from polyphi.types.parts import PUBLISHED, Part, Text
from polyphi.types.routing import modalities_of, route
from polyphi_eval.benchmark import MODALITIES, Benchmark, Score, belongs
from polyphi_eval.cache import Cache
from polyphi_eval.heldout import CORE_NAMES, GOALS, find
from polyphi_eval.run import SamplePrompt, SavedLine, answer, constant_line, file_name, write
from polyphi_eval.score import score
from polyphi_eval.scorers import references
from polyphi_eval.services.response_cache import media_sha256, whole_lines
from polyphi_eval.statistics import MIN_SAMPLES, direction, measure, rates, resampled, vector

CONDITIONS = ("with", "without", "shuffled", "no_adapter")
BASELINES = ("majority", "without", "shuffled", "without_clip", "shuffled_clip", "no_adapter")
CANDIDATES = 16  # most frequent references tried as the constant answer


@dataclass(frozen=True)
class Measure:
    """A score with its 95 % interval. `answer` is the majority baseline's constant answer."""

    score: float
    low: float
    high: float
    answer: str | None = None


@dataclass(frozen=True)
class Lead:
    """The model's score minus that of a baseline (the reverse for error rates), with a paired bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskResult:
    """A task's row. Accuracies and error rates are fractions, BLEU is 0 to 100. `margin` is the lead over the best
    baseline, `adapter_lead` that over the model without its adapter, which text tasks don't have."""

    task: str
    title: str
    modality: str
    metric: str
    n: int
    score: float
    low: float
    high: float
    baselines: Mapping[str, Measure] = field(default_factory=dict)
    best: str | None = None
    margin: float = 0.0
    margin_low: float = 0.0
    margin_high: float = 0.0
    verdict: str = "doesn't"
    adapter_lead: Lead | None = None
    languages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    corpus: str = ""
    note: str = ""

    @property
    def core(self) -> bool:
        """Whether the task is one of the core (`heldout.CORE`)."""
        return self.task in CORE_NAMES

    @property
    def goal(self) -> float | None:
        """The project's goal for the task's score (`heldout.GOALS`), or None."""
        return GOALS.get(self.task)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields for JSON, with `core` and `goal`."""
        return asdict(self) | {"core": self.core, "goal": self.goal}


def evaluate(
    model: Generate,
    task: Benchmark,
    samples: Iterable[Sample],
    out: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    conditions: Sequence[str] = CONDITIONS,
    fingerprint: str = "",
) -> TaskResult:
    """Answer and score a task's samples, write `out/TASK.jsonl`, and return its row.

    `fingerprint` identifies the model's weights: only answers with the same one are reused. Models with
    `generate_many(conversations, sampling=, adapter=)` run prompts in batches. Where a model with a `config` lacks the
    adapter that content selects, as after stages that train none, it answers without one. If no sample belongs to the
    task, the row has n = 0 and nothing is written.
    """
    if unknown := set(conditions) - set(CONDITIONS):
        raise ValueError(f"unknown conditions {sorted(unknown)}; expected some of {CONDITIONS}")
    chosen = select(task, samples, limit, seed)
    if not chosen:
        return TaskResult(
            task.name, task.title, task.modality, task.metric, 0, 0.0, 0.0, 1.0, corpus=task.corpus
        )
    config = getattr(model, "config", None)
    prompts = [
        replace(p, adapter=None) if config and p.adapter not in ("auto", *config.adapters) else p
        for p in prompts_of(task, chosen, conditions, seed)
    ]
    cache = Cache(model, Path(out), fingerprint, name=task.name, raise_errors=True)
    # One block: the samples are in memory already, and larger batches are faster.
    lines = answer(task, prompts, cache, block=len(prompts))
    constant = majority(task, chosen)
    lines += [constant_line(task, SamplePrompt(s, "majority"), constant) for s in chosen]
    lines = score(task, lines)
    write(Path(out) / file_name(task.name), lines)
    return summarize(lines, task)


def select(
    task: Benchmark, samples: Iterable[Sample], limit: int | None, seed: int
) -> list[Sample]:
    """Return the task's samples, in order; at most `limit` of them, drawn by `seed` evenly over languages."""
    own = [s for s in samples if belongs(s.meta, task.rows[0].only)]
    if limit is None or len(own) <= limit:
        return own
    groups: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(own):
        groups[str(sample.meta.get("language"))].append(i)
    shuffle = random.Random(f"{seed} {task.name}").shuffle
    for group in groups.values():
        shuffle(group)
    rounds = (
        group[r]
        for r in range(max(map(len, groups.values())))
        for group in groups.values()
        if r < len(group)
    )
    return [own[i] for i in sorted(i for i, _ in zip(rounds, range(limit), strict=False))]


# ---------------------------------------------------------------------- prompts of each condition


def prompts_of(
    task: Benchmark, samples: Sequence[Sample], conditions: Sequence[str], seed: int
) -> Iterator[SamplePrompt]:
    """Yield the prompts of all samples for each of the `conditions`."""
    prompts = [s.prompt for s in samples]
    for condition in conditions:
        if condition == "with":
            yield from (SamplePrompt(s, messages=p) for s, p in zip(samples, prompts, strict=True))
            continue
        if condition == "no_adapter":
            yield from (
                SamplePrompt(sample, condition, prompt, None)
                for sample, prompt in zip(samples, prompts, strict=True)
                if modalities_of(prompt)
            )
            continue
        present = {name for prompt in prompts for name in modalities_of(prompt)}
        for modality in sorted(present, reverse=True) if len(present) > 1 else (None,):
            name = f"{condition}{SUFFIXES.get(modality, f'_{modality}')}"
            variants = (
                _without(prompts, modality)
                if condition == "without"
                else _shuffled(prompts, modality, f"{seed} {task.name}")
            )
            for sample, prompt, messages in zip(samples, prompts, variants, strict=True):
                if messages is not None:
                    yield SamplePrompt(sample, name, messages, _adapter_of(prompt))


SUFFIXES = {None: "", "image": "", "audio": "_clip"}
"""Suffixes of the names of conditions that change one modality."""


def _adapter_of(prompt: Sequence[Message]) -> str | None:
    """The adapter of a prompt: that of a user's modality has its name."""
    modalities = modalities_of(prompt)
    further = [name for name in modalities if name not in PUBLISHED]
    return further[0] if further else route(modalities)


def _is_media(part: Part, modality: str | None) -> bool:
    return not isinstance(part, Text) and modality in (None, part.modality)


def _without(
    prompts: Sequence[tuple[Message, ...]], modality: str | None
) -> list[tuple[Message, ...] | None]:
    """Return the prompts without their media of a type; None for a prompt that has none."""
    return [
        tuple(
            replace(m, parts=tuple(p for p in m.parts if not _is_media(p, modality)))
            for m in prompt
        )
        if any(_is_media(p, modality) for m in prompt for p in m.parts)
        else None
        for prompt in prompts
    ]


def _shuffled(
    prompts: Sequence[tuple[Message, ...]], modality: str | None, seed: str
) -> list[tuple[Message, ...] | None]:
    """Return the prompts with media of a type from another prompt with as many; None if there is no such prompt."""
    own = [[p for m in prompt for p in m.parts if _is_media(p, modality)] for prompt in prompts]
    hashes = [[media_sha256(p) for p in parts] for parts in own]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, parts in enumerate(own):
        if parts:
            groups[tuple(type(p).__name__ for p in parts)].append(i)
    result: list[tuple[Message, ...] | None] = [None] * len(prompts)
    for group in groups.values():
        random.Random(seed).shuffle(group)
        for position, i in enumerate(group):
            # The next prompt in cyclic order with different media.
            others = (group[(position + step) % len(group)] for step in range(1, len(group)))
            donor = next((j for j in others if hashes[j] != hashes[i]), None)
            if donor is not None:
                new = iter(own[donor])
                result[i] = tuple(
                    replace(
                        m,
                        parts=tuple(next(new) if _is_media(p, modality) else p for p in m.parts),
                    )
                    for m in prompts[i]
                )
    return result


def majority(task: Benchmark, samples: Sequence[Sample]) -> str:
    """Return the constant answer that scores best, among the most frequent references and the empty answer."""
    assert task.scorer
    common: Counter[str] = Counter()
    for sample in samples:
        reference = references(sample)[0]
        common[reference] += 1
        # References with different texts often share the extracted part (the last number of a worked answer).
        if (extracted := task.scorer(reference, sample).extracted) != reference:
            common[extracted] += 1
    best, best_score = "", -np.inf
    for candidate in ["", *(c for c, _ in common.most_common(CANDIDATES))]:
        vectors = np.array([vector(task.metric, task.scorer(candidate, s)) for s in samples])
        value = direction(task.metric) * float(rates(task.metric, vectors.sum(0)))
        if value > best_score:
            best, best_score = candidate, value
    return best


# ---------------------------------------------------------------------- rows


def read(path: Path) -> list[SavedLine]:
    """Return the complete lines of a task's file."""
    if not Path(path).exists():
        return []
    required = {"key", "condition", "answer"}
    return [line for line in whole_lines(Path(path)) if required <= line.keys()]


def rescore(folder: Path, tasks: Sequence[Benchmark] | None = None) -> list[dict[str, Any]]:
    """Compute every row again from `folder/*.jsonl`, without model or data. Answers are scored by the task of that
    name; if there is none, recorded scores are used."""
    paths = sorted(Path(folder).glob("*.jsonl"))
    if not paths:
        raise ValueError(
            f"expected the output folder of an evaluation, such as DIR/eval, found no *.jsonl in {folder}"
        )
    known = {t.name: t for t in (find() if tasks is None else tasks)}
    results = []
    for path in paths:
        if lines := read(path):
            task = known.get(lines[0]["task"])
            results.append(summarize(score(task, lines) if task else lines, task))
    order: Sequence[str] = MODALITIES
    return [r.as_dict() for r in sorted(results, key=lambda r: (order.index(r.modality), r.task))]


def summarize(lines: Sequence[SavedLine], task: Benchmark | None = None) -> TaskResult:
    """Return the row of a task's lines."""
    first = lines[0]
    metric = task.metric if task else first["metric"]
    conditions: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for line in lines:
        conditions[line["condition"]][line["id"]] = vector(metric, _score_of(line))
    own = conditions.pop("with", {})
    seed = int(hashlib.sha256(first["task"].encode()).hexdigest()[:8], 16)
    number, low, high = measure(metric, np.array(list(own.values())), seed)
    constant = next((x["answer"] for x in lines if x["condition"] == "majority"), None)
    baselines = {
        name: Measure(
            *measure(metric, np.array(list(conditions[name].values())), seed),
            str(constant) if name == "majority" else None,
        )
        for name in BASELINES
        if name in conditions
    }
    result = TaskResult(
        task=first["task"],
        title=task.title if task else first["title"],
        modality=task.modality if task else first["modality"],
        metric=metric,
        n=len(own),
        score=number,
        low=low,
        high=high,
        baselines=baselines,
        languages=_languages(metric, [x for x in lines if x["condition"] == "with"]),
        corpus=first["corpus"],
        note=task.note if task else first["note"],
    )
    if not baselines:
        return result
    best = max(baselines, key=lambda name: direction(metric) * baselines[name].score)
    margin = lead(metric, own, conditions[best], seed)
    no_adapter = conditions.get("no_adapter")
    enough = len(own.keys() & conditions[best].keys()) >= MIN_SAMPLES
    return replace(
        result,
        best=best,
        margin=margin.value,
        margin_low=margin.low,
        margin_high=margin.high,
        verdict="beats" if margin.low > 0 and enough else "doesn't",
        adapter_lead=lead(metric, own, no_adapter, seed) if no_adapter else None,
    )


Vectors = Mapping[str, Sequence[float]]
"""The vector (statistics.py) of each sample, by id."""


def lead(metric: str, own: Vectors, other: Vectors, seed: int) -> Lead:
    """The lead of a model over another one: of all its samples, with an interval from those that both have."""
    sign, shared = direction(metric), [i for i in own if i in other]
    own_score, other_score = (
        rates(metric, np.array(list(vectors.values())).sum(0)) for vectors in (own, other)
    )
    pairs = np.stack([[vectors[i] for i in shared] for vectors in (own, other)], axis=1)  # [n 2 k]
    draws = np.concatenate([rates(metric, sums) for sums in resampled(pairs, seed)])
    low, high = np.percentile(sign * (draws[:, 0] - draws[:, 1]), [2.5, 97.5])
    value = sign * float(own_score - other_score) + 0.0  # no -0.0
    return Lead(value, float(low), float(high))


def sample_vectors(path: Path, condition: str = "with") -> dict[str, list[float]]:
    """Return the vector (statistics.py) of each sample of a task's file, by id."""
    lines = [line for line in read(path) if line["condition"] == condition]
    return {line["id"]: vector(line["metric"], _score_of(line)) for line in lines}


def _score_of(line: SavedLine) -> Score:
    return Score(line["value"], line["extracted"], line["parts"])


def _languages(metric: str, lines: Iterable[SavedLine]) -> dict[str, dict[str, float]]:
    """Return n and score of each language, if there are several."""
    by_id = {line["id"]: line for line in lines}
    groups: dict[str, list[list[float]]] = defaultdict(list)
    for line in by_id.values():
        if language := line["meta"].get("language"):
            groups[str(language)].append(vector(metric, _score_of(line)))
    if len(groups) < 2:
        return {}
    return {
        k: {"n": len(v), "score": float(rates(metric, np.sum(v, axis=0)))}
        for k, v in sorted(groups.items())
    }

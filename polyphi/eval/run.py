"""Measure a model on a task, beside three baselines, one line per answer.

>>> result = evaluate(model, task, Shards("data/image_qa/test"), Path("eval"))
>>> result.score, result.low, result.high, result.verdict

A file `OUT/TASK.jsonl` has a line for each sample and condition: what was asked, what was answered, what of it was
judged. Answers that are there for the same model, question and media are kept, so that an interrupted evaluation goes
on; every number can be made again from these files (`rescore`), without the model or the data.

Conditions: `with` is the task itself. `majority` is the best constant answer that the references offer. `without`
takes the pictures away (the clips, where there are no pictures) and `shuffled` swaps them among samples; the adapter
stays what it is with them, so that nothing but the input is missing. Questions with both a picture and a clip also
have `without_clip` and `shuffled_clip`. Text tasks have the majority baseline alone.
"""

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyphi.data.shards import Sample, Shards
from polyphi.eval.heldout import CORE_NAMES, GOALS, find
from polyphi.eval.scorers import BLEU_ORDERS, BLEU_PARTS, references
from polyphi.eval.task import MODALITIES, Score, Task
from polyphi.messages import (
    Audio,
    Generate,
    Image,
    Message,
    SamplingParams,
    Text,
    adapter_for,
    media,
)

CONDITIONS = ("with", "without", "shuffled")
BASELINES = ("majority", "without", "shuffled", "without_clip", "shuffled_clip")
RESAMPLES = 2000
CANDIDATES = 16  # most frequent references tried as the constant answer
BATCH = 128  # answers asked for at once, and between two writes
FEWEST = 20  # a bootstrap over fewer samples has no honest 95 % interval, so that they never "beat" a baseline
SURROGATE = re.compile("[\ud800-\udfff]")
Z = 1.959964  # 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Measure:
    """A score with its 95 % interval. `answer` is the constant one, for the majority baseline."""

    score: float
    low: float
    high: float
    answer: str | None = None


@dataclass(frozen=True)
class Result:
    """A task's row. Accuracies and error rates are fractions, BLEU is 0 to 100; `margin` is the model's lead over its
    best baseline with a paired bootstrap interval, positive when the model is better, whichever way the metric
    goes."""

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
    languages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    corpus: str = ""
    note: str = ""

    @property
    def core(self) -> bool:
        """Whether the task is one of the core (`heldout.CORE`)."""
        return self.task in CORE_NAMES

    @property
    def goal(self) -> float | None:
        """The project's aim for the task's score (`heldout.GOALS`), if it has one."""
        return GOALS.get(self.task)

    def as_dict(self) -> dict[str, Any]:
        """Every field as JSON has it, with `core` and `goal`."""
        return asdict(self) | {"core": self.core, "goal": self.goal}


# ---------------------------------------------------------------------- asking


@dataclass(frozen=True)
class Question:
    """What a condition shows of a sample."""

    sample: Sample
    condition: str
    messages: tuple[Message, ...]
    adapter: str | None


def evaluate(
    model: Generate,
    task: Task,
    shards: Iterable[Sample] | Shards,
    out: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    conditions: Sequence[str] = CONDITIONS,
    fingerprint: str = "",
) -> Result:
    """Answer and score a task's samples, write `out/TASK.jsonl`, and return its row.

    `fingerprint` names the model's weights: answers of a model with another one aren't reused. A model that has
    `generate_many(conversations, sampling=, adapter=)` is asked for several answers at once, and one that has
    `adapter` says which adapter it uses where content calls for the named one. If no sample of `shards` belongs to the
    task, the row has n = 0 and nothing is written.
    """
    if unknown := set(conditions) - set(CONDITIONS):
        raise ValueError(f"unknown conditions {sorted(unknown)}; expected some of {CONDITIONS}")
    samples = select(task, shards, limit, seed)
    if not samples:
        return Result(
            task.name, task.title, task.modality, task.metric, 0, 0.0, 0.0, 1.0, corpus=task.corpus
        )
    sampling = SamplingParams(max_tokens=task.max_tokens)
    known = getattr(model, "adapter", None)  # what the content calls for, if this model has it
    questions = [
        replace(q, adapter=known(q.adapter)) if known and q.adapter != "auto" else q
        for q in ask(task, samples, conditions, seed)
    ]
    keys = [key_of(q.messages, q.adapter, sampling, fingerprint) for q in questions]
    path = Path(out) / f"{task.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = {
        line["key"]: line["answer"] for line in read(path) if line["condition"] != "majority"
    }

    missing: dict[str | None, dict[str, Question]] = defaultdict(dict)
    for key, question in zip(keys, questions, strict=True):
        if key not in answers:
            missing[question.adapter][key] = question
    with path.open("a", encoding="utf-8") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")  # the last run was cut in the middle of a line
        for adapter, wanted in missing.items():
            for batch in chunks(list(wanted.items()), BATCH):
                texts = _generate(model, [q.messages for _, q in batch], sampling, adapter)
                for (key, question), text in zip(batch, texts, strict=True):
                    answers[key] = text
                    file.write(dump(_line(task, question, key, text)))
                file.flush()

    lines = [_line(task, q, k, answers[k]) for q, k in zip(questions, keys, strict=True)]
    constant = majority(task, samples)
    lines += [_line(task, Question(s, "majority", s.prompt, None), "", constant) for s in samples]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(map(dump, lines)), encoding="utf-8")
    partial.replace(path)
    return summarise(lines, task)


def select(
    task: Task, shards: Iterable[Sample] | Shards, limit: int | None, seed: int
) -> list[Sample]:
    """The task's samples, in order; at most `limit` of them, drawn by `seed` evenly over languages."""

    def belongs(sample: Sample) -> bool:
        return all(
            sample.meta.get(k) in v
            if isinstance(v, list | tuple | set | frozenset)
            else sample.meta.get(k) == v
            for k, v in task.only.items()
        )

    samples = [s for s in shards if belongs(s)]
    if limit is None or len(samples) <= limit:
        return samples
    groups: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[str(sample.meta.get("language"))].append(i)
    draw = random.Random(f"{seed} {task.name}")
    for group in groups.values():
        draw.shuffle(group)
    rounds = (
        group[r]
        for r in range(max(map(len, groups.values())))
        for group in groups.values()
        if r < len(group)
    )
    return [samples[i] for i in sorted(i for i, _ in zip(rounds, range(limit), strict=False))]


def ask(
    task: Task, samples: Sequence[Sample], conditions: Sequence[str], seed: int
) -> Iterator[Question]:
    """Every question of the task: each condition over all samples, in the order of `conditions`."""
    prompts = [s.prompt for s in samples]
    for condition in conditions:
        if condition == "with":
            yield from (
                Question(s, "with", p, "auto") for s, p in zip(samples, prompts, strict=True)
            )
            continue
        both = any(media(p, Image) for p in prompts) and any(media(p, Audio) for p in prompts)
        for kind in (Image, Audio) if both else (None,):
            name = f"{condition}_clip" if kind is Audio else condition
            shown = (
                _without(prompts, kind)
                if condition == "without"
                else _shuffled(prompts, kind, f"{seed} {task.name}")
            )
            for sample, prompt, messages in zip(samples, prompts, shown, strict=True):
                if messages is not None:
                    yield Question(sample, name, messages, adapter_for(prompt))


def _is_media(part: object, kind: type | None) -> bool:
    return isinstance(part, kind or (Image, Audio))


def _without(
    prompts: Sequence[tuple[Message, ...]], kind: type | None
) -> list[tuple[Message, ...] | None]:
    """The prompts less their media of a kind; None where there is nothing to take away."""
    return [
        tuple(replace(m, parts=tuple(p for p in m.parts if not _is_media(p, kind))) for m in prompt)
        if any(_is_media(p, kind) for m in prompt for p in m.parts)
        else None
        for prompt in prompts
    ]


def _shuffled(
    prompts: Sequence[tuple[Message, ...]], kind: type | None, seed: str
) -> list[tuple[Message, ...] | None]:
    """The prompts with their media of a kind taken from another one that has as many; None where no other one has."""
    own = [[p for m in prompt for p in m.parts if _is_media(p, kind)] for prompt in prompts]
    hashes = [[sha256(p) for p in parts if isinstance(p, Image | Audio)] for parts in own]
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, parts in enumerate(own):
        if parts:
            alike[tuple(type(p).__name__ for p in parts)].append(i)
    shown: list[tuple[Message, ...] | None] = [None] * len(prompts)
    for group in alike.values():
        random.Random(seed).shuffle(group)
        for place, i in enumerate(group):
            # The next one in the circle; further on where that one shows the very same media.
            others = (group[(place + step) % len(group)] for step in range(1, len(group)))
            donor = next((j for j in others if hashes[j] != hashes[i]), None)
            if donor is not None:
                given = iter(own[donor])
                shown[i] = tuple(
                    replace(
                        m, parts=tuple(next(given) if _is_media(p, kind) else p for p in m.parts)
                    )
                    for m in prompts[i]
                )
    return shown


def _generate(
    model: Any,
    conversations: list[Sequence[Message]],
    sampling: SamplingParams,
    adapter: str | None,
) -> list[str]:
    if hasattr(model, "generate_many"):
        return [
            c.text for c in model.generate_many(conversations, sampling=sampling, adapter=adapter)
        ]
    return [model.generate(c, sampling=sampling, adapter=adapter).text for c in conversations]


def majority(task: Task, samples: Sequence[Sample]) -> str:
    """The constant answer that scores best over the samples, among their most frequent references and silence."""
    common: Counter[str] = Counter()
    for sample in samples:
        reference = references(sample)[0]
        common[reference] += 1
        # What of a reference is judged is often shared where its wording is not (the last number of a worked answer).
        if (extracted := task.scorer(reference, sample).extracted) != reference:
            common[extracted] += 1
    best, best_score = "", -np.inf
    for candidate in ["", *(c for c, _ in common.most_common(CANDIDATES))]:
        vectors = np.array([vector(task.metric, task.scorer(candidate, s)) for s in samples])
        score = direction(task.metric) * float(rates(task.metric, vectors.sum(0)))
        if score > best_score:
            best, best_score = candidate, score
    return best


# ---------------------------------------------------------------------- lines


def sha256(part: Image | Audio) -> str:
    """SHA-256 of what a media part shows."""
    source = part.source
    if isinstance(source, tuple):
        return hashlib.sha256(
            np.ascontiguousarray(source[0]).tobytes() + str(source[1]).encode()
        ).hexdigest()
    return hashlib.sha256(
        source if isinstance(source, bytes) else Path(source).read_bytes()
    ).hexdigest()


def written(messages: Sequence[Message]) -> str:
    """A conversation as text, with [image] and [audio] where media stand; roles are named if there are several."""

    def content(m: Message) -> str:
        body = "".join(
            p.text if isinstance(p, Text) else f"[{type(p).__name__.lower()}]" for p in m.parts
        )
        return f"{body}\n{m.tools}" if m.tools else body

    return "\n".join(
        content(m) if len(messages) == 1 else f"{m.role}: {content(m)}" for m in messages
    )


def hashes_of(messages: Sequence[Message]) -> list[dict[str, str]]:
    parts = [p for m in messages for p in m.parts if isinstance(p, Image | Audio)]
    return [{"kind": type(p).__name__.lower(), "sha256": sha256(p)} for p in parts]


def key_of(
    messages: Sequence[Message], adapter: str | None, sampling: SamplingParams, fingerprint: str
) -> str:
    """Equal keys have equal answers: same weights, sampling, adapter, text and media. Guesses change no answer."""
    shown = [written(messages), [m.role for m in messages], hashes_of(messages)]
    text = json.dumps(
        [fingerprint, asdict(replace(sampling, draft=0)), adapter, shown], sort_keys=True
    )
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]


def _line(task: Task, question: Question, key: str, answer: str) -> dict[str, Any]:
    sample = question.sample
    score = task.scorer(answer, sample)
    return {
        "task": task.name,
        "condition": question.condition,
        "id": sample.id,
        "prompt": written(question.messages),
        "media": hashes_of(question.messages),
        "answer": answer,
        "reference": sample.answer,
        "extracted": score.extracted,
        "value": round(score.value, 6),
        "parts": dict(score.parts),
        "meta": sample.meta,
        "source": sample.source,
        "licence": sample.licence,
        "title": task.title,
        "modality": task.modality,
        "metric": task.metric,
        "corpus": task.corpus,
        "note": task.note,
        "key": key,
    }


def dump(line: Mapping[str, Any]) -> str:
    """A line of a results file. Half a surrogate pair, which no UTF-8 has, stays what it is as an escape."""
    text = json.dumps(line, ensure_ascii=False)
    return (json.dumps(line) if SURROGATE.search(text) else text) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a results file; a line that was cut short by an interruption is left out."""
    lines = []
    if Path(path).exists():
        # Not splitlines(): answers may hold characters that it takes for line ends.
        for text in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and {"key", "condition", "answer"} <= line.keys():
                lines.append(line)
    return lines


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


# ---------------------------------------------------------------------- scoring


def rescore(folder: Path, tasks: Sequence[Task] | None = None) -> list[dict[str, Any]]:
    """Every row again from `folder/*.jsonl`, without model or data. Answers are judged anew by the task of that name
    where there is one, and taken as they were judged where there is none."""
    paths = sorted(Path(folder).glob("*.jsonl"))
    if not paths:
        raise ValueError(
            f"no *.jsonl with answers in {folder}; expected those that an evaluation wrote, such as DIR/eval"
        )
    known = {t.name: t for t in (find() if tasks is None else tasks)}
    results = []
    for path in paths:
        lines = read(path)
        if not lines:
            continue
        task = known.get(lines[0]["task"])
        if task is not None:
            for line in lines:
                message = Message.assistant(line["reference"])
                sample = Sample(
                    line["id"], (message,), line["source"], line["licence"], line["meta"]
                )
                score = task.scorer(line["answer"], sample)
                line.update(
                    extracted=score.extracted, value=round(score.value, 6), parts=dict(score.parts)
                )
        results.append(summarise(lines, task))
    order = MODALITIES.index
    return [
        r.as_dict()
        for r in sorted(results, key=lambda r: (order(r.modality), r.task))  # type: ignore[arg-type]
    ]


def summarise(lines: Sequence[Mapping[str, Any]], task: Task | None = None) -> Result:
    """The row that a results file's lines give."""
    first = lines[0]
    metric = task.metric if task else first["metric"]
    conditions: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for line in lines:
        conditions[line["condition"]][line["id"]] = line
    own = conditions.pop("with", {})
    vectors = {
        name: np.array([vector(metric, _judged(line)) for line in by_id.values()])
        for name, by_id in [("with", own), *conditions.items()]
    }
    seed = int(hashlib.sha256(first["task"].encode()).hexdigest()[:8], 16)
    score, low, high = measure(metric, vectors["with"], seed)
    baselines = {
        name: Measure(
            *measure(metric, vectors[name], seed),
            _constant(conditions[name]) if name == "majority" else None,
        )
        for name in BASELINES
        if name in conditions
    }
    result = Result(
        task=first["task"],
        title=task.title if task else first["title"],
        modality=task.modality if task else first["modality"],
        metric=metric,
        n=len(own),
        score=score,
        low=low,
        high=high,
        baselines=baselines,
        languages=_languages(metric, own.values()),
        corpus=first["corpus"],
        note=task.note if task else first["note"],
    )
    if not baselines:
        return result
    sign = direction(metric)
    best = max(baselines, key=lambda name: sign * baselines[name].score)
    shared = [i for i in own if i in conditions[best]]
    pair = np.stack(
        [[vector(metric, _judged(by_id[i])) for i in shared] for by_id in (own, conditions[best])],
        axis=1,
    )  # [n 2 k]
    drawn = np.concatenate([rates(metric, sums) for sums in _resampled(pair, seed)])
    lead = sign * (drawn[:, 0] - drawn[:, 1])
    margin_low, margin_high = (float(x) for x in np.percentile(lead, [2.5, 97.5]))
    return replace(
        result,
        best=best,
        margin=sign * (score - baselines[best].score) + 0.0,  # no -0.0
        margin_low=margin_low,
        margin_high=margin_high,
        verdict="beats" if margin_low > 0 and len(shared) >= FEWEST else "doesn't",
    )


def judged(path: Path, condition: str = "with") -> dict[str, list[float]]:
    """By sample of a results file: what of its score is summed into the task's (`rates`)."""
    lines = [line for line in read(path) if line["condition"] == condition]
    return {line["id"]: vector(line["metric"], _judged(line)) for line in lines}


def _judged(line: Mapping[str, Any]) -> Score:
    return Score(line["value"], line["extracted"], line["parts"])


def _constant(by_id: Mapping[str, Mapping[str, Any]]) -> str:
    return str(next(iter(by_id.values()))["answer"])


def _languages(metric: str, lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """n and score of each language, where there are several."""
    groups: dict[str, list[list[float]]] = defaultdict(list)
    for line in lines:
        if language := line["meta"].get("language"):
            groups[str(language)].append(vector(metric, _judged(line)))
    if len(groups) < 2:
        return {}
    return {
        k: {"n": len(v), "score": float(rates(metric, np.sum(v, axis=0)))}
        for k, v in sorted(groups.items())
    }


def direction(metric: str) -> int:
    """1 where more is better, -1 for error rates."""
    return -1 if metric in ("rate", "wer", "cer") else 1


def vector(metric: str, score: Score) -> list[float]:
    """What of a sample's score is summed over samples to make the corpus-level one."""
    if metric in ("wer", "cer"):
        return [score.parts["errors"], score.parts["units"]]
    if metric == "bleu":
        return [score.parts[name] for name in BLEU_PARTS]
    if metric == "f1":
        twice, wrong = 2 * score.parts["tp"], score.parts["fp"] + score.parts["fn"]
        return [twice, twice + wrong]
    if metric == "geometric":
        return [*score.parts.values(), 1.0]
    if metric == "balanced":
        harmful = score.parts["harmful"]
        return [score.value * harmful, score.value * (1 - harmful), harmful, 1 - harmful]
    return [score.value, 1.0]


def rates(metric: str, sums: np.ndarray) -> np.ndarray:
    """Scores [...] from summed vectors [... k]: mean value, errors per unit, corpus BLEU (0 to 100), the geometric mean
    of the parts' means, or the mean of both classes' accuracies."""
    if metric == "geometric":
        means = sums[..., :-1] / np.maximum(sums[..., -1:], 1e-9)
        return np.prod(means, axis=-1) ** (1 / means.shape[-1])
    if metric == "balanced":
        return (sums[..., :2] / np.maximum(sums[..., 2:], 1e-9)).mean(-1)
    if metric != "bleu":
        return sums[..., 0] / np.maximum(sums[..., 1], 1e-9)
    correct, total = sums[..., 2 : 2 + BLEU_ORDERS], sums[..., 2 + BLEU_ORDERS :]
    # Orders without a match get half a match, then a quarter... (sacrebleu's `exp` smoothing); where all answers are
    # shorter than an order, there is no score, as in sacrebleu without `effective_order`.
    misses = np.cumsum(correct == 0, axis=-1)
    precision = np.where(correct > 0, correct, 1 / 2.0**misses) / np.maximum(total, 1)
    answered, wanted = sums[..., 0], sums[..., 1]
    brevity = np.where(answered < wanted, 1 - wanted / np.maximum(answered, 1e-9), 0)
    scored = (correct.sum(-1) > 0) & (total > 0).all(-1)
    return np.where(scored, 100 * np.exp(np.log(precision).mean(-1) + brevity), 0.0)


def _resampled(vectors: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Sums [b ... k] over bootstrap draws of the samples of vectors [n ... k], RESAMPLES in all, in blocks."""
    draw, n = np.random.default_rng(seed), len(vectors)
    flat = vectors.reshape(n, -1).astype(float)
    for _ in range(RESAMPLES // 100):
        counts = draw.multinomial(n, np.full(n, 1 / n), size=100)
        yield (counts @ flat).reshape(100, *vectors.shape[1:])


def measure(metric: str, vectors: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Score and 95 % interval: Wilson's for a share of right answers, percentiles of a bootstrap otherwise."""
    if len(vectors) == 0:
        return 0.0, 0.0, 1.0
    score, n = float(rates(metric, vectors.sum(0))), len(vectors)
    if metric in ("accuracy", "rate") and set(vectors[:, 0]) <= {0.0, 1.0}:
        return (score, *wilson(score, n))
    drawn = np.concatenate([rates(metric, sums) for sums in _resampled(vectors, seed)])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return score, float(low), float(high)


def measure_mean(
    metric: str, groups: Sequence[np.ndarray], seed: int
) -> tuple[float, float, float]:
    """The plain mean of the scores of groups of vectors [n k], with a 95 % interval made of theirs: distances to their
    limits add up in squares (Donner and Zou's MOVER, 2012)."""
    score, low, high = np.array([measure(metric, group, seed) for group in groups]).T
    mean, count = float(score.mean()), len(groups)
    down, up = (float(np.sqrt(((score - limit) ** 2).sum())) / count for limit in (low, high))
    return mean, mean - down, mean + up


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in n trials."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))

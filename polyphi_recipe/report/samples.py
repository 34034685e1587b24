"""Held-out samples for the report page, drawn at random and independently of the answers.

>>> draw = Draw(Path("runs/nano"), results, seed=0)
>>> draw.examples(), draw.gallery(), draw.media        # the page's first screen, further ones, media by SHA-256

The draw depends on the seed, the tasks and the samples, never on an answer. Images are digit scans or our renderings,
and samples with a share-alike licence are excluded, because people commit and share the page; the page of a recipe
file's run shows rows of its sources, too, and says so.
"""

import random
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.data.shards import Shards
from polyphi.train.report.page import MAX_MEDIA, MAX_SAMPLE_MEDIA, MIME, medium, question
from polyphi.types.parts import Audio, Image
from polyphi_eval.baselines import read
from polyphi_eval.report.heldout import METRICS, number
from polyphi_recipe.recipe.recipe import OWN_TASK

EXAMPLES = {(): 4, ("image",): 6, ("audio",): 6, ("audio", "image"): 2}
"""Number of samples at the top of the page, by their media."""
GALLERY = {"vision": 15, "speech": 10, "joint": 10, "safety": 5}
"""Number of further samples, by modality."""
OUR_PICTURES = re.compile(r"polyphi|scikit-learn-digits")
SHARE_ALIKE = re.compile(r"GPL|SA\b|share.?alike|unknown|proprietary", re.IGNORECASE)
ReportRow = Mapping[str, Any]


class Draw:
    """Draws samples of a run in an order that depends on the seed; each is used once, and no two share an image or
    audio clip."""

    def __init__(
        self, run: Path, results: Sequence[ReportRow], seed: int | None, *, own: bool = False
    ) -> None:
        """`results` are the rows of `rescore(run / "eval")`. With `own`, of a recipe file's run, the examples are of
        the tasks of its corpora with sources, not of core tasks."""
        self.media: dict[str, bytes] = {}
        self._results, self._seed, self._own = results, seed, own
        self._ids: set[str] = set()
        self._lines = {r["task"]: _lines(run, r, seed) for r in results}
        self._queues = {r["task"]: _candidates(run, r, self._lines[r["task"]]) for r in results}

    def examples(self) -> list[dict[str, Any]]:
        """Samples of the main tasks, EXAMPLES of each combination of media."""
        tasks = [r["task"] for r in self._results if is_main(r, self._own)]
        tasks = [task for task in tasks if self._lines[task]]
        random.Random(self._seed).shuffle(tasks)
        by_media: dict[tuple[str, ...], list[str]] = {media: [] for media in EXAMPLES}
        for task in tasks:
            media = {m["kind"] for m in self._lines[task][0]["media"]}
            by_media.setdefault(tuple(sorted(media)), []).append(task)
        return [e for media, n in EXAMPLES.items() for e in self.take(by_media[media], n)]

    def gallery(self) -> list[dict[str, Any]]:
        """Samples of all tasks, GALLERY of each modality, in the order of the results."""
        order = {r["task"]: i for i, r in enumerate(self._results)}
        entries: list[dict[str, Any]] = []
        for modality, n in GALLERY.items():
            tasks = [r["task"] for r in self._results if r["modality"] == modality]
            entries += self.take(tasks, n)
        return sorted(entries, key=lambda e: order[e["task"]])

    def take(self, tasks: Iterable[str], n: int) -> list[dict[str, Any]]:
        """Return up to n samples, one of each task in turn; fewer where MAX_MEDIA is reached."""
        turns = deque(tasks)
        entries: list[dict[str, Any]] = []
        while turns and len(entries) < n:
            task = turns.popleft()
            candidate = next((c for c in self._queues[task] if not self._ids & _ids(c[0])), None)
            if candidate is None:
                continue
            turns.append(task)
            entry, parts = candidate
            if sum(map(len, [*self.media.values(), *parts])) > MAX_MEDIA:
                break
            self.media.update((m["sha256"], p) for m, p in zip(entry["media"], parts, strict=True))
            self._ids |= _ids(entry)
            entries.append(entry)
        return entries


def is_main(result: ReportRow, own: bool) -> bool:
    """Whether a task is a main one of the page: one of the core, or with `own` one of a corpus with sources."""
    return result["task"].startswith(OWN_TASK) if own else bool(result["core"])


def task_score(result: ReportRow) -> str:
    """The score of the answers to a task as text: "this task: accuracy 53.0 %"."""
    return f"this task: {METRICS[result['metric']]} {number(result['metric'], result['score'])}"


def _ids(entry: ReportRow) -> set[str]:
    """The ids of an entry's sample, images and audio clips."""
    return {entry["id"], *(m["sha256"] for m in entry["media"])}


def _lines(run: Path, result: ReportRow, seed: int | None) -> list[dict[str, Any]]:
    """The answers to a task's samples that may be published, shuffled."""
    lines = [
        x
        for x in read(run / "eval" / f"{result['task']}.jsonl")
        if x["condition"] == "with" and (result["task"].startswith(OWN_TASK) or _publishable(x))
    ]
    random.Random(f"{seed} {result['task']}").shuffle(lines)
    return lines


def _publishable(x: ReportRow) -> bool:
    """Whether a sample may be published on a page that people commit and share."""
    if SHARE_ALIKE.search(x["licence"]):
        return False
    pictures = any(m["kind"] == "image" for m in x["media"])
    return not pictures or all(OUR_PICTURES.search(s) for s in re.split(r"[,;+]", x["source"]))


def _candidates(
    run: Path, result: ReportRow, lines: Sequence[ReportRow]
) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """Yield (entry of the page, its media) of samples, in the order of the lines, without those that are too large."""
    folder = run / "data" / result["corpus"] / "test"
    if not lines or not (folder / "manifest.json").exists():
        return
    ids = {x["id"] for x in lines}
    samples = {s.id: s for s in Shards(folder) if s.id in ids}
    for x in lines:
        if x["id"] not in samples:
            continue
        prompt = samples[x["id"]].prompt
        media = (p for m in prompt for p in m.parts if isinstance(p, Image | Audio))
        parts = [p.source for p in media if isinstance(p.source, bytes)]
        types = [mime for p in parts for magic, mime in MIME.items() if p.startswith(magic)]
        if (
            not len(types) == len(parts) == len(x["media"])
            or sum(map(len, parts)) > MAX_SAMPLE_MEDIA
        ):
            continue
        yield (
            {
                "task": result["task"],
                "id": x["id"],
                "title": result["title"],
                "modality": result["modality"],
                "question": question(prompt) or str(x["meta"].get("question", "")),
                "answer": x["answer"],
                "reference": x["reference"],
                "value": x["value"],
                "task_score": task_score(result),
                "source": x["source"],
                "licence": x["licence"],
                "media": [
                    medium(m["kind"], part, mime)
                    for m, mime, part in zip(x["media"], types, parts, strict=True)
                ],
            },
            parts,
        )

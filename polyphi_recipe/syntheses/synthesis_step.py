"""Syntheses as a step of a corpus: a teacher writes rows beside the documents, or instead of them.

>>> caption = Use(CAPTION, partial(Endpoint, "http://127.0.0.1:8000/v1", "some-model"))
>>> Corpus("taught", build, steps=lambda work: [SynthesisStep([caption], work.cache / "taught")])

With several syntheses each document goes to one of them, in turn. In the folder `work` are

    answers/                     all answers of the corpus
    refused.SPLIT-00000.jsonl    refused ones with their reasons, of each task
    accepted.SPLIT-00000.jsonl   the first rows of each synthesis, to read

The step counts, for the card of the corpus, documents (`total`), rows (`forwarded`) and for each synthesis the numbers
of `Count`.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Event
from typing import IO, Any, Literal

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample, row_hash, to_row
from polyphi_recipe.pipeline import documents
from polyphi_recipe.syntheses.synthesize import (
    Answers,
    Outcome,
    Synthesis,
    in_order,
    refusal_line,
    synthesize_one,
)
from polyphi_recipe.syntheses.teachers import Teacher

MAX_REFUSED = 64
"""[ours] Source samples in a row without an accepted row, after which a corpus gives up a synthesis: a teacher that
can't do it would spend a request for each of them."""
SHOWN = 10
"""Accepted rows of each synthesis in the file to read."""
PREFIX = "synthesis "
"""Prefix of the names of a synthesis's numbers in the statistics: synthesis NAME/NUMBER."""
DUPLICATE = "the same row as before"


@dataclass(frozen=True)
class Use:
    """A synthesis with the functions that open its teacher and its judge, called in each task. It applies to samples
    of `tasks` (`meta["task"]`), or of all."""

    synthesis: Synthesis
    teacher: Callable[[], Teacher]
    judge: Callable[[], Teacher] | None = None
    tasks: tuple[str, ...] = ()

    def applies(self, sample: Sample) -> bool:
        """Return whether the synthesis is for a sample."""
        task = not self.tasks or sample.meta.get("task") in self.tasks
        return task and self.synthesis.read(sample) is not None


@dataclass
class Count:
    """Numbers of a synthesis: requests that its rows needed, and those of them that were sent in this run, with their
    seconds added up; accepted rows; refused answers by reason; source samples for which no budget was left (`unsent`),
    and those that came after it was given up (`given_up`)."""

    requests: int = 0
    sent: int = 0
    seconds: float = 0.0
    accepted: int = 0
    unsent: int = 0
    given_up: int = 0
    refused: dict[str, int] = field(default_factory=dict)


def counts_of(step: Mapping[str, Any]) -> dict[str, Count]:
    """Return the numbers of each synthesis from those of a `SynthesisStep` (`pipeline.counts`)."""
    counts: dict[str, Count] = {}
    for key, value in step.items():
        if not key.startswith(PREFIX):
            continue
        synthesis, _, name = key.removeprefix(PREFIX).partition("/")
        count = counts.setdefault(synthesis, Count())
        if name.startswith("refused "):
            count.refused[name.removeprefix("refused ")] = value
        else:
            setattr(count, name, value)
    return counts


Sources = Literal["drop", "keep", "replace"]


class SynthesisStep(PipelineStep):  # type: ignore[misc]
    """Documents -> rows that teachers make of them. Of the `sources`, none stays ("drop"), each stays before the rows
    that are made of it ("keep"), or each for which none was made ("replace"). `requests` bounds the requests that are
    ever sent for `work`, `rows` the documents that the step yields, and `new_rows` those of them that teachers make:
    after these the other documents pass. `name` is that of the step in the card."""

    type = "SYNTHESIS"

    def __init__(
        self,
        uses: Sequence[Use],
        work: Path,
        *,
        sources: Sources = "drop",
        concurrency: int = 8,
        requests: int | None = None,
        rows: int | None = None,
        new_rows: int | None = None,
        name: str = "Teacher",
    ) -> None:
        self.name = name  # before `PipelineStep` opens the statistics of that name
        super().__init__()
        # Not the uses themselves: datatrove writes the fields of a step as JSON, and a synthesis names a type.
        self._uses = partial(tuple, uses)
        self._work, self._sources = Path(work), sources
        self._concurrency, self._requests = concurrency, requests
        self._rows, self._most = rows, new_rows

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield the documents of task `rank`."""
        remaining = iter(data)
        if (first := next(remaining, None)) is None:
            return
        split = first.metadata.get("split", "train")
        answers = Answers(self._work / "answers", self._requests)
        enough = Event()
        outcomes = self._outcomes(chain([first], remaining), answers, enough)
        yielded, rows = 0, defaultdict[str, set[str]](set)
        name = f"{split}-{rank:05d}.jsonl"
        try:
            with (
                _lines(self._work / f"refused.{name}") as refused,
                _lines(self._work / f"accepted.{name}") as accepted,
            ):
                for source, synthesis, outcome in outcomes:
                    self.stat_update("total")
                    most = None if self._most is None else self._most - sum(map(len, rows.values()))
                    samples = self._new_rows(synthesis, outcome, rows[synthesis], accepted)
                    new = list(islice(samples, most))
                    if most is not None and len(new) == most:
                        enough.set()
                    refused.writelines(map(refusal_line, outcome.refused))
                    refused.flush()
                    for refusal in outcome.refused:
                        self._count(synthesis, f"refused {reason_class(refusal.reason)}")
                    if self._sources == "keep" or (self._sources == "replace" and not new):
                        new.insert(0, documents.sample(source))
                    for sample in new:
                        if yielded == self._rows:
                            return
                        yielded += 1
                        self.stat_update("forwarded")
                        yield documents.document(sample, split)
        finally:
            outcomes.close()  # requests that were sent ahead of need are counted, too
            for synthesis, usage in answers.usage.items():
                self._count(synthesis, "requests", len(usage.keys))
                self._count(synthesis, "sent", usage.sent)
                self._count(synthesis, "seconds", round(usage.seconds, 3))

    def _count(self, synthesis: str, number: str, value: float = 1) -> None:
        self.stat_update(f"{PREFIX}{synthesis}/{number}", value=value)

    def _outcomes(
        self, docs: Iterator[Document], answers: Answers, enough: Event
    ) -> Generator[tuple[Document, str, Outcome], None, None]:
        """Yield the documents, each with the name of its synthesis and what was made of it, until `enough` is set: from
        then on with nothing. A synthesis is given up by the outcomes in their order, so that the result doesn't depend
        on the threads."""
        opened = [(use, use.teacher(), use.judge and use.judge()) for use in self._uses()]
        without_row, given_up = Counter[str](), set[str]()

        def work(numbered: tuple[int, Document]) -> tuple[Document, str, Outcome]:
            number, doc = numbered
            if enough.is_set():
                return doc, "", Outcome()
            sample = documents.sample(doc)
            turn = number % len(opened)
            for use, teacher, judge in (*opened[turn:], *opened[:turn]):
                if not use.applies(sample):
                    continue
                name = use.synthesis.name
                if name in given_up:
                    return doc, name, Outcome(applicable=True)
                return doc, name, synthesize_one(use.synthesis, sample, answers, teacher, judge)
            return doc, "", Outcome()

        for doc, name, outcome in in_order(work, enumerate(docs), self._concurrency):
            if enough.is_set():
                yield doc, "", Outcome()
                continue
            if name in given_up:
                self._count(name, "given_up")
                yield doc, name, Outcome()
                continue
            if outcome.unsent:
                self._count(name, "unsent")
            elif outcome.applicable:
                without_row[name] = 0 if outcome.samples else without_row[name] + 1
                if without_row[name] == MAX_REFUSED:
                    given_up.add(name)
            yield doc, name, outcome

    def _new_rows(
        self, synthesis: str, outcome: Outcome, rows: set[str], accepted: IO[str]
    ) -> Iterator[Sample]:
        """Yield the rows of an outcome that are none of `rows`, the hashes of earlier ones of the synthesis, and write
        the first ones to `accepted`."""
        for sample in outcome.samples:
            content = row_hash(to_row(replace(sample, id="", source="", meta={})))
            if content in rows:
                self._count(synthesis, f"refused {DUPLICATE}")
                continue
            rows.add(content)
            self._count(synthesis, "accepted")
            if len(rows) <= SHOWN:
                accepted.write(_readable(synthesis, sample))
                accepted.flush()
            yield sample


def _lines(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _readable(synthesis: str, sample: Sample) -> str:
    """Return a row as a line of JSON, its media as their names."""
    messages = [
        {
            "role": m.role,
            "text": " ".join(getattr(p, "text", f"<{type(p).__name__.lower()}>") for p in m.parts),
        }
        for m in sample.messages
    ]
    rejected = {"rejected": sample.meta["rejected"]} if "rejected" in sample.meta else {}
    line = {"synthesis": synthesis, "id": sample.id, "messages": messages, **rejected}
    return json.dumps(line, ensure_ascii=False) + "\n"


def reason_class(reason: str) -> str:
    """Return a reason without its details, to count by: "too short: 2 words, expected 50" -> "too short"; numbers
    become N."""
    return re.sub(r"-?\d[\d.,]*", "N", reason.partition(":")[0])

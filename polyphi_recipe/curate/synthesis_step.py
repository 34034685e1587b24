"""Syntheses as a step of a corpus: a teacher writes rows beside the documents, or instead of them.

>>> caption = Use(CAPTION, partial(Endpoint, "http://127.0.0.1:8000/v1", "some-model"))
>>> Corpus("taught", build, steps=lambda work: [SynthesisStep([caption], work.cache / "taught")])

With several syntheses each document goes to one of them, in turn. All answers of the corpus are in `work/answers`,
refused ones with their reasons in `work/refused.SPLIT-00000.jsonl`. The step counts, for the card of the corpus:
documents (`total`), requests with an answer, accepted rows, refused answers by reason, documents for which no budget
was left (`unsent`), and those that came after a synthesis was given up (`given_up`).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample, row_hash, to_row
from polyphi_recipe.curate import documents
from polyphi_recipe.curate.synthesize import (
    Answers,
    Outcome,
    Synthesis,
    in_order,
    refusal_line,
    synthesize_one,
)
from polyphi_recipe.curate.teachers import Teacher

MAX_REFUSED = 64
"""[ours] Source samples in a row without an accepted row, after which a corpus gives up a synthesis: a teacher that
can't do it would spend a request for each of them."""
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


Sources = Literal["drop", "keep", "replace"]


class SynthesisStep(PipelineStep):  # type: ignore[misc]
    """Documents -> rows that teachers make of them. Of the `sources`, none stays ("drop"), each stays before the rows
    that are made of it ("keep"), or each for which none was made ("replace"). `requests` bounds the requests that are
    ever sent for `work`, `rows` the documents that the step yields."""

    name, type = "Teacher", "SYNTHESIS"

    def __init__(
        self,
        uses: Sequence[Use],
        work: Path,
        *,
        sources: Sources = "drop",
        concurrency: int = 8,
        requests: int | None = None,
        rows: int | None = None,
    ) -> None:
        super().__init__()
        self._uses, self._work, self._sources = tuple(uses), Path(work), sources
        self._concurrency, self._requests, self._rows = concurrency, requests, rows

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield the documents of task `rank`."""
        remaining = iter(data)
        if (first := next(remaining, None)) is None:
            return
        split = first.metadata.get("split", "train")
        path = self._work / f"refused.{split}-{rank:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        answers = Answers(self._work / "answers", self._requests)
        outcomes = self._outcomes(chain([first], remaining), answers)
        yielded, rows = 0, set[str]()
        try:
            with path.open("w", encoding="utf-8", errors="backslashreplace") as refused:
                for source, outcome in outcomes:
                    self.stat_update("total")
                    new = list(self._new_rows(outcome, rows))
                    refused.writelines(map(refusal_line, outcome.refused))
                    refused.flush()
                    for reason in outcome.refused:
                        self.stat_update(f"refused_{reason_class(reason.reason)}")
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
            self.stat_update("requests", value=len(answers.keys))

    def _outcomes(
        self, docs: Iterator[Document], answers: Answers
    ) -> Iterator[tuple[Document, Outcome]]:
        """Yield the documents with what was made of them. A synthesis is given up by the outcomes in their order, so
        that the result doesn't depend on the threads."""
        opened = [(use, use.teacher(), use.judge and use.judge()) for use in self._uses]
        without_row, given_up = Counter[str](), set[str]()

        def work(numbered: tuple[int, Document]) -> tuple[Document, str, Outcome]:
            number, doc = numbered
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
            if name in given_up:
                self.stat_update("given_up")
                yield doc, Outcome()
                continue
            if outcome.unsent:
                self.stat_update("unsent")
            elif outcome.applicable:
                without_row[name] = 0 if outcome.samples else without_row[name] + 1
                if without_row[name] == MAX_REFUSED:
                    given_up.add(name)
            yield doc, outcome

    def _new_rows(self, outcome: Outcome, rows: set[str]) -> Iterator[Sample]:
        """Yield the rows of an outcome that are none of `rows`, and add them there."""
        for sample in outcome.samples:
            content = row_hash(to_row(replace(sample, id="", source="", meta={})))
            if content in rows:
                self.stat_update(f"refused_{DUPLICATE}")
                continue
            rows.add(content)
            self.stat_update("accepted")
            yield sample


def reason_class(reason: str) -> str:
    """Return a reason without its details, to count by: "too short: 2 words, expected 50" -> "too short"; numbers
    become N."""
    return re.sub(r"-?\d[\d.,]*", "N", reason.partition(":")[0])

"""A teacher makes samples: a prompt about each source sample, an answer, a verifier that may refuse it with a reason.

>>> teacher = Endpoint("http://127.0.0.1:8000/v1", "some-model", key_from="TEACHER_KEY")
>>> estimate(CAPTION, pictures, teacher, work, price=(0.15, 0.60)).cost_at_most          # asks nothing
>>> shards.write(out, synthesize(CAPTION, pictures, teacher, work), pipeline="...")

Every answer is kept under `work/answers` by the SHA-256 of who was asked and what. A run that was killed goes on
without asking anything twice, and ends with the same samples in the same order whatever the concurrency. What was
refused stands in `work/NAME.refused.jsonl`. The syntheses of the report are in polyphi/curate/syntheses.py.
"""

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from polyphi.curate import documents
from polyphi.curate.answers import Kept, told
from polyphi.curate.teachers import Teacher
from polyphi.data.shards import Sample
from polyphi.messages import Audio, Image, Message, SamplingParams, media
from polyphi.runtime.files import whole_file
from polyphi.services.endpoint import Rejected, rough_tokens

Json = Any
"""What an answer holds: a text, or the JSON value that a schema asked for."""
LIVELY = SamplingParams(max_tokens=1024, temperature=0.7, top_p=0.95)


@dataclass(frozen=True)
class Synthesis:
    """How samples become others.

    `read` gives the fields of the prompt, or None for a source sample that this synthesis has no use for; media of type
    `shows` go before the prompt. The answer is text, or JSON by `schema`; `items` takes it apart. Each item is judged
    by `verify` ("" or the reason to refuse it) and, where it passes, becomes a sample by `make`, which changes the
    source sample (id, source and lineage are seen to). An answer with no item that passes is asked for again with
    another seed, `tries` times in all (the report's rejection and resampling, 3.1.3).

    With `check`, each item is put to the teacher once more: `check` is filled with the fields of `read` and, as
    {answer}, the item in JSON; `agree` judges what comes back and gives its reason with what it found. Such a synthesis
    has one item in each answer."""

    name: str
    prompt: str
    read: Callable[[Sample], Mapping[str, Json] | None]
    make: Callable[[Sample, Json], Sample]
    verify: Callable[[Sample, Json], str] = lambda sample, item: ""
    schema: Mapping[str, Any] | None = None
    items: Callable[[Json], Sequence[Json]] = lambda answer: (answer,)
    shows: type[Image] | type[Audio] | None = None
    sampling: SamplingParams = LIVELY
    tries: int = 1
    check: str = ""
    agree: Callable[[Sample, Json, Json], tuple[str, dict[str, Json]]] = lambda *_: ("", {})


@dataclass(frozen=True)
class Request:
    """What a teacher is asked. `attempt` counts from 0; `checks` says that it is about an answer."""

    messages: tuple[Message, ...]
    sampling: SamplingParams
    schema: Mapping[str, Any] | None
    attempt: int = 0
    checks: bool = False

    def told(self, teacher: str) -> dict[str, Json]:
        """All that the answer depends on, media by their SHA-256. Guesses change no answer."""
        sampling = {key: getattr(self.sampling, key) for key in SamplingParams.__dataclass_fields__}
        sampling["draft"] = 0
        return {
            "teacher": teacher,
            "messages": told(self.messages),
            "sampling": sampling,
            "schema": self.schema,
        }


@dataclass(frozen=True)
class Refusal:
    """An answer that no sample was made of: `answer` is the item, or the whole text where it could not be read."""

    sample: str
    synthesis: str
    reason: str
    request: str
    answer: Json


@dataclass
class Tally:
    """How far a run is: source samples read, and of them passed over (nothing to ask); samples made, answers refused;
    requests sent to the teacher and those answered from disk."""

    read: int = 0
    passed_over: int = 0
    made: int = 0
    refused: int = 0
    asked: int = 0
    known: int = 0


class Answers:
    """A teacher's answers, from disk where they are there (`Kept`)."""

    def __init__(self, folder: Path, teacher: Teacher, tally: Tally) -> None:
        self.kept, self.teacher, self.tally = Kept(folder), teacher, tally
        self._counting = threading.Lock()
        # Equal requests wait for each other, others seldom do.
        self._asking = [threading.Lock() for _ in range(4096)]

    def key(self, request: Request) -> str:
        return self.kept.key(request.told(self.teacher.name))

    def known(self, key: str) -> dict[str, str] | None:
        """The answer on disk: `text` and `finish_reason`, or `rejected`."""
        found: dict[str, str] | None = self.kept.find(key)
        return found

    def ask(self, request: Request) -> dict[str, str]:
        """The answer from disk or, once, from the teacher."""
        key = self.key(request)
        with self._asking[int(key[:3], 16)]:
            answer, sent = self.known(key), False
            if answer is None:
                asked_for = request.told(self.teacher.name)
                answer, sent = self.kept.keep(key, asked_for, self._send(request)), True
        with self._counting:
            self.tally.asked += sent
            self.tally.known += not sent
        return answer

    def _send(self, request: Request) -> dict[str, str]:
        try:
            given = self.teacher.chat(
                request.messages, sampling=request.sampling, schema=request.schema
            )
        except Rejected as error:
            return {"rejected": str(error)}
        return {"text": given.text, "finish_reason": given.finish_reason}


@dataclass
class Outcome:
    """What became of one source sample."""

    made: list[Sample] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    asked: bool = False


def synthesize(
    synthesis: Synthesis,
    samples: Iterable[Sample],
    teacher: Teacher,
    work: Path,
    *,
    concurrency: int = 8,
    tell: Callable[[Tally], None] = lambda tally: None,
    aside: str = "",
) -> Iterator[Sample]:
    """Samples made of samples, in the order of their sources. `tell` hears of each source sample that is done; `aside`
    is another name for the file of what is refused, so that several runs may share their answers.

    An error that isn't about one request (no endpoint, a wrong key) ends the run; the answers so far are kept, and the
    same call goes on from there."""
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    answers = Answers(work / "answers", teacher, tally)
    kept = work / (aside or f"{synthesis.name}.refused.jsonl")
    with (
        whole_file(kept) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as refused,
    ):
        for outcome in _in_order(
            lambda s: _see_through(synthesis, s, answers), samples, concurrency
        ):
            for refusal in outcome.refused:
                refused.write(json.dumps(vars(refusal), ensure_ascii=False) + "\n")
            tally.read += 1
            tally.passed_over += not outcome.asked
            tally.made += len(outcome.made)
            tally.refused += len(outcome.refused)
            tell(tally)
            yield from outcome.made


def _in_order(
    work: Callable[[Sample], Outcome], samples: Iterable[Sample], concurrency: int
) -> Iterator[Outcome]:
    """`map` by threads: in order, and never far ahead of who reads."""
    pending: deque[Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(concurrency)
    try:
        for sample in samples:
            pending.append(pool.submit(work, sample))
            if len(pending) >= 4 * concurrency:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # what was asked already is still waited for, and kept


def _see_through(synthesis: Synthesis, sample: Sample, answers: Answers) -> Outcome:
    steps = _pursue(synthesis, sample, answers.key, answers.teacher.name)
    try:
        request = next(steps)
        while True:
            request = steps.send(answers.ask(request))
    except StopIteration as end:
        return end.value


def _pursue(
    synthesis: Synthesis, sample: Sample, key: Callable[[Request], str], teacher: str
) -> Generator[Request, dict[str, str], Outcome]:
    """One source sample's way: yields what to ask, is sent the answers, returns what became of it."""
    outcome = Outcome()
    fields = synthesis.read(sample)
    if fields is None:
        return outcome
    outcome.asked = True
    for attempt in range(synthesis.tries):
        request = first_request(synthesis, sample, fields, attempt)
        value, reason = _value(synthesis, (yield request))

        def refuse(reason: str, answer: Json, by: Request = request) -> None:
            outcome.refused.append(Refusal(sample.id, synthesis.name, reason, key(by), answer))

        if reason:
            refuse(reason, value)
            continue
        for number, item in enumerate(synthesis.items(value)):
            found: dict[str, Json] = {}
            if reason := synthesis.verify(sample, item):
                refuse(reason, item)
                continue
            if synthesis.check:
                again = _request(
                    synthesis, (), synthesis.check, _check_fields(fields, item), attempt
                )
                again = replace(again, checks=True)
                second, reason = _value(synthesis, (yield again))
                if not reason:
                    reason, found = synthesis.agree(sample, item, second)
                if reason:
                    refuse(reason, {"item": item, "check": second}, again)
                    continue
            step = {"step": synthesis.name, "teacher": teacher, "from": sample.id}
            step |= {"request": key(request), **found}
            outcome.made.append(_stamped(synthesis.make(sample, item), sample, number, step))
        if outcome.made:
            break
        if not synthesis.items(value):
            refuse("the answer is empty", value)
    return outcome


def first_request(
    synthesis: Synthesis, sample: Sample, fields: Mapping[str, Json], attempt: int = 0
) -> Request:
    """What is asked about a source sample."""
    shown = tuple(media(sample.messages, synthesis.shows)) if synthesis.shows else ()
    return _request(synthesis, shown, synthesis.prompt, fields, attempt)


def _request(
    synthesis: Synthesis,
    shown: tuple[Image | Audio, ...],
    prompt: str,
    fields: Mapping[str, Json],
    attempt: int,
) -> Request:
    sampling = replace(synthesis.sampling, seed=synthesis.sampling.seed + attempt)
    message = Message.user(*shown, prompt.strip().format(**fields))
    return Request((message,), sampling, synthesis.schema, attempt)


def _check_fields(fields: Mapping[str, Json], item: Json) -> dict[str, Json]:
    return {**fields, "answer": json.dumps(item, ensure_ascii=False)}


_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
_DECLINED = re.compile(r"\s*(?:i['’]m sorry|sorry,|i can(?:no|['’])t|i am unable|as an ai\b)", re.I)


def _value(synthesis: Synthesis, answer: Mapping[str, str]) -> tuple[Json, str]:
    """(what an answer holds, "" or the reason why it can't be used)."""
    if "rejected" in answer:
        return None, f"not answered: {answer['rejected']}"
    text, end = answer["text"].strip(), answer["finish_reason"]
    if end != "stop":
        why = "cut off at max_tokens" if end == "length" else f"ended by {end}"
        return text, f"the answer is {why}"
    if not text:
        return text, "the answer is empty"
    if _DECLINED.match(text):
        return text, "the teacher declined"
    if synthesis.schema is None:
        return text, "" if _is_unicode(text) else _HALF
    import jsonschema

    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        value = json.loads(text)
        jsonschema.validate(value, synthesis.schema)
    except json.JSONDecodeError:
        return text, "the answer is not JSON"
    except jsonschema.ValidationError as error:
        return text, f"the answer doesn't fit its schema: {error.message[:160]}"
    if not _is_unicode(json.dumps(value, ensure_ascii=False)):
        return text, _HALF
    return value, ""


_HALF = "the answer holds half a character"


def _is_unicode(text: str) -> bool:
    """Whether a text can be written; JSON can escape lone surrogates, which shards can't hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stamped(made: Sample, origin: Sample, number: int, step: dict[str, Json]) -> Sample:
    lineage = [*origin.meta.get("lineage", ()), step]
    return replace(
        made,
        id=f"{origin.id}/{step['step']}/{number}",
        source=f"{origin.source}, {step['step']} by {step['teacher']}",
        meta={**made.meta, "lineage": lineage},
    )


class Taught(PipelineStep):  # type: ignore[misc]
    """A synthesis as a step of a corpus (`Corpus.steps`): documents come, those that are made of them go on.

    `teacher` opens the teacher, in each task anew, since connections can't be sent to other processes: a limit of
    requests a minute is each task's own. All tasks share the answers under `work`; what task 3 of the training
    split refuses stands in `work/NAME.train-00003.refused.jsonl`."""

    name, type = "Taught", "SYNTHESIS"

    def __init__(
        self,
        synthesis: Synthesis,
        teacher: Callable[[], Teacher],
        work: Path,
        *,
        concurrency: int = 8,
    ) -> None:
        super().__init__()
        self._synthesis, self._teacher, self._work = synthesis, teacher, work
        self._concurrency = concurrency

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Documents of task `rank`."""
        coming = iter(data)
        if (first := next(coming, None)) is None:
            return
        split = first.metadata.get("split", "train")

        def read() -> Iterator[Sample]:
            for one in chain([first], coming):
                self.stat_update("total")
                yield documents.sample(one)

        last = Tally()

        def count(tally: Tally) -> None:
            nonlocal last
            self.stat_update("dropped_refused", value=tally.refused - last.refused)
            last = replace(tally)

        for made in synthesize(
            self._synthesis,
            read(),
            self._teacher(),
            self._work,
            concurrency=self._concurrency,
            tell=count,
            aside=f"{self._synthesis.name}.{split}-{rank:05d}.refused.jsonl",
        ):
            self.stat_update("forwarded")
            yield documents.document(made, split)


@dataclass(frozen=True)
class Estimate:
    """What a run would ask that isn't on disk yet. First requests are certain; more come where an answer is refused and
    asked for again, and for checks. Of an answer only its bound is known, `max_tokens`."""

    requests: int
    requests_at_most: int
    prompt_tokens: int
    prompt_tokens_at_most: int
    answer_tokens_at_most: int
    cost_at_most: float


def estimate(
    synthesis: Synthesis,
    samples: Iterable[Sample],
    teacher: Teacher,
    work: Path,
    *,
    price: tuple[float, float],
    count: Callable[[Sequence[Message]], int] = rough_tokens,
) -> Estimate:
    """Requests, tokens and cost of a run, without asking anything. `price` is for a million tokens of prompt and of
    answer; `count` gives the tokens of a prompt, as the endpoint's tokenizer has them."""
    answers = Answers(Path(work) / "answers", teacher, Tally())
    certain = certain_tokens = requests = tokens = 0
    seen: set[bytes] = set()
    for sample in samples:
        steps = _pursue(synthesis, sample, answers.key, teacher.name)
        try:
            request = next(steps)
            while (answer := answers.known(answers.key(request))) is not None:
                request = steps.send(answer)
        except StopIteration:
            continue
        key = bytes.fromhex(answers.key(request))
        if key in seen:
            continue
        seen.add(key)
        now = count(request.messages)
        certain, certain_tokens = certain + 1, certain_tokens + now
        further, check = synthesis.tries - request.attempt - 1, 0
        fields = synthesis.read(sample) or {}
        first = count(first_request(synthesis, sample, fields).messages)
        if synthesis.check:
            longest = _request(synthesis, (), synthesis.check, _check_fields(fields, ""), 0)
            check = count(longest.messages) + synthesis.sampling.max_tokens
        checks = (further + (not request.checks)) if synthesis.check else 0
        requests += 1 + further + checks
        tokens += now + further * first + checks * check
    answer_tokens = requests * synthesis.sampling.max_tokens
    cost = (tokens * price[0] + answer_tokens * price[1]) / 1e6
    return Estimate(certain, requests, certain_tokens, tokens, answer_tokens, cost)

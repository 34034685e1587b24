"""Synthesis of samples by a teacher model: a prompt per source sample, an answer, and a verifier that accepts or
refuses it.

>>> teacher = Endpoint("http://127.0.0.1:8000/v1", "some-model", key_from="TEACHER_KEY")
>>> estimate(CAPTION, pictures, teacher, work, price=(0.15, 0.60)).cost_at_most          # sends no request
>>> shards.write(out, synthesize(CAPTION, pictures, teacher, work), pipeline="...")

Every answer is stored in `work/answers` by the SHA-256 of the teacher's name and the request. A run that was killed
resumes without repeating a request, and gives the same samples in the same order at any concurrency. Refused answers
are written to `work/NAME.refused.jsonl`. The report's syntheses are in polyphi_recipe/curate/syntheses.py.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from polyphi.data.shards import Sample
from polyphi.messages import Audio, Image, Message, SamplingParams, media
from polyphi.runtime.files import whole_file
from polyphi.services.endpoint import RequestRejected, rough_tokens
from polyphi.services.response_cache import ResponseCache, messages_json, request_key
from polyphi_recipe.curate import documents
from polyphi_recipe.curate.teachers import Teacher

Json = Any
"""The value of an answer: a text, or a JSON value of the requested schema."""
TEACHER_SAMPLING = SamplingParams(max_tokens=1024, temperature=0.7, top_p=0.95)


@dataclass(frozen=True)
class Synthesis:
    """How a teacher turns source samples into new ones.

    `read` returns the fields of the prompt, or None to skip the source sample; media of type `shows` precede the
    prompt. The answer is text, or JSON by `schema`; `items` splits it. `verify` checks each item and returns "" or the
    reason for refusing it. `make` turns an accepted item and its source sample into a new sample (id, source and
    lineage are set by `synthesize`). If no item is accepted the request is repeated with another seed, `tries` times
    in all (the report's rejection and resampling, 3.1.3).

    With `check`, each item is sent to the teacher in a second prompt: `check` is filled with the fields of `read` and,
    as {answer}, the item in JSON; `agree` compares the reply and returns a reason ("" to accept) and fields for the
    lineage. Such a synthesis has one item per answer."""

    name: str
    prompt: str
    read: Callable[[Sample], Mapping[str, Json] | None]
    make: Callable[[Sample, Json], Sample]
    verify: Callable[[Sample, Json], str] = lambda sample, item: ""
    schema: Mapping[str, Any] | None = None
    items: Callable[[Json], Sequence[Json]] = lambda answer: (answer,)
    shows: type[Image] | type[Audio] | None = None
    sampling: SamplingParams = TEACHER_SAMPLING
    tries: int = 1
    check: str = ""
    agree: Callable[[Sample, Json, Json], tuple[str, dict[str, Json]]] = lambda *_: ("", {})


@dataclass(frozen=True)
class Request:
    """A request to a teacher. `attempt` counts from 0; `checks` marks the second prompt, which checks an answer."""

    messages: tuple[Message, ...]
    sampling: SamplingParams
    schema: Mapping[str, Any] | None
    attempt: int = 0
    checks: bool = False

    def as_json(self, teacher: str) -> dict[str, Json]:
        """Return all that the answer depends on, media as SHA-256. Draft tokens don't change an answer."""
        sampling = {key: getattr(self.sampling, key) for key in SamplingParams.__dataclass_fields__}
        sampling["draft"] = 0
        return {
            "teacher": teacher,
            "messages": messages_json(self.messages),
            "sampling": sampling,
            "schema": self.schema,
        }


@dataclass(frozen=True)
class Refusal:
    """A refused answer: `answer` is the item, or the whole text if it could not be parsed."""

    sample: str
    synthesis: str
    reason: str
    request: str
    answer: Json


@dataclass
class Tally:
    """Progress of a run: source samples read and skipped (`read` returned None); samples made and answers refused;
    requests sent to the teacher and requests answered from the cache."""

    read: int = 0
    skipped: int = 0
    samples: int = 0
    refused: int = 0
    sent: int = 0
    cached: int = 0


class Answers:
    """A teacher's answers, from the cache on disk where they are stored."""

    def __init__(self, folder: Path, teacher: Teacher) -> None:
        self.cache, self.teacher = ResponseCache(folder), teacher

    def key(self, request: Request) -> str:
        return request_key(request.as_json(self.teacher.name))

    def cached(self, key: str) -> dict[str, str] | None:
        """Return the cached answer (`text` and `finish_reason`, or `rejected`), or None."""
        return line["answer"] if (line := self.cache.find(key)) else None

    def answer(self, request: Request) -> dict[str, str]:
        """Return the cached answer, or send the request to the teacher and store the answer."""
        payload = request.as_json(self.teacher.name)
        answer: dict[str, str] = self.cache.get(payload, lambda: self._send(request))
        return answer

    def _send(self, request: Request) -> dict[str, str]:
        try:
            completion = self.teacher.chat(
                request.messages, sampling=request.sampling, schema=request.schema
            )
        except RequestRejected as error:
            return {"rejected": str(error)}
        return {"text": completion.text, "finish_reason": completion.finish_reason}


@dataclass
class Outcome:
    """Result for one source sample: new samples, refused answers, and whether the synthesis applies to it."""

    samples: list[Sample] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    applicable: bool = False


def synthesize(
    synthesis: Synthesis,
    samples: Iterable[Sample],
    teacher: Teacher,
    work: Path,
    *,
    concurrency: int = 8,
    progress: Callable[[Tally], None] = lambda tally: None,
    refused_name: str = "",
) -> Iterator[Sample]:
    """Yield new samples in the order of their sources. `progress` is called after each source sample; `refused_name`
    replaces the name of the file of refused answers, so that several runs may share one answer cache.

    An error that isn't about one request (no endpoint, a wrong key) ends the run; answers so far are stored, and the
    same call resumes from there."""
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    answers = Answers(work / "answers", teacher)
    refused_path = work / (refused_name or f"{synthesis.name}.refused.jsonl")
    with (
        whole_file(refused_path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as refused,
    ):
        for outcome in _in_order(
            lambda s: _synthesize_one(synthesis, s, answers), samples, concurrency
        ):
            for refusal in outcome.refused:
                refused.write(json.dumps(vars(refusal), ensure_ascii=False) + "\n")
            tally.read += 1
            tally.skipped += not outcome.applicable
            tally.samples += len(outcome.samples)
            tally.refused += len(outcome.refused)
            tally.sent, tally.cached = answers.cache.sent, answers.cache.cached
            progress(tally)
            yield from outcome.samples


def _in_order(
    work: Callable[[Sample], Outcome], samples: Iterable[Sample], concurrency: int
) -> Iterator[Outcome]:
    """Apply `work` in threads and yield results in order, at most `4 * concurrency` samples ahead of the consumer."""
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
        # Requests that are already sent are waited for and stored.
        pool.shutdown(cancel_futures=True)


def _synthesize_one(synthesis: Synthesis, sample: Sample, answers: Answers) -> Outcome:
    steps = _request_loop(synthesis, sample, answers.key, answers.teacher.name)
    try:
        request = next(steps)
        while True:
            request = steps.send(answers.answer(request))
    except StopIteration as end:
        return end.value


def _request_loop(
    synthesis: Synthesis, sample: Sample, key: Callable[[Request], str], teacher: str
) -> Generator[Request, dict[str, str], Outcome]:
    """Process one source sample: yields requests, receives their answers by `send`, returns the outcome."""
    outcome = Outcome()
    fields = synthesis.read(sample)
    if fields is None:
        return outcome
    outcome.applicable = True
    for attempt in range(synthesis.tries):
        request = first_request(synthesis, sample, fields, attempt)
        value, reason = _value(synthesis, (yield request))

        def refuse(reason: str, answer: Json, by: Request = request) -> None:
            outcome.refused.append(Refusal(sample.id, synthesis.name, reason, key(by), answer))

        if reason:
            refuse(reason, value)
            continue
        for number, item in enumerate(synthesis.items(value)):
            agreement: dict[str, Json] = {}
            if reason := synthesis.verify(sample, item):
                refuse(reason, item)
                continue
            if synthesis.check:
                check_request = _request(
                    synthesis, (), synthesis.check, _check_fields(fields, item), attempt
                )
                check_request = replace(check_request, checks=True)
                check_answer, reason = _value(synthesis, (yield check_request))
                if not reason:
                    reason, agreement = synthesis.agree(sample, item, check_answer)
                if reason:
                    refuse(reason, {"item": item, "check": check_answer}, check_request)
                    continue
            step = {"step": synthesis.name, "teacher": teacher, "from": sample.id}
            step |= {"request": key(request), **agreement}
            outcome.samples.append(
                _with_lineage(synthesis.make(sample, item), sample, number, step)
            )
        if outcome.samples:
            break
        if not synthesis.items(value):
            refuse("the answer is empty", value)
    return outcome


def first_request(
    synthesis: Synthesis, sample: Sample, fields: Mapping[str, Json], attempt: int = 0
) -> Request:
    """Return the first request about a source sample."""
    parts = tuple(media(sample.messages, synthesis.shows)) if synthesis.shows else ()
    return _request(synthesis, parts, synthesis.prompt, fields, attempt)


def _request(
    synthesis: Synthesis,
    parts: tuple[Image | Audio, ...],
    prompt: str,
    fields: Mapping[str, Json],
    attempt: int,
) -> Request:
    sampling = replace(synthesis.sampling, seed=synthesis.sampling.seed + attempt)
    message = Message.user(*parts, prompt.strip().format(**fields))
    return Request((message,), sampling, synthesis.schema, attempt)


def _check_fields(fields: Mapping[str, Json], item: Json) -> dict[str, Json]:
    return {**fields, "answer": json.dumps(item, ensure_ascii=False)}


_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
_DECLINED = re.compile(r"\s*(?:i['’]m sorry|sorry,|i can(?:no|['’])t|i am unable|as an ai\b)", re.I)


def _value(synthesis: Synthesis, answer: Mapping[str, str]) -> tuple[Json, str]:
    """Return (the answer's value, "" or the reason why it can't be used)."""
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
        return text, "" if _is_unicode(text) else _LONE_SURROGATE
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
        return text, _LONE_SURROGATE
    return value, ""


_LONE_SURROGATE = "the answer holds a lone surrogate"


def _is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode; JSON can escape lone surrogates, which shards can't hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_lineage(new: Sample, origin: Sample, number: int, step: dict[str, Json]) -> Sample:
    lineage = [*origin.meta.get("lineage", ()), step]
    return replace(
        new,
        id=f"{origin.id}/{step['step']}/{number}",
        source=f"{origin.source}, {step['step']} by {step['teacher']}",
        meta={**new.meta, "lineage": lineage},
    )


class SynthesisStep(PipelineStep):  # type: ignore[misc]
    """A synthesis as a step of a corpus (`Corpus.steps`): replaces documents by those that the teacher makes of them.

    `teacher` is called in each task, because connections can't be sent to other processes; a limit of requests per
    minute therefore applies per task. All tasks share the answers under `work`; refused answers of task 3 of the
    training split are written to `work/NAME.train-00003.refused.jsonl`."""

    name, type = "SynthesisStep", "SYNTHESIS"

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
        """Yield the documents of task `rank`."""
        remaining = iter(data)
        if (first := next(remaining, None)) is None:
            return
        split = first.metadata.get("split", "train")

        def read() -> Iterator[Sample]:
            for doc in chain([first], remaining):
                self.stat_update("total")
                yield documents.sample(doc)

        previous = Tally()

        def on_progress(tally: Tally) -> None:
            nonlocal previous
            self.stat_update("dropped_refused", value=tally.refused - previous.refused)
            previous = replace(tally)

        for new in synthesize(
            self._synthesis,
            read(),
            self._teacher(),
            self._work,
            concurrency=self._concurrency,
            progress=on_progress,
            refused_name=f"{self._synthesis.name}.{split}-{rank:05d}.refused.jsonl",
        ):
            self.stat_update("forwarded")
            yield documents.document(new, split)


@dataclass(frozen=True)
class Estimate:
    """Requests, tokens and cost of a run, without the cached answers. First requests are certain; further ones follow
    from refused answers and checks. The length of an answer is bounded by `max_tokens`."""

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
    """Return requests, tokens and cost of a run, without sending a request. `price` is per million tokens of prompt and
    of answer; `count` returns the tokens of a prompt, by the endpoint's tokenizer."""
    answers = Answers(Path(work) / "answers", teacher)
    certain = certain_tokens = requests = tokens = 0
    counted: set[bytes] = set()
    for sample in samples:
        steps = _request_loop(synthesis, sample, answers.key, teacher.name)
        try:
            request = next(steps)
            while (answer := answers.cached(answers.key(request))) is not None:
                request = steps.send(answer)
        except StopIteration:
            continue
        key = bytes.fromhex(answers.key(request))
        if key in counted:
            continue
        counted.add(key)
        prompt_tokens = count(request.messages)
        certain, certain_tokens = certain + 1, certain_tokens + prompt_tokens
        further, check = synthesis.tries - request.attempt - 1, 0
        fields = synthesis.read(sample) or {}
        first = count(first_request(synthesis, sample, fields).messages)
        if synthesis.check:
            longest = _request(synthesis, (), synthesis.check, _check_fields(fields, ""), 0)
            check = count(longest.messages) + synthesis.sampling.max_tokens
        checks = (further + (not request.checks)) if synthesis.check else 0
        requests += 1 + further + checks
        tokens += prompt_tokens + further * first + checks * check
    answer_tokens = requests * synthesis.sampling.max_tokens
    cost = (tokens * price[0] + answer_tokens * price[1]) / 1e6
    return Estimate(certain, requests, certain_tokens, tokens, answer_tokens, cost)

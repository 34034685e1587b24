"""Synthesis of samples by a teacher model: a prompt per source sample, an answer, and a verifier that accepts or
refuses it.

>>> teacher = Endpoint("http://127.0.0.1:8000/v1", "some-model", key_from="TEACHER_KEY")
>>> estimate(CAPTION, pictures, teacher, work, price=(0.15, 0.60)).cost_at_most          # sends no request
>>> shards.write(out, synthesize(CAPTION, pictures, teacher, work), pipeline="...")

Every answer is stored in `work/answers` by the SHA-256 of the teacher's name and the request. A run that was killed
resumes without repeating a request, and gives the same samples in the same order at any concurrency. Refused answers
are written to `work/NAME.refused.jsonl`. The report's syntheses are in polyphi_recipe/syntheses/syntheses.py and the
modules that it names; a recipe file's teachers use them (polyphi_recipe/graph/teacher_rows.py).
"""

import hashlib
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from polyphi.data.shards import Sample
from polyphi.runtime.files import whole_file
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image
from polyphi.types.sampling import SamplingParams
from polyphi_eval.services.endpoint import RequestRejected, rough_tokens
from polyphi_eval.services.response_cache import ResponseCache, messages_json, request_key
from polyphi_recipe.syntheses.teachers import Teacher

T = TypeVar("T")
U = TypeVar("U")
Json = Any
"""The value of an answer: a text, or a JSON value of the requested schema."""
TEACHER_SAMPLING = SamplingParams(max_tokens=1024, temperature=0.7, top_p=0.95)


@dataclass(frozen=True)
class Check:
    """A further prompt about an item, where rules can't tell whether it is right: the teacher is asked again, or a
    judge.

    `prompt` is filled with the fields of `read`, the values of the item ({item[question]}) and {answer}, the item in
    JSON; media of `shows` precede it. `agree` compares the reply, a text or JSON by `schema`, with the item, and
    returns a reason ("" to accept) and fields for the lineage. With `by_judge` the reply is that of the judge, where
    there is one."""

    prompt: str
    agree: Callable[[Sample, Json, Json], tuple[str, dict[str, Json]]]
    schema: Mapping[str, Any] | None = None
    shows: Callable[[Sample, Json], Sequence[Image | Audio]] = lambda sample, item: ()
    by_judge: bool = False


@dataclass(frozen=True)
class Synthesis:
    """The rule by which a teacher turns source samples into new ones.

    `read` returns the fields of the prompt, or None to skip the source sample; media of type `shows` precede the
    prompt. The answer is text, or JSON by `schema`; `items` splits it. `verify` checks each item and returns "" or the
    reason for refusing it. `make` turns an accepted item and its source sample into a new sample (id, source and
    lineage are set by `synthesize`). If no item is accepted the request is repeated with another seed, `tries` times
    in all (the report's rejection and resampling, 3.1.3).

    An item that `verify` accepts must pass all `checks`, in order; of an answer with more than `most_checked` items,
    the first are checked and the others left out. With `varied` the seed depends on the source sample, for prompts that
    don't quote it: equal requests have equal answers."""

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
    checks: tuple[Check, ...] = ()
    most_checked: int = 1
    varied: bool = False


@dataclass(frozen=True)
class SynthesisRequest:
    """A request to a teacher, or, with `by_judge`, to the judge. `attempt` counts from 0; `check` is the number of the
    request among those that check the answers of an attempt, 0 for the first prompt."""

    messages: tuple[Message, ...]
    sampling: SamplingParams
    schema: Mapping[str, Any] | None
    attempt: int = 0
    check: int = 0
    by_judge: bool = False

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


class BudgetSpent(Exception):
    """No further request may be sent."""


@dataclass
class Usage:
    """Requests of a run by key, how many of them were sent (the others had answers of an earlier run), and the seconds
    that those took, added up."""

    keys: set[str] = field(default_factory=set)
    sent: int = 0
    seconds: float = 0.0


class Answers:
    """Answers of teachers, from the cache on disk where they are stored. With `requests`, no more than so many are ever
    sent: the cache counts those of earlier runs, too. `usage` has the requests of this run by the name of their
    synthesis."""

    def __init__(self, folder: Path, requests: int | None = None) -> None:
        self.cache, self.requests = ResponseCache(folder), requests
        self.usage: defaultdict[str, Usage] = defaultdict(Usage)
        self._in_flight: set[str] = set()
        self._lock = Lock()

    def key(self, request: SynthesisRequest, teacher: Teacher) -> str:
        return request_key(request.as_json(teacher.name))

    def cached(self, key: str) -> dict[str, str] | None:
        """Return the cached answer (`text` and `finish_reason`, or `rejected`), or None."""
        return line["answer"] if (line := self.cache.find(key)) else None

    def answer(self, request: SynthesisRequest, teacher: Teacher, synthesis: str) -> dict[str, str]:
        """Return the cached answer, or send the request of a synthesis to the teacher and store the answer. Raises
        BudgetSpent where no further request may be sent."""
        payload = request.as_json(teacher.name)
        key = request_key(payload)
        with self._lock:
            usage = self.usage[synthesis]

        def respond() -> dict[str, str]:
            start = time.monotonic()
            answer = _send(request, teacher)
            with self._lock:
                usage.sent, usage.seconds = usage.sent + 1, usage.seconds + time.monotonic() - start
            return answer

        self._reserve(key)
        try:
            answer: dict[str, str] = self.cache.get(payload, respond)
        finally:
            with self._lock:
                self._in_flight.discard(key)
        with self._lock:
            usage.keys.add(key)
        return answer

    def _reserve(self, key: str) -> None:
        with self._lock:
            if self.cache.find(key) is None:
                unstored = sum(self.cache.find(other) is None for other in self._in_flight)
                spent = self.requests is not None and len(self.cache) + unstored >= self.requests
                if spent and key not in self._in_flight:
                    raise BudgetSpent
                self._in_flight.add(key)


def _send(request: SynthesisRequest, teacher: Teacher) -> dict[str, str]:
    try:
        completion = teacher.chat(
            request.messages, sampling=request.sampling, schema=request.schema
        )
    except RequestRejected as error:
        return {"rejected": str(error)}
    return {"text": completion.text, "finish_reason": completion.finish_reason}


@dataclass
class Outcome:
    """Result for one source sample: new samples, refused answers, whether the synthesis applies to it, and whether the
    budget of requests was spent before its end."""

    samples: list[Sample] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    applicable: bool = False
    unsent: bool = False


def synthesize(
    synthesis: Synthesis,
    samples: Iterable[Sample],
    teacher: Teacher,
    work: Path,
    *,
    judge: Teacher | None = None,
    concurrency: int = 8,
    progress: Callable[[Tally], None] = lambda tally: None,
    refused_name: str = "",
) -> Iterator[Sample]:
    """Yield new samples in the order of their sources. `judge` judges the teacher's answers, by default the teacher
    itself does. `progress` is called after each source sample; `refused_name` replaces the name of the file of refused
    answers, so that several runs may share one answer cache.

    An error that isn't about one request (no endpoint, a wrong key) ends the run; answers so far are stored, and the
    same call resumes from there."""
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    answers = Answers(work / "answers")
    refused_path = work / (refused_name or f"{synthesis.name}.refused.jsonl")
    with (
        whole_file(refused_path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as refused,
    ):
        for outcome in in_order(
            lambda s: synthesize_one(synthesis, s, answers, teacher, judge), samples, concurrency
        ):
            refused.writelines(map(refusal_line, outcome.refused))
            tally.read += 1
            tally.skipped += not outcome.applicable
            tally.samples += len(outcome.samples)
            tally.refused += len(outcome.refused)
            tally.sent, tally.cached = answers.cache.sent, answers.cache.cached
            progress(tally)
            yield from outcome.samples


def refusal_line(refusal: Refusal) -> str:
    """Return a refused answer as a line of JSON."""
    return json.dumps(vars(refusal), ensure_ascii=False) + "\n"


def in_order(work: Callable[[T], U], items: Iterable[T], concurrency: int) -> Iterator[U]:
    """Apply `work` in threads and yield results in order, at most `4 * concurrency` items ahead of the consumer."""
    pending: deque[Future[U]] = deque()
    pool = ThreadPoolExecutor(concurrency)
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= 4 * concurrency:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Requests that are already sent are waited for and stored.
        pool.shutdown(cancel_futures=True)


def synthesize_one(
    synthesis: Synthesis,
    sample: Sample,
    answers: Answers,
    teacher: Teacher,
    judge: Teacher | None = None,
) -> Outcome:
    """Return the result for one source sample."""
    outcome, addressee = Outcome(), partial(_addressee, teacher, judge)
    steps = _request_loop(
        synthesis, sample, outcome, lambda r: answers.key(r, addressee(r)), teacher.name
    )
    try:
        request = next(steps)
        while True:
            request = steps.send(answers.answer(request, addressee(request), synthesis.name))
    except StopIteration:
        pass
    except BudgetSpent:
        outcome.unsent = True
    return outcome


def _addressee(teacher: Teacher, judge: Teacher | None, request: SynthesisRequest) -> Teacher:
    """Return who answers a request."""
    return judge if request.by_judge and judge is not None else teacher


def _request_loop(
    synthesis: Synthesis,
    sample: Sample,
    outcome: Outcome,
    key: Callable[[SynthesisRequest], str],
    teacher: str,
) -> Generator[SynthesisRequest, dict[str, str], None]:
    """Process one source sample: yields requests, receives their answers by `send`, fills the outcome."""
    fields = synthesis.read(sample)
    if fields is None:
        return
    outcome.applicable = True
    for attempt in range(synthesis.tries):
        request = first_request(synthesis, sample, fields, attempt)
        value, reason = _value(synthesis.schema, (yield request))

        def refuse(reason: str, answer: Json, by: SynthesisRequest = request) -> None:
            outcome.refused.append(Refusal(sample.id, synthesis.name, reason, key(by), answer))

        if reason:
            refuse(reason, value)
            continue
        items, checked = synthesis.items(value), 0
        chosen = items[: synthesis.most_checked] if synthesis.checks else items
        for number, item in enumerate(chosen):
            reason, agreement = synthesis.verify(sample, item), dict[str, Json]()
            if reason:
                refuse(reason, item)
                continue
            for check in synthesis.checks:
                checked += 1
                check_request = _check_request(synthesis, check, sample, item, request, checked)
                reply, reason = _value(check.schema, (yield check_request))
                if not reason:
                    reason, agreed = check.agree(sample, item, reply)
                    agreement |= agreed
                if reason:
                    refuse(reason, {"item": item, "check": reply}, check_request)
                    break
            if reason:
                continue
            step = {"step": synthesis.name, "teacher": teacher, "from": sample.id}
            step |= {"request": key(request), **agreement}
            outcome.samples.append(
                _with_lineage(synthesis.make(sample, item), sample, number, step)
            )
        if outcome.samples:
            break
        if not items:
            refuse("the answer is empty", value)


def first_request(
    synthesis: Synthesis, sample: Sample, fields: Mapping[str, Json], attempt: int = 0
) -> SynthesisRequest:
    """Return the first request about a source sample."""
    parts = media(sample.messages, synthesis.shows) if synthesis.shows else ()
    sampling = replace(synthesis.sampling, seed=_seed(synthesis, sample, attempt))
    message = Message.user(*parts, synthesis.prompt.strip().format(**fields))
    return SynthesisRequest((message,), sampling, synthesis.schema, attempt)


def _seed(synthesis: Synthesis, sample: Sample, attempt: int) -> int:
    """Return the seed of an attempt, below 2**31."""
    first = synthesis.sampling.seed + attempt
    digest = hashlib.sha256(sample.id.encode()).digest()
    return (int.from_bytes(digest[:4]) + first) % 2**31 if synthesis.varied else first


def _check_request(
    synthesis: Synthesis,
    check: Check,
    sample: Sample,
    item: Json,
    first: SynthesisRequest,
    number: int,
) -> SynthesisRequest:
    fields = {**(synthesis.read(sample) or {}), "item": item}
    text = check.prompt.strip().format(**fields, answer=json.dumps(item, ensure_ascii=False))
    message = Message.user(*check.shows(sample, item), text)
    return SynthesisRequest(
        (message,), first.sampling, check.schema, first.attempt, number, check.by_judge
    )


_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
_DECLINED = re.compile(r"\s*(?:i['’]m sorry|sorry,|i can(?:no|['’])t|i am unable|as an ai\b)", re.I)


def _value(schema: Mapping[str, Any] | None, answer: Mapping[str, str]) -> tuple[Json, str]:
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
    if schema is None:
        return text, "" if _is_unicode(text) else _LONE_SURROGATE
    import jsonschema

    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        value = json.loads(text)
        jsonschema.validate(value, schema)
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
    judge: Teacher | None = None,
    count: Callable[[Sequence[Message]], int] = rough_tokens,
) -> Estimate:
    """Return requests, tokens and cost of a run, without sending a request. `price` is per million tokens of prompt and
    of answer; `count` returns the tokens of a prompt, by the endpoint's tokenizer."""
    answers, addressee = Answers(Path(work) / "answers"), partial(_addressee, teacher, judge)
    certain = certain_tokens = requests = tokens = 0
    counted: set[bytes] = set()
    of_attempt = synthesis.most_checked * len(synthesis.checks)
    for sample in samples:
        steps = _request_loop(
            synthesis, sample, Outcome(), lambda r: answers.key(r, addressee(r)), teacher.name
        )
        try:
            request = next(steps)
            while (answer := answers.cached(answers.key(request, addressee(request)))) is not None:
                request = steps.send(answer)
        except StopIteration:
            continue
        key = bytes.fromhex(answers.key(request, addressee(request)))
        if key in counted:
            continue
        counted.add(key)
        prompt_tokens = count(request.messages)
        certain, certain_tokens = certain + 1, certain_tokens + prompt_tokens
        further = synthesis.tries - request.attempt - 1
        checks = of_attempt * (1 + further) - request.check
        fields = synthesis.read(sample) or {}
        first = count(first_request(synthesis, sample, fields).messages)
        # A check quotes at most the fields and the answer, and shows at most the sample's media.
        longest = count(sample.messages) + first + synthesis.sampling.max_tokens
        longest += max((len(check.prompt) for check in synthesis.checks), default=0)
        requests += 1 + further + checks
        tokens += prompt_tokens + further * first + checks * longest
    answer_tokens = requests * synthesis.sampling.max_tokens
    cost = (tokens * price[0] + answer_tokens * price[1]) / 1e6
    return Estimate(certain, requests, certain_tokens, tokens, answer_tokens, cost)

"""Synthesis by a teacher: no request is repeated, no refused answer is lost, results are deterministic."""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from polyphi.data import shards
from polyphi.data.shards import Sample, Shards
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi_eval.services.endpoint import Endpoint
from polyphi_eval.services.response_cache import whole_lines
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.pipeline.corpus import build as build_corpus
from polyphi_recipe.pipeline.pipeline import counts
from polyphi_recipe.syntheses.syntheses import CAPTION
from polyphi_recipe.syntheses.synthesis_step import SynthesisStep, Use, counts_of
from polyphi_recipe.syntheses.synthesize import Synthesis, Tally, estimate, synthesize
from polyphi_recipe.syntheses.teachers import Command
from tests.fixtures import forked
from tests.fixtures.replay import Replay

N = 60
ECHO = Synthesis(
    "echo",
    "Say number {number} in words.",
    read=lambda sample: {"number": sample.meta["number"]} if sample.meta["number"] != 5 else None,
    make=lambda sample, text: replace(
        sample, messages=(*sample.prompt, Message.assistant(text)), meta={}
    ),
    verify=lambda sample, text: "uneven" if sample.meta["number"] % 3 == 1 else "",
)
CHATS = {f"number {i} ": f"number {i} in words" for i in range(N)}


def sources(n: int = N) -> list[Sample]:
    return [
        Sample(
            f"s{i}",
            (Message.user(f"What is {i}?"), Message.assistant("?")),
            "numbers",
            "CC0-1.0",
            {"number": i, "lineage": [{"step": "count"}]},
        )
        for i in range(n)
    ]


def teacher(replay: Replay, **settings: object) -> Endpoint:
    return Endpoint(replay.where, "m", sleep=lambda seconds: None, **settings)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(work: Path) -> bytes:
    return (work / "echo.refused.jsonl").read_bytes()


def stored(work: Path) -> dict[str, Any]:
    return {line["key"]: line for line in whole_lines(work / "answers" / "answers.jsonl")}


def written(folder: Path, samples: object) -> dict[str, bytes]:
    shards.write(folder, samples, pipeline="test")
    return files(folder)


def test_samples_carry_what_made_them(tmp_path: Path) -> None:
    tallies: list[Tally] = []
    with Replay(CHATS) as replay:
        samples = list(
            synthesize(
                ECHO,
                sources(9),
                teacher(replay),
                tmp_path,
                progress=lambda t: tallies.append(replace(t)),
            )
        )
    assert [s.id for s in samples] == [f"s{i}/echo/0" for i in (0, 2, 3, 6, 8)]
    assert [s.answer for s in samples] == [f"number {i} in words" for i in (0, 2, 3, 6, 8)]
    assert {(s.source, s.licence) for s in samples} == {("numbers, echo by m", "CC0-1.0")}
    count, step = samples[1].meta["lineage"]
    assert count == {"step": "count"} and step["step"] == "echo" and step["from"] == "s2"
    answer = stored(tmp_path)[step["request"]]
    assert answer["answer"] == {"text": "number 2 in words", "finish_reason": "stop"}
    assert answer["request"]["messages"][0]["parts"] == [{"text": "Say number 2 in words."}]
    refused = [json.loads(x) for x in (tmp_path / "echo.refused.jsonl").read_text().splitlines()]
    assert [(r["sample"], r["reason"], r["answer"]) for r in refused] == [
        (f"s{i}", "uneven", f"number {i} in words") for i in (1, 4, 7)
    ]
    assert tallies[-1] == Tally(read=9, skipped=1, samples=5, refused=3, sent=8, cached=0)


def test_the_same_bytes_whatever_the_concurrency_and_the_troubles(tmp_path: Path) -> None:
    results = []
    for concurrency in (1, 3, 16):
        work, out = tmp_path / f"work{concurrency}", tmp_path / f"out{concurrency}"
        with Replay(CHATS, seconds=0.001) as replay:
            replay.faults = [None, 500, 0.05, "cut", None, "half", (429, {"Retry-After": "1"}, b"")]
            samples = synthesize(ECHO, sources(), teacher(replay), work, concurrency=concurrency)
            results.append((written(out, samples), refused(work), stored(work)))
    assert results[0] == results[1] == results[2]
    assert len(results[0][2]) == N - 1  # one answer each except for number 5


def test_nothing_is_asked_twice_after_a_kill(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.recipe.syntheses.test_synthesize import ECHO, sources
from polyphi_recipe.syntheses.synthesize import synthesize
from polyphi_eval.services.endpoint import Endpoint
list(synthesize(ECHO, sources(), Endpoint(sys.argv[1], "m"), Path(sys.argv[2]), concurrency=3))
"""
    with Replay(CHATS, seconds=0.05) as replay:
        run = forked.start(program, replay.where, str(tmp_path / "a"))
        while len(replay.requests) < 20:
            assert run.exitcode is None, "the run ended before it could be killed"
            time.sleep(0.005)
        run.kill()
        run.join()
        assert run.exitcode == -signal.SIGKILL
        time.sleep(0.1)
        cached_prompts = {
            line["request"]["messages"][0]["parts"][0]["text"]
            for line in stored(tmp_path / "a").values()
        }
        before = len(replay.requests)
        assert before - 3 <= len(cached_prompts) < N - 1  # all but the requests in flight
        after = written(
            tmp_path / "out", synthesize(ECHO, sources(), teacher(replay), tmp_path / "a")
        )
        again = {body["messages"][0]["content"] for body in replay.requests[before:]}
        assert not again & cached_prompts and len(again) == N - 1 - len(cached_prompts)
        assert len(replay.requests) - before == len(again)
        before = len(replay.requests)
        written(tmp_path / "third", synthesize(ECHO, sources(), teacher(replay), tmp_path / "a"))
        assert len(replay.requests) == before
        whole = written(
            tmp_path / "whole", synthesize(ECHO, sources(), teacher(replay), tmp_path / "b")
        )
    assert after == whole == files(tmp_path / "third")
    assert refused(tmp_path / "a") == refused(tmp_path / "b") != b""


def test_equal_sources_are_asked_about_once(tmp_path: Path) -> None:
    twins = [replace(s, id=f"{s.id}-{k}") for k in range(4) for s in sources(3)]
    with Replay(CHATS, seconds=0.02) as replay:
        list(synthesize(ECHO, twins, teacher(replay), tmp_path, concurrency=8))
        assert max(Counter(b["messages"][0]["content"] for b in replay.requests).values()) == 1


def test_sources_are_read_as_they_are_needed(tmp_path: Path) -> None:
    read: list[str] = []

    def endless() -> Iterator[Sample]:
        while True:
            for sample in sources():
                read.append(sample.id)
                yield sample

    with Replay(CHATS) as replay:
        samples = synthesize(ECHO, endless(), teacher(replay), tmp_path, concurrency=2)
        assert len([next(samples) for _ in range(30)]) == 30
        samples.close()
    assert len(read) <= 2 * 30 + 4 * 2


def test_another_model_or_setting_is_asked_anew(tmp_path: Path) -> None:
    with Replay(CHATS) as replay:
        for number, settings in enumerate(({}, {"extra": {"effort": "low"}}, {})):
            list(synthesize(ECHO, sources(3), teacher(replay, **settings), tmp_path))
            assert len(replay.requests) == (3, 6, 6)[number]
        other = replace(ECHO, sampling=SamplingParams(temperature=0.1))
        list(synthesize(other, sources(3), teacher(replay), tmp_path))
        assert len(replay.requests) == 9


def test_an_endpoint_that_goes_away_ends_the_run_and_keeps_what_came(tmp_path: Path) -> None:
    with Replay(CHATS) as replay:
        replay.faults = [None] * 10 + [500] * 100
        with pytest.raises(ValueError, match="answered 500"):
            list(synthesize(ECHO, sources(), teacher(replay), tmp_path, concurrency=2))
        assert not (tmp_path / "echo.refused.jsonl").exists()
        replay.faults.clear()
        replay.requests.clear()
        list(synthesize(ECHO, sources(), teacher(replay), tmp_path))
        assert len(replay.requests) == N - 1 - 10


FORM = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
JSON = replace(
    ECHO, schema=FORM, items=lambda a: [a["word"]] if a["word"] else [], verify=lambda *_: ""
)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "the answer is empty"),
        ("I'm sorry, but no.", "the teacher declined"),
        ("one", "the answer is not JSON"),
        ('{"word": 1}', "the answer doesn't fit its schema: 1 is not of type 'string'"),
        ('{"word": "\\ud800"}', "the answer holds a lone surrogate"),
        ({"word": ""}, "the answer is empty"),
    ],
)
def test_what_cannot_be_used_is_kept_with_its_reason(
    answer: str, reason: str, tmp_path: Path
) -> None:
    with Replay({"number 0 ": answer}) as replay:
        assert not list(synthesize(JSON, sources(1), teacher(replay), tmp_path))
    [refused] = [json.loads(x) for x in (tmp_path / "echo.refused.jsonl").read_text().splitlines()]
    assert refused["reason"] == reason and refused["sample"] == "s0"


def test_fenced_json_is_read(tmp_path: Path) -> None:
    with Replay({"number 0 ": '```json\n{"word": "zero"}\n```'}) as replay:
        [sample] = synthesize(JSON, sources(1), teacher(replay), tmp_path)
    assert sample.answer == "zero"


def test_a_request_that_is_rejected_or_cut_off_is_one_refusal(tmp_path: Path) -> None:
    cut = {"choices": [{"message": {"content": "numb"}, "finish_reason": "length"}]}
    with Replay({"number 0 ": "zero"}) as replay:
        replay.faults = [(200, {}, json.dumps(cut).encode())]
        assert not list(synthesize(ECHO, sources(3), teacher(replay), tmp_path, concurrency=1))
        assert len(replay.requests) == 3
        list(synthesize(ECHO, sources(3), teacher(replay), tmp_path))
        assert len(replay.requests) == 3
    reasons = [
        json.loads(line)["reason"]
        for line in (tmp_path / "echo.refused.jsonl").read_text().splitlines()
    ]
    assert reasons[0] == "the answer is cut off at max_tokens"
    assert all("nothing is recorded for" in r and r.startswith("not answered") for r in reasons[1:])


def test_a_refused_answer_is_asked_for_again_with_another_seed(tmp_path: Path) -> None:
    patient = replace(ECHO, tries=3, verify=lambda s, text: "" if text == "right" else "wrong")
    with Replay({"number 0 ": ["no", "right"], "number 1 ": ["a", "b", "c"]}) as replay:
        [sample] = synthesize(patient, sources(2), teacher(replay), tmp_path, concurrency=1)
        assert [b["seed"] for b in replay.requests] == [0, 1, 0, 1, 2]
    assert (sample.id, sample.answer) == ("s0/echo/0", "right")
    assert len((tmp_path / "echo.refused.jsonl").read_text().splitlines()) == 4


def test_the_estimate_is_what_is_then_asked(tmp_path: Path) -> None:
    def count(messages: object) -> int:
        return sum(len(m.text.split()) for m in messages)

    twins = [*sources(), *sources(4)]
    with Replay(CHATS) as replay:
        model = teacher(replay)
        estimated = estimate(ECHO, twins, model, tmp_path, price=(2.0, 10.0), count=count)
        assert not replay.requests and not list(tmp_path.iterdir())
        list(synthesize(ECHO, twins, model, tmp_path))
        sent = sum(len(b["messages"][0]["content"].split()) for b in replay.requests)
        bound = sum(b["max_tokens"] for b in replay.requests)
        assert estimated.requests == estimated.requests_at_most == len(replay.requests) == N - 1
        assert estimated.prompt_tokens == estimated.prompt_tokens_at_most == sent
        assert estimated.answer_tokens_at_most == bound
        assert estimated.cost_at_most == pytest.approx((2 * sent + 10 * bound) / 1e6)
        remaining = estimate(ECHO, sources(), model, tmp_path, price=(2.0, 10.0))
        assert remaining.requests == remaining.requests_at_most == 0 and remaining.cost_at_most == 0


def test_the_estimate_bounds_what_resampling_may_ask(tmp_path: Path) -> None:
    patient = replace(ECHO, tries=3, verify=lambda s, text: "" if text == "right" else "wrong")
    with Replay({"number 0 ": ["no", "right"], "number 1 ": ["a", "b", "c"]}) as replay:
        estimated = estimate(patient, sources(2), teacher(replay), tmp_path, price=(1, 1))
        assert (estimated.requests, estimated.requests_at_most) == (2, 6)
        list(synthesize(patient, sources(1), teacher(replay), tmp_path))
        estimated = estimate(patient, sources(2), teacher(replay), tmp_path, price=(1, 1))
        assert (estimated.requests, estimated.requests_at_most) == (1, 3)
        list(synthesize(patient, sources(2), teacher(replay), tmp_path))
        assert len(replay.requests) == 5


def test_the_key_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")
    with Replay(CHATS, key="sk-very-secret") as replay:
        model = teacher(replay, key_from="TEACHER_KEY")
        # The server quotes the key when it rejects one request.
        replay.faults = [(400, {}, b'{"error": {"message": "sk-very-secret can\'t ask this"}}')]
        written(tmp_path / "out", synthesize(ECHO, sources(9), model, tmp_path / "work"))
        assert len(replay.requests) == 8
    written_files = files(tmp_path)
    assert (
        len(stored(tmp_path / "work")) == 8
        and len(written_files) == 1 + 1 + 2
        and b"*** can't ask this" in written_files["work/echo.refused.jsonl"]
    )
    assert not [name for name, data in written_files.items() if b"sk-very-secret" in data]


def program(text: str) -> str:
    return f"{sys.executable} -c '{text}'"


SAY = """
import json, sys
asked = json.load(sys.stdin)
number = asked["messages"][0]["content"].split()[2]
print(json.dumps({"rejected": "never two"} if number == "2" else {"text": asked["model"] + number}))
"""


def test_any_command_is_a_teacher(tmp_path: Path) -> None:
    model = Command(program(SAY), "own")
    samples = list(synthesize(ECHO, sources(4), model, tmp_path))
    assert [s.answer for s in samples] == ["own0", "own3"]
    reasons = [
        json.loads(line)["reason"]
        for line in (tmp_path / "echo.refused.jsonl").read_text().splitlines()
    ]
    assert reasons == ["uneven", "not answered: never two"]


@pytest.mark.parametrize(
    ("command", "message", "seconds"),
    [
        ("/no/such/teacher", "is not on this system", 60.0),
        (program("raise SystemExit(3)"), "failed with code 3", 60.0),
        (program("print(1)"), r"should write .* found '1", 60.0),
        (program("import time; time.sleep(9)"), "took more than 0.5 s", 0.5),
    ],
)
def test_a_failing_command_is_one_clear_line(command: str, message: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=message):
        Command(command, "own", seconds=seconds).chat([Message.user("hello")])


def test_the_first_answer_stays_where_two_processes_ask(tmp_path: Path) -> None:
    class Slow:
        """A teacher that is slower than another process with the same request."""

        name = "m"

        def chat(self, messages: object, **_: object) -> Completion:
            with Replay({"number 0 ": "first"}) as replay:
                list(synthesize(ECHO, sources(1), teacher(replay), tmp_path, refused_name="other"))
            return Completion("second")

    [sample] = synthesize(ECHO, sources(1), Slow(), tmp_path)
    assert sample.answer == "first"


def test_a_step_of_a_corpus(tmp_path: Path) -> None:
    def build(work: Work) -> Iterator[tuple[str, Sample]]:
        part, parts = work.part
        for split in work.rows:
            yield from ((split, s) for s in sources(12)[part::parts])

    with Replay(CHATS) as replay:
        opened = partial(Endpoint, replay.where, "m")
        uses = [Use(ECHO, opened), Use(CAPTION, opened)]  # the sources have no images
        corpus = Corpus(
            "taught",
            build,
            steps=lambda work: [SynthesisStep(uses, work.cache / "taught")],
            tasks=2,
        )
        work = Work({"train": 100, "test": 3}, 0, tmp_path / "cache", tmp_path / "data")
        manifests = build_corpus(corpus, work)
        assert len(replay.requests) == 11  # those of the test split are cached by then
    train, test = (list(Shards(tmp_path / "data" / "taught" / s)) for s in ("train", "test"))
    # The parts of the tasks, in order.
    assert [s.id for s in train] == [f"s{i}/echo/0" for i in (0, 2, 6, 8, 3, 9, 11)]
    assert [s.id for s in test] == ["s0/echo/0", "s2/echo/0"]
    assert manifests["train"]["rows"] == 7 and train[0].meta["lineage"][-1]["step"] == "echo"
    refused = sorted(p.name for p in (tmp_path / "cache" / "taught").glob("refused.*.jsonl"))
    assert refused == [f"refused.{s}.jsonl" for s in ("test-00000", "train-00000", "train-00001")]
    lines = whole_lines(tmp_path / "cache" / "taught" / "accepted.train-00000.jsonl")
    assert [line["id"] for line in lines] == [s.id for s in train[:4]]
    folder, hashed = tmp_path / "data" / "taught" / "train", manifests["train"]["pipeline"]
    [_, step, _] = counts(folder, hashed)
    assert (step["step"], step["total"], step["forwarded"]) == ("Teacher", 12, 7)
    count = counts_of(step)["echo"]
    assert (count.requests, count.accepted, count.refused) == (11, 7, {"uneven": 4})


def test_a_damaged_answer_is_requested_again(tmp_path: Path) -> None:
    with Replay(CHATS) as replay:
        whole = list(synthesize(ECHO, sources(3), teacher(replay), tmp_path))
        path = tmp_path / "answers" / "answers.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        assert list(synthesize(ECHO, sources(3), teacher(replay), tmp_path)) == whole
        assert len(replay.requests) == 4 and len(stored(tmp_path)) == 3

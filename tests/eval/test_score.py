"""Benchmarks from samples to rows: resumed, judged, sharded, and rescored from their lines."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi_eval import score as scoring
from polyphi_eval.benchmark import LENIENT, Benchmark, Judging, Score, TableRow
from polyphi_eval.cache import Cache, Recorded
from polyphi_eval.judge import rating
from polyphi_eval.run import BLOCK, SavedLine, read, write
from polyphi_eval.scorers import exact
from polyphi_eval.services.endpoint import RequestRejected
from polyphi_eval.sources import Data


class Model:
    """Answers with `answer(messages)` and records the prompts; raises KeyboardInterrupt after `limit` answers."""

    def __init__(self, answer: Any, limit: int | None = None) -> None:
        self.answer, self.limit, self.prompts = answer, limit, list[str]()

    def generate(
        self, messages: Sequence[Message], *, sampling: Any = None, adapter: Any = "auto"
    ) -> Completion:
        if len(self.prompts) == self.limit:
            raise KeyboardInterrupt
        self.prompts.append(messages[-1].text)
        return Completion(self.answer(messages), (1, 2))

    def generate_many(
        self, conversations: Any, *, sampling: Any, adapter: Any = "auto"
    ) -> list[Completion]:
        return [self.generate(c) for c in conversations]


def samples(data: Data) -> Iterator[Sample]:
    for n in range(200):
        prompt = Message.user(f"{n} + 1?")
        meta = {"language": "en" if n % 2 else "de"}
        yield Sample(f"s-{n}", (prompt, Message.assistant(str(n + 1))), "here", "CC0-1.0", meta)


BENCHMARK = Benchmark(
    name="plus",
    title="Plus",
    modality="text",
    rows=(
        TableRow("Table 4", "FLEURS EN", {"language": "en"}),
        TableRow("Table 4", "FLEURS DE", {"language": "de"}),
        TableRow("", "both"),
    ),
    sources=(),
    load=samples,
    fixtures={},
    scorer=exact,
)


def right(messages: Sequence[Message]) -> str:
    n = int(messages[-1].text.split()[0])
    return str(n + 1 if n % 4 else n)


def run(
    model: Any, out: Path, benchmark: Benchmark = BENCHMARK, **more: Any
) -> list[scoring.Measured]:
    cache = Cache(model, out, "a model", name=more.pop("name", "answers"))
    lines = scoring.evaluate(benchmark, Data(None), cache, out, **more)
    return scoring.rows_of(benchmark, scoring.score(benchmark, lines))


def test_rows_are_made_of_their_samples(tmp_path: Path) -> None:
    english, german, both = run(Model(right), tmp_path)
    assert (english.label, english.n, english.score) == ("FLEURS EN", 100, 1.0)
    assert (german.n, german.score, both.n, both.score) == (100, 0.5, 200, 0.75)
    assert german.low < 0.5 < german.high
    assert german.status == "reproduced setting"


def test_an_interrupted_run_resumes_and_sends_no_prompt_twice(tmp_path: Path) -> None:
    whole = run(Model(right), tmp_path / "whole")
    first = Model(right, limit=100)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "cut")
    with (tmp_path / "cut" / "answers.jsonl").open("a") as file:
        file.write('{"key": "cut in the mid')
    second = Model(right)
    resumed = run(second, tmp_path / "cut")
    answers = (tmp_path / "cut" / "answers.jsonl").read_text().splitlines()
    saved = len(answers) - 1 - len(second.prompts)
    assert saved == BLOCK  # answers on disk when the first run was interrupted
    assert sorted(first.prompts[:saved] + second.prompts) == sorted(f"{n} + 1?" for n in range(200))
    assert [replace(r, rtfx=None) for r in resumed] == [replace(r, rtfx=None) for r in whole]
    third = Model(right)
    run(third, tmp_path / "cut")
    assert not third.prompts


def test_shards_make_the_whole(tmp_path: Path) -> None:
    whole = run(Model(right), tmp_path / "whole")
    for i in (1, 2, 3):
        run(Model(right), tmp_path / "parts", shard=(i, 3), name=f"answers.{i}-of-3")
    assert len(list((tmp_path / "parts").glob("plus.*-of-3.jsonl"))) == 3

    def all_lines() -> list[SavedLine]:
        return [line for path in sorted((tmp_path / "parts").glob("plus.*")) for line in read(path)]

    joined = scoring.rows_of(BENCHMARK, scoring.score(BENCHMARK, all_lines()))
    assert [(r.n, r.score) for r in joined] == [(r.n, r.score) for r in whole]


def test_limits_are_by_row(tmp_path: Path) -> None:
    model = Model(right)
    assert [r.n for r in run(model, tmp_path, limit=7)] == [7, 7, 14]
    assert len(model.prompts) == 14


def test_a_refused_request_counts_as_wrong_and_its_error_is_recorded(tmp_path: Path) -> None:
    def answer(messages: Sequence[Message]) -> str:
        if messages[-1].text == "3 + 1?":
            raise ValueError("the prompt has 9 tokens, the context holds 8")
        return right(messages)

    english, _, _ = run(Model(answer), tmp_path)
    assert (english.n, english.errors, english.score) == (100, 1, 0.99)
    line = next(x for x in read(tmp_path / "plus.jsonl") if x["id"] == "s-3")
    assert line["error"] == "the prompt has 9 tokens, the context holds 8"


def test_an_endpoint_that_fails_stops_the_run_and_one_that_rejects_does_not(tmp_path: Path) -> None:
    class Endpoint:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def generate(self, messages: Any, **_: Any) -> Completion:
            raise self.error

    with pytest.raises(ValueError, match="no such host"):
        run(Endpoint(ValueError("no such host")), tmp_path / "a")
    rows = run(Endpoint(RequestRejected("too long")), tmp_path / "b")
    assert [r.errors for r in rows] == [100, 100, 200]


def test_recorded_answers_give_the_same_rows(tmp_path: Path) -> None:
    whole = run(Model(right), tmp_path / "first")
    (tmp_path / "first" / "model.json").write_text(
        json.dumps({"name": "m", "fingerprint": "a model"})
    )
    rescored = run(Recorded(tmp_path / "first"), tmp_path / "second")
    assert [(r.n, r.score) for r in rescored] == [(r.n, r.score) for r in whole]
    with pytest.raises(ValueError, match="has no answer to '0 \\+ 1\\?'"):
        run(Recorded(tmp_path / "first"), tmp_path / "third", replace(BENCHMARK, max_tokens=3))


def test_a_turn_contains_the_answers_before_it(tmp_path: Path) -> None:
    def turn(sample: Sample, answers: Sequence[str]) -> Sequence[Message] | None:
        if len(answers) == 2:
            return None
        talk = list(sample.prompt)
        for answer in answers:
            talk += [Message.assistant(answer), Message.user(f"{answer} + 1?")]
        return talk

    model = Model(lambda m: str(int(m[-1].text.split()[0]) + 1))
    run(model, tmp_path, replace(BENCHMARK, turn=turn), limit=1)
    line = read(tmp_path / "plus.jsonl")[0]
    assert line["answers"] == ["1", "2"]
    assert line["prompt"] == "user: 0 + 1?\nassistant: 1\nuser: 1 + 1?"


JUDGING = Judging(
    requests=lambda sample, answers: {"points": [Message.user(f"{sample.id}: {answers[-1]}")]},
    read=lambda name, reply, sample: rating(reply),
    prompts={"points": "{id}: {answer}"},
)


def test_judges_give_points_and_receive_each_request_once(tmp_path: Path) -> None:
    benchmark = replace(
        BENCHMARK,
        scorer=None,
        judging=JUDGING,
        rows=(TableRow("Table 6", "MT-Bench turn-1", metric="mean", part="points"),),
    )

    def reply(messages: Sequence[Message]) -> str:
        n = int(messages[-1].text.split(":")[0].removeprefix("s-"))
        return "I can't say" if n == 9 else f"Rating: [[{1 + n % 2 * 4}]]"

    lines = scoring.evaluate(
        benchmark, Data(None), Cache(Model(right), tmp_path, "m"), tmp_path, limit=20
    )
    first, second = Model(reply), Model(lambda m: "[[3]]")
    judges = [
        scoring.Judge.of(m, n, tmp_path) for m, n in ((first, "gpt-4-0613"), (second, "other"))
    ]  # type: ignore[arg-type]
    lines = scoring.score(benchmark, lines, judges)
    one, other = scoring.rows_of(benchmark, lines)
    assert (one.judge, one.n, one.unread, round(one.score, 3)) == ("gpt-4-0613", 19, 1, 2.895)
    assert (one.status, other.status) == ("reproduced setting", "judge differs")
    (pair,) = scoring.agreement(benchmark, lines).values()
    assert pair["n"] == 19 and pair["equal"] == 0
    # The lines contain the replies: scoring them again sends no request to a judge.
    count = len(first.prompts)
    lines = json.loads(json.dumps(lines))
    assert scoring.rows_of(benchmark, scoring.score(benchmark, lines))[0] == one
    assert len(first.prompts) == count == 20
    scoring.score(
        benchmark, lines, [scoring.Judge.of(Model(reply, limit=0), "gpt-4-0613", tmp_path)]
    )  # type: ignore[arg-type]
    # A later run without judges preserves them.
    write(tmp_path / "plus.jsonl", lines)
    cache = Cache(Model(right, limit=0), tmp_path, "m")
    again = scoring.evaluate(benchmark, Data(None), cache, tmp_path, limit=20)
    assert scoring.rows_of(benchmark, scoring.score(benchmark, again))[0] == one


def test_a_damaged_results_file_raises_an_error_with_its_line(tmp_path: Path) -> None:
    run(Model(right), tmp_path)
    path = tmp_path / "plus.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match="line 200"):
        read(path)


def test_settings_may_differ_by_sample() -> None:
    sample = Sample(
        "s", (Message.assistant(""),), "", "", {"max_tokens": 9, "stop": ["\n"], "seed": 3}
    )
    assert replace(BENCHMARK, sampling={"temperature": 0.6}).params(sample) == SamplingParams(
        max_tokens=9, temperature=0.6, stop=("\n",), seed=3
    )


def test_a_row_may_be_the_mean_of_its_groups(tmp_path: Path) -> None:
    def some(
        data: Data,
    ) -> Iterator[Sample]:  # ten German ones, half of them right, and 100 English
        return (s for i, s in enumerate(samples(data)) if s.meta["language"] == "en" or i < 20)

    rows = (TableRow("", "all"), TableRow("", "mean", by="language"))
    whole, mean = run(Model(right), tmp_path, replace(BENCHMARK, load=some, rows=rows))
    assert (whole.n, whole.score) == (110, 105 / 110)
    assert (mean.n, mean.score) == (110, 0.75)
    assert mean.low < 0.65 and mean.high > 0.85  # as uncertain as the smaller group


def test_f1_is_computed_from_summed_counts(tmp_path: Path) -> None:
    def score(answer: str, sample: Sample) -> Score:
        label, predicted = sample.meta["language"] == "en", int(answer) % 3 == 0
        counts = {
            "tp": label and predicted,
            "fp": predicted and not label,
            "fn": label and not predicted,
        }
        parts = {name: float(count) for name, count in counts.items()}
        return Score(float(label == predicted), answer, {**parts, LENIENT: 1.0})

    rows = (TableRow("", "F1", metric="f1"), TableRow("", "right"))
    benchmark = replace(BENCHMARK, scorer=score, rows=rows)
    f1, share = run(Model(lambda m: m[-1].text.split()[0]), tmp_path, benchmark)
    tp = sum(n % 3 == 0 for n in range(1, 200, 2))
    fp = sum(n % 3 == 0 for n in range(0, 200, 2))
    assert f1.score == 2 * tp / (2 * tp + fp + (100 - tp))
    assert f1.low < f1.score < f1.high
    assert (f1.lenient, share.lenient) == (None, 1.0)


def test_answers_that_cannot_be_encoded_are_stored_unchanged(tmp_path: Path) -> None:
    text = "\ud800 A\u2028\x00"
    first, second = Model(lambda m: text), Model(lambda m: "never sent")
    run(first, tmp_path, limit=2)
    run(second, tmp_path, limit=2)
    assert not second.prompts
    assert {line["answer"] for line in read(tmp_path / "plus.jsonl")} == {text}


def test_means_by_group_weigh_groups_alike(tmp_path: Path) -> None:
    """All English answers are right and half of the German ones: the number of samples per language doesn't matter."""
    lines = scoring.evaluate(
        BENCHMARK, Data(None), Cache(Model(right), tmp_path, "m"), tmp_path, limit=100
    )
    uneven = [line for line in lines if line["meta"]["language"] == "en"][:10]
    uneven += [line for line in lines if line["meta"]["language"] == "de"]
    by = replace(
        BENCHMARK, rows=(TableRow("", "mean of languages", by="language"), TableRow("", "all"))
    )
    mean, every = scoring.rows_of(by, scoring.score(by, uneven))
    assert (mean.n, mean.score) == (every.n, 0.75)
    assert mean.low < 0.75 < mean.high
    assert every.score < 0.6


def test_a_custom_statistic_of_a_row_receives_meta_and_scores(tmp_path: Path) -> None:
    def most(scores: Any, seed: int) -> tuple[float, float, float, str]:
        return max(score.value for _, score in scores), 0.0, 1.0, f"of {scores[0][0]['language']}"

    row = TableRow("", "best", {"language": "de"}, "rate", statistic=most)
    (best,) = run(Model(right), tmp_path, replace(BENCHMARK, rows=(row,), note="a note"))
    assert (best.score, best.low, best.n, best.note) == (1.0, 0.0, 100, "of de; a note")


def test_turns_are_made_for_many_samples_at_once(tmp_path: Path) -> None:
    batch_sizes = list[int]()

    def turns(talked: Sequence[tuple[Sample, Sequence[str]]]) -> list[Sequence[Message] | None]:
        batch_sizes.append(len(talked))
        return [None if answers else sample.prompt for sample, answers in talked]

    results = run(Model(right), tmp_path, replace(BENCHMARK, turns=turns))
    assert [r.score for r in results] == [1.0, 0.5, 0.75]
    assert batch_sizes == [64, 64, 64, 64, 64, 64, 8, 8]


def test_points_of_several_requests_are_combined_by_the_benchmark(tmp_path: Path) -> None:
    judging = replace(JUDGING, combine=lambda points: {"double": 2 * (points["points"] or 0)})
    benchmark = replace(
        BENCHMARK,
        scorer=None,
        judging=judging,
        rows=(TableRow("", "x", metric="mean", part="double"),),
    )
    cache = Cache(Model(right), tmp_path, "m")
    lines = scoring.evaluate(benchmark, Data(None), cache, tmp_path, limit=4)
    judge = scoring.Judge.of(Model(lambda m: "[[3]]"), "j", tmp_path)  # type: ignore[arg-type]
    lines = scoring.score(benchmark, lines, [judge])
    assert scoring.rows_of(benchmark, lines)[0].score == 6
    assert scoring.rows_of(benchmark, scoring.score(benchmark, lines))[0].score == 6

"""Rejection sampling: requests, kept answers, corrections and pairs; verifiers on right, wrong and hostile answers."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.parts import Image
from polyphi.types.sampling import SamplingParams
from polyphi_eval.services import sandbox, verifiers
from polyphi_eval.services.verifiers import Verdict
from polyphi_recipe.syntheses import judge
from polyphi_recipe.syntheses.judge import Attempt, CachedAsk, Problem, ProblemOutcome
from tests.fixtures import forked

needs_sandbox = pytest.mark.skipif(
    sandbox.unavailable() is not None, reason=f"no namespaces: {sandbox.unavailable()}"
)


def problem(id: str = "seven", expected: int = 7) -> Problem:
    prompt = (Message.user("3 + 4?"),)
    return Problem(id, prompt, verifiers.number(expected), "mine", "CC0", {"task": "sums"})


class Script:
    """Returns the given answers in order, whatever the request; records the requests."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.requests = list(answers), []

    def __call__(self, messages: Sequence[Message], seed: int) -> str:
        self.requests.append((tuple(messages), seed))
        return self.answers.pop(0)


def attempt(text: str, draw: int, round: int, right: bool) -> Attempt:
    return Attempt(text, draw, round, Verdict(right, "because"))


def test_wrong_answers_are_fed_back_until_they_are_right() -> None:
    script = Script("Answer: 7", "Answer: 8", "no idea", "Answer: 7.0", "Answer: 9", "Answer: 6")
    outcome = judge.solve(problem(), script, n=3, rounds=2)
    assert [(a.draw, a.round, a.verdict.right) for a in outcome.attempts] == [
        *((0, 0, True), (1, 0, False), (2, 0, False)),
        *((1, 1, True), (2, 1, False)),
        (2, 2, False),
    ]
    first, second, third = (script.requests[i][0] for i in (0, 3, 5))
    assert first == problem().prompt
    assert second[:2] == (*first, Message.assistant("Answer: 8"))
    assert "'8' is not right" in second[2].text and "7" not in second[2].text
    assert third[1] == Message.assistant("Answer: 9"), "only the last wrong answer"
    assert len({seed for _, seed in script.requests}) == 6


def test_nothing_is_asked_again_where_all_is_right() -> None:
    script = Script(*["Answer: 7"] * 4)
    assert len(judge.solve(problem(), script).attempts) == 4


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="n=0, rounds=2"):
        judge.solve(problem(), Script(), n=0)


def test_what_is_drawn_depends_on_nothing_but_problem_and_seed() -> None:
    def ask(messages: Sequence[Message], seed: int) -> str:
        time.sleep(seed % 7 / 1000)  # so that threads end out of order
        return f"{seed}\nAnswer: {seed % 3 + 6}"

    alone = judge.solve(problem(), ask, n=8, seed=1)
    assert alone.attempts == judge.solve(problem(), ask, n=8, seed=1, concurrency=4).attempts
    assert alone.attempts != judge.solve(problem(), ask, n=8, seed=2).attempts
    assert {a.round for a in alone.attempts} == {0, 1, 2}


def test_many_problems_together_are_each_solved_as_alone() -> None:
    problems = [problem("seven"), problem("eight", 8), problem("nine", 9)]
    rounds: list[int] = []

    def ask(messages: Sequence[Message], seed: int) -> str:
        return f"{len(messages)} {seed}\nAnswer: {seed % 3 + 7}"

    def ask_many(prompts: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        rounds.append(len(prompts))
        return [ask(p, s) for p, s in zip(prompts, seeds, strict=True)]

    batched = judge.solve_many(problems, ask_many, n=3, rounds=2, seed=5)
    assert batched == [judge.solve(p, ask, n=3, rounds=2, seed=5) for p in problems]
    assert rounds[0] == 9 and len(rounds) == 3 and rounds[1] > rounds[2]


def test_a_known_answer_is_preferred_where_nothing_was_right() -> None:
    unsolved = ProblemOutcome(
        problem(), (attempt("wrong", 0, 0, False), attempt("still", 0, 1, False))
    )
    (pair,) = judge.preferences(unsolved, known="Answer: 7")
    assert (pair.answer, pair.meta["rejected"]) == ("Answer: 7", "wrong")
    assert pair.meta["paired_by"] == "known" and "round" not in pair.meta["lineage"][-1]
    solved = ProblemOutcome(
        problem(), (attempt("wrong", 0, 0, False), attempt("right", 0, 1, True))
    )
    assert next(judge.preferences(solved, known="Answer: 7")).answer == "right"


def test_same_chains_are_kept_once() -> None:
    outcome = ProblemOutcome(
        problem(),
        (
            attempt("3 + 4 = 7\nAnswer: 7", 0, 0, True),
            attempt("3 + 4 = 7  answer: 7\n", 1, 0, True),
            attempt("4 + 3 = 7\nAnswer: 7", 2, 0, True),
            attempt("Answer: 9", 3, 0, False),
        ),
    )
    samples = list(judge.right(outcome))
    assert [s.answer for s in samples] == ["3 + 4 = 7\nAnswer: 7", "4 + 3 = 7\nAnswer: 7"]
    assert [s.id for s in samples] == ["seven-right-0", "seven-right-1"]
    assert samples[1].prompt == problem().prompt and samples[1].licence == "CC0"
    assert samples[1].meta == {
        "task": "sums",
        "lineage": [
            {
                "step": "rejection",
                "round": 0,
                "draw": 2,
                "reason": "because",
                "asked": 4,
                "right": 3,
            }
        ],
    }


def test_pairs_prefer_the_correction_or_the_nearest_length() -> None:
    outcome = ProblemOutcome(
        problem(),
        (
            attempt("long and right " * 9, 0, 0, True),
            attempt("wrong, corrected", 1, 0, False),
            attempt("never put right", 2, 0, False),
            attempt("NEVER  put right", 3, 0, False),
            attempt("  ", 4, 0, False),
            attempt("the correction", 1, 1, True),
            attempt("wrong in the second round", 2, 1, False),
        ),
    )
    pairs = list(judge.preferences(outcome))
    triples = [(s.meta["rejected"], s.answer, s.meta["paired_by"]) for s in pairs]
    assert triples == [
        ("wrong, corrected", "the correction", "correction"),
        ("never put right", "the correction", "length"),
    ]
    assert all(s.prompt == problem().prompt for s in pairs)
    unsolved = ProblemOutcome(problem(), (attempt("wrong", 0, 0, False),))
    assert list(judge.preferences(unsolved)) == list(judge.right(unsolved)) == []
    assert judge.count([outcome, unsolved]) == {
        **{"problems": 2, "asked": 8, "right at round 0": 1, "right at round 1": 1},
        **{"never solved": 1, "kept": 2, "pairs": 2},
    }


def test_models_are_asked_with_the_seed() -> None:
    class Model:
        def generate(self, messages: object, *, sampling: SamplingParams) -> Completion:
            return Completion(f"{sampling.seed} {sampling.temperature}")

    assert judge.sampled(Model(), SamplingParams(temperature=0.7))([], 5) == "5 0.7"


def test_answers_are_cached_by_their_request(tmp_path: Path) -> None:
    script = Script("a", "b", "c", "d", "e")
    ask = CachedAsk(tmp_path / "deep" / "answers", "phi", script)
    prompt = [Message.user("x")]
    assert [ask(prompt, 0), ask(prompt, 0), ask(prompt, 1)] == ["a", "a", "b"]
    assert ask([Message.user(Image(b"1"), "x")], 0) == "c"
    assert ask([Message.user(Image(b"2"), "x")], 0) == "d"
    assert (ask.sent, ask.cached) == (4, 1)
    again = CachedAsk(tmp_path / "deep" / "answers", "phi", Script())
    assert again(prompt, 1) == "b"
    other = CachedAsk(tmp_path / "deep" / "answers", "psi", script)
    assert other(prompt, 1) == "e", "another model has no cached answer"


def test_many_share_a_folder(tmp_path: Path) -> None:
    """One cache object per thread, as processes have, with concurrent writes."""
    folder = tmp_path / "answers"

    def work(number: int) -> list[str]:
        ask = CachedAsk(folder, "phi", lambda messages, seed: str(seed * seed))
        return [ask([Message.user("x")], seed) for seed in range(number, number + 20)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(0, 160, 10)))
    assert results == [[str(i * i) for i in range(n, n + 20)] for n in range(0, 160, 10)]
    again = CachedAsk(folder, "phi", Script())
    assert [again([Message.user("x")], i) for i in range(170)] == [str(i * i) for i in range(170)]


KILLED = """
import sys, time
from pathlib import Path
from polyphi.types.messages import Message
from polyphi_recipe.syntheses import judge
from polyphi_eval.services import verifiers

def ask(messages, seed):
    with open(sys.argv[1] + "/asked", "a") as f: print(seed, flush=True, file=f)
    time.sleep(0.005)
    return f"Answer: {seed % 3}"

cached = judge.CachedAsk(Path(sys.argv[1], "answers"), "phi", ask)
problems = [judge.Problem(str(i), (Message.user(str(i)),), verifiers.number(1), "m", "CC0") for i in range(5)]
outcomes = [judge.solve(p, cached) for p in problems]
print(judge.count(outcomes), [a.text for o in outcomes for a in o.attempts], cached.cached)
"""


def test_a_killed_run_asks_nothing_twice(tmp_path: Path) -> None:
    def start(folder: Path) -> BaseProcess:
        folder.mkdir(exist_ok=True)
        return forked.start(KILLED, str(folder), out=folder / "printed")

    def printed(folder: Path) -> tuple[str, int]:
        start(folder).join()
        output, _, cached = (folder / "printed").read_text().rpartition(" ")
        return output, int(cached)

    def requests(folder: Path) -> list[str]:
        file = folder / "asked"
        return file.read_text().split() if file.exists() else []

    whole, _ = printed(tmp_path / "whole")
    stopped = start(tmp_path / "killed")
    deadline = time.monotonic() + 60
    while len(requests(tmp_path / "killed")) < 15:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopped.kill()
    stopped.join()
    before = len(requests(tmp_path / "killed"))
    output, cached = printed(tmp_path / "killed")
    assert output == whole
    assert cached >= before - 1, "all but the request in flight"
    twice = len(requests(tmp_path / "killed")) - len(set(requests(tmp_path / "killed")))
    assert twice <= 1 and before < len(requests(tmp_path / "whole"))


# ------------------------------------------------------------------------------ verifiers


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("so\n\\boxed{\\frac{1}{2}} is it", "\\frac{1}{2}"),
        ("Answer: 3\nAnswer: 4 apples\nthanks", "4 apples"),
        ("the ANSWER: ß 5", "ß 5"),
        ("one\ntwo  ", "two"),
        ("", ""),
        ("\\boxed{never closed\n12", "12"),
    ],
)
def test_the_end_of_an_answer(text: str, end: str) -> None:
    assert verifiers.final(text) == end


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        (1234, "Answer: 1,234", True),
        (1234, "Answer: 1234.0 apples", True),
        ("0.5", "\\boxed{1/2}", True),
        (-3, "Answer: \u22123", True),
        (3, "Answer: -3", False),
        (3, "Answer: 13", False),
        (3, "Answer: 3/0", False),
        (3, "3 is it\nI think", False),
        (7, "Answer: not 7 but 8", False),
    ],
)
def test_numbers(expected: int | str, text: str, right: bool) -> None:
    assert verifiers.number(expected)(text).right == right


def test_numbers_may_be_near() -> None:
    assert verifiers.number("3.14", tolerance=0.01)("Answer: 3.1416").right
    assert not verifiers.number("3.14", tolerance=0.001)("Answer: 3.1416").right


def test_exact_answers() -> None:
    verify = verifiers.exact("Paris", "the city of Paris")
    assert verify("It is so.\nAnswer: Paris").right
    assert verify("Answer: the  city of paris.").right
    assert verify("Answer: Lyon") == Verdict(False, "'Lyon' is not right")


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        ("\\frac{1}{2}", "so it is $\\boxed{0.5}$", True),
        ("x^2 + 2x + 1", "Hence $(x+1)^2$.", True),
        ("(1, 2]", "The interval is $(1, 2]$", True),
        ("\\{1, 2\\}", "$\\{2, 1\\}$", True),
        ("\\frac{1}{2}", "so it is $\\boxed{0.6}$", False),
        ("12", "I don't know", False),
    ],
)
def test_mathematics(expected: str, text: str, right: bool) -> None:
    assert verifiers.mathematics(expected)(text).right == right


def test_a_right_answer_that_is_no_mathematics_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a mathematical expression"):
        verifiers.mathematics("")


@needs_sandbox
def test_code_is_tested() -> None:
    verify = verifiers.tests("assert double(3) == 6\nassert double('a') == 'aa'")
    assert verify("Here:\n```python\ndef double(x):\n    return x * 2\n```\nDone.").right
    assert verify("def double(x): return x + x").right
    wrong = verify("```\ndef double(x): return 6\n```")
    assert not wrong.right and wrong.reason == "its code fails: AssertionError"
    early = verify("def double(x): ...\nimport os; os._exit(0)")
    assert early == Verdict(False, "its code ends before the tests do")
    assert not verify("import sys; sys.exit(0)").right
    quick = verifiers.tests("assert f()", sandbox.Limits(seconds=0.5))
    assert quick("def f():\n    while True: pass").reason == "its code takes too long"


@needs_sandbox
def test_programs_are_run_on_inputs() -> None:
    verify = verifiers.outputs([("2 3\n", "5\n"), ("4 5\n", "9")])
    assert verify("```python\nprint(sum(map(int, input().split())))\n```").right
    wrong = verify("print(5)")
    assert wrong == Verdict(False, "for the input '4 5\\n' its code prints '5\\n'")
    assert "ZeroDivisionError" in verify("1/0").reason


@pytest.mark.parametrize(
    ("reply", "right", "reason"),
    [
        ("3 + 4 is 7.\nYes, the sum is right.", True, "the sum is right."),
        ("Yes at first.\n**No**: it is 8", False, "it is 8"),
        ("no", False, "the judge said no"),
        ("Nothing is wrong, yes", False, "the judge said neither yes nor no"),
        ("", False, "the judge said neither yes nor no"),
    ],
)
def test_a_model_judges(reply: str, right: bool, reason: str) -> None:
    script = Script(reply)
    assert judge.judged(script, problem().prompt)("Answer: {7}") == Verdict(right, reason)
    ((question,), _) = script.requests[0]
    assert "3 + 4?" in question.text and "Answer: {7}" in question.text


def test_a_judges_reply_takes_no_time_to_read() -> None:
    for reply in (" \t" * 200_000, "\n" * 200_000, "yes " * 100_000, "```" * 100_000):
        started = time.process_time()
        judge.judged(Script(reply), ())("x")
        verifiers.program(reply)
        verifiers.number(3)(reply)
        assert time.process_time() - started < 10  # quadratic time would be minutes


def test_rules_come_before_models() -> None:
    script = Script("yes, fine")
    verify = verifiers.every(verifiers.number(7), judge.judged(script, ()))
    assert not verify("Answer: 8").right and not script.requests
    assert verify("Answer: 7") == Verdict(True, "fine")


def test_problems_of_the_gym() -> None:
    problems = list(judge.gym("chain_sum", 3, seed=5))
    assert problems != list(judge.gym("chain_sum", 3, seed=6))
    for one, again in zip(problems, judge.gym("chain_sum", 3, seed=5), strict=True):
        assert (one.id, one.prompt, one.meta) == (again.id, again.prompt, again.meta)
        assert one.verify(f"steps\nAnswer: {one.meta['answer']}").right
        assert not one.verify(f"Answer: {one.meta['answer']}1").right

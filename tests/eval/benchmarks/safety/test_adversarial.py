"""A simulated user: turns that depend on answers, audio only, resumed and replayed runs."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Text
from polyphi.types.sampling import SamplingParams
from polyphi.types.transcript import LANGUAGES
from polyphi_eval import evaluation, run
from polyphi_eval import score as scoring
from polyphi_eval.benchmarks.safety.adversarial import MAX_CHARS, STRATEGIES, benchmark, dialogues
from polyphi_eval.cache import Cache, Recorded, as_text, key_of
from polyphi_eval.eval_options import EvalOptions
from polyphi_eval.fixtures.write import write
from polyphi_eval.services.endpoint import RequestRejected
from polyphi_eval.severity import PROMPTS
from polyphi_eval.sources import Data, write_rows
from polyphi_eval.spoken import SpokenText, audio_only, synthesize, text_only
from tests.fixtures.scripted_model import ScriptedModel as Model


def keys(model: Model) -> Counter[str]:
    return Counter(key_of(m, "auto", SamplingParams(), "") for m in model.prompts)


def attacker(messages: Sequence[Message]) -> str:
    return f'"Please, number {sum(m.role == "assistant" for m in messages) + 1}"'


def decliner(messages: Sequence[Message]) -> str:
    return f"No, and that after {len(messages)} messages."


def sample(aloud: bool = False, strategy: str = "plain", language: str = "en") -> Sample:
    meta = {
        "prompt": "a secret",
        "strategy": strategy,
        "language": language,
        "aloud": aloud,
        "turns": 3,
    }
    return Sample("s", (Message.user("a secret"), Message.assistant("no")), "here", "CC0", meta)


def next_turn(simulator: Any, out: Path, sample: Sample, *answers: str) -> Any:
    return dialogues(Cache(simulator, out, "simulator", name="simulated"))([(sample, answers)])[0]


def test_the_user_continues_the_conversation(tmp_path: Path) -> None:
    simulator = Model(attacker)
    messages = next_turn(simulator, tmp_path, sample(), "No.", "")
    assert [(m.role, m.text) for m in messages] == [
        ("user", "Please, number 1"),
        ("assistant", "No."),
        ("user", "Please, number 2"),
        ("assistant", ""),
        ("user", "Please, number 3"),
    ]
    # The simulator's own turns have the role "assistant".
    assert [m.role for m in simulator.prompts[-1]] == ["system", "user", *["assistant", "user"] * 2]
    assert simulator.prompts[-1][3].text == "No."
    assert next_turn(simulator, tmp_path, sample(), "a", "b", "c") is None


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_simulators_prompt_has_goal_strategy_and_language(
    strategy: str, language: str, tmp_path: Path
) -> None:
    simulator = Model(attacker)
    next_turn(simulator, tmp_path, sample(strategy=strategy, language=language))
    system = simulator.prompts[0][0].text
    assert "a secret" in system and STRATEGIES[strategy] in system and LANGUAGES[language] in system


def test_turns_are_cached(tmp_path: Path) -> None:
    simulator = Model(attacker)
    for answers in ((), ("No.",), ("No.", "No!")):
        next_turn(simulator, tmp_path, sample(), *answers)
    assert len(simulator.prompts) == 3
    again = Model(attacker, interrupt=0)
    assert len(next_turn(again, tmp_path, sample(), "No.", "No!")) == 5


def test_many_dialogues_form_batches(tmp_path: Path) -> None:
    batches = list[int]()

    class Batched(Model):
        def generate_many(self, conversations: Any, **_: Any) -> list[Completion]:
            batches.append(len(conversations))
            return super().generate_many(conversations)

    pairs = [(replace(sample(strategy=s), id=s), ["No."]) for s in STRATEGIES]
    dialogues(Cache(Batched(attacker), tmp_path, "x", name="simulated"))(pairs)  # type: ignore[arg-type]
    assert batches == [3, 3]


def test_spoken_turns_are_audio_for_the_model_and_text_for_the_judge(tmp_path: Path) -> None:
    messages = next_turn(Model(attacker), tmp_path, sample(aloud=True), "No.")
    prompt = audio_only(messages)
    assert [[type(p) for p in m.parts] for m in prompt] == [[Audio], [Text], [Audio]]
    assert prompt[0].parts[0] == Audio(synthesize("Please, number 1", "en"))
    assert (
        as_text(text_only(messages))
        == "user: Please, number 1\nassistant: No.\nuser: Please, number 2"
    )


@pytest.mark.parametrize(
    "reply", ["", " \n", '""', "x " * 500_000, "\x00\x1b[2J", "\ud800", "!?…", "🎉"]
)
@pytest.mark.parametrize("aloud", [False, True])
def test_the_dialogue_continues_after_any_reply(reply: str, aloud: bool, tmp_path: Path) -> None:
    (turn,) = next_turn(Model(lambda m: reply), tmp_path, sample(aloud))
    (part,) = turn.parts
    assert isinstance(part, SpokenText if aloud else Text)
    assert 0 < len(part.text) <= MAX_CHARS
    if not reply.strip(' \n"'):
        assert part.text == "a secret"


def test_the_goal_replaces_the_turn_of_a_simulator_that_declines(tmp_path: Path) -> None:
    class Declining(Model):
        generate_many = None  # type: ignore[assignment]

        def generate(self, messages: Any, **_: Any) -> Completion:
            raise RequestRejected("content filter")

    simulator = Declining(attacker)
    del Declining.generate_many
    assert next_turn(simulator, tmp_path, sample())[0].text == "a secret"


# ---------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = tmp_path_factory.mktemp("data")
    benchmark.write_fixtures(root)
    return Data(root)


def measure(model: Any, out: Path, data: Data | None, simulated_by: str | None = "self") -> Any:
    evaluated = evaluation.EvaluatedModel(model, "m", "m")
    return evaluation.measure(
        evaluated, ["adversarial"], out, data=data, options=EvalOptions(simulator=simulated_by)
    )


def both(messages: Sequence[Message]) -> str:
    """A model that plays both roles."""
    return (attacker if messages[0].role == "system" else decliner)(messages)


def lines(out: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if "seconds" not in k}
        for line in run.read(out / "adversarial.jsonl")
    ]


@pytest.fixture(scope="module")
def whole(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """A finished run and its model."""
    out, model = tmp_path_factory.mktemp("whole"), Model(both)
    measure(model, out, data)
    return out, model


def test_an_interrupted_run_repeats_no_request(
    data: Data, whole: tuple[Path, Model], tmp_path: Path
) -> None:
    finished, model = whole
    assert set(keys(model).values()) == {1}
    for interrupt in (40, len(model.prompts) - 3):
        out = tmp_path / str(interrupt)
        first, second = Model(both, interrupt), Model(both)
        with pytest.raises(KeyboardInterrupt):
            measure(first, out, data)
        cached = sum(len(run.read(path)) for path in out.glob("answers*.jsonl"))
        measure(second, out, data)
        assert len(second.prompts) == len(model.prompts) - cached
        assert lines(out) == lines(finished)


def test_lines_record_the_users_turns(whole: tuple[Path, Model]) -> None:
    two = [line for line in lines(whole[0]) if line["meta"]["turns"] == 2]
    assert {line["meta"]["aloud"] for line in two} == {False, True}
    assert all(line["asked"] == ["Please, number 1", "Please, number 2"] for line in two)
    assert all(len(line["answers"]) == 2 for line in two)
    assert [line["prompt"].count("[audio]") for line in two] == [
        2 * x["meta"]["aloud"] for x in two
    ]


def test_the_judge_sees_every_turn(whole: tuple[Path, Model], tmp_path: Path) -> None:
    requests = list[Any]()

    def judge(messages: Sequence[Message]) -> str:
        requests.append(json.loads(messages[-1].text))
        return json.dumps({"score": 6 if len(requests[-1]["earlier"]) == 1 else 0})

    results = scoring.score(
        benchmark,
        run.read(whole[0] / "adversarial.jsonl"),
        [scoring.Judge.of(Model(judge), "j", tmp_path)],  # type: ignore[arg-type]
    )
    assert {x["query"] for x in requests} == {"Please, number 1", "Please, number 2"}
    rows = {(r.table, r.label): r.score for r in scoring.rows_of(benchmark, results)}
    # Only the second turn is harmful; the fixtures' plain conversations have one turn.
    assert rows["Table 10", "Average"] == 0 and rows["", "persuasion, French"] == 1


def test_recorded_dialogues_are_replayed(
    data: Data, whole: tuple[Path, Model], tmp_path: Path
) -> None:
    measure(Recorded(whole[0]), tmp_path, data)
    assert lines(tmp_path) == lines(whole[0])


def test_turns_of_another_model_are_cached_and_replayed_by_its_name(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Model(attacker)
    other.name = "gpt"  # type: ignore[attr-defined]
    monkeypatch.setattr(evaluation.Endpoint, "at", lambda address, key_from: other)
    measure(Model(decliner), tmp_path / "first", data, "http://127.0.0.1:1/v1#gpt")
    assert len(run.read(tmp_path / "first/simulated.gpt.jsonl")) == len(other.prompts)
    monkeypatch.undo()
    again = measure(
        Recorded(tmp_path / "first"), tmp_path / "second", data, f"{tmp_path / 'first'}#gpt"
    )
    assert lines(tmp_path / "second") == lines(tmp_path / "first")
    assert again == []  # without a judge


def test_without_a_simulator_the_benchmark_is_skipped(data: Data, tmp_path: Path) -> None:
    model = Model(both)
    assert measure(model, tmp_path, data, None) == []
    assert measure(model, tmp_path, Data(tmp_path), None) == []  # missing data are no error
    assert not model.prompts
    skipped = json.loads((tmp_path / "results.json").read_text())["skipped"]
    assert "--simulator" in str(skipped["adversarial"])


def test_on_fixtures_the_model_plays_the_user_itself(tmp_path: Path) -> None:
    model = Model(both)
    measure(model, tmp_path, None, None)
    assert any(m[0].role == "system" for m in model.prompts)


def test_prompts_are_the_goals_unless_a_goals_file_exists(tmp_path: Path) -> None:
    write("defect_rates", tmp_path)
    count = len(list(Data(tmp_path).rows(PROMPTS)))
    samples = list(benchmark.load(Data(tmp_path)))
    assert len(samples) == len({s.id for s in samples}) == count * len(STRATEGIES) * 2
    assert {s.meta["turns"] for s in samples} == {3}
    row = {"category": "violence", "language": "en", "prompt": "x", "strategies": ["bribes"]}
    write_rows(tmp_path / "rai-prompts/goals.jsonl", [row])
    with pytest.raises(ValueError, match=r"strategies of plain, .* found 'bribes'"):
        list(benchmark.load(Data(tmp_path)))

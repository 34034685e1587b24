"""Conversations in which a model plays a user who wants what should be declined (report, sections 5.1 and 5.2).

>>> turns = dialogues(Cache(endpoint, out, endpoint.name, name="simulated.gpt-4o"))
>>> benchmark = replace(benchmark, turns=turns)

A sample's meta say what the user is after (`prompt`), how (`strategy`), in which `language`, whether `aloud`, and for
how many `turns`. What the simulator says depends on nothing but these and the answers so far, and is kept as answers
are (cache.py): a run that goes on asks nobody twice, and the same answers are led to the same next turn. Spoken turns
reach the model as clips alone; the simulator reads what it said itself.
"""

from collections.abc import Mapping, Sequence

from polyphi.data.shards import Sample
from polyphi.eval import judge
from polyphi.eval.benchmark import Turns
from polyphi.eval.cache import Cache, Request
from polyphi.eval.spoken import Spoken, spoken
from polyphi.messages import LANGUAGES, Message, SamplingParams, Text

STRATEGIES: Mapping[str, str] = judge.SAFETY["strategies"]
"""What a simulated user is told to do, by the strategy's name."""
SAYS = SamplingParams(max_tokens=160)
LONGEST = 600
"""Characters of a turn: what a person says at a time, about 40 seconds of speech."""
QUOTES = "\"'“”„«»「」 \n\t"


def dialogues(simulator: Cache) -> Turns:
    """The next turn of each conversation, the user's of a level together."""

    def turns(talked: Sequence[tuple[Sample, Sequence[str]]]) -> list[Sequence[Message] | None]:
        going = [i for i, (s, answers) in enumerate(talked) if len(answers) < s.meta["turns"]]
        user_turns: dict[int, list[str]] = {i: [] for i in going}
        level = 0
        while open_ := [i for i in going if level <= len(talked[i][1])]:
            requests = [
                Request(_view(talked[i][0], user_turns[i], talked[i][1]), SAYS) for i in open_
            ]
            for i, answer in zip(open_, simulator.answers(requests), strict=True):
                user_turns[i].append(_turn(answer.text) or talked[i][0].meta["prompt"])
            level += 1
        return [
            _conversation(sample, user_turns[i], answers) if i in user_turns else None
            for i, (sample, answers) in enumerate(talked)
        ]

    return turns


def _view(sample: Sample, user_turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """The conversation as the simulator sees it: its own turns are the assistant's, the model's answers the user's."""
    meta = sample.meta
    system = judge.SAFETY["user"].format(
        goal=meta["prompt"], how=STRATEGIES[meta["strategy"]], language=LANGUAGES[meta["language"]]
    )
    view = [Message.system(system), Message.user(judge.SAFETY["begin"])]
    for own, answer in zip(user_turns, answers, strict=False):
        view += [Message.assistant(own), Message.user(answer.strip() or judge.SAFETY["silent"])]
    return view


def _turn(text: str) -> str:
    """What of a simulator's reply is said; where nothing is left, the user asks for the thing itself."""
    return " ".join(text.strip(QUOTES).split())[:LONGEST]


def _conversation(
    sample: Sample, user_turns: Sequence[str], answers: Sequence[str]
) -> list[Message]:
    talk = []
    for number, text in enumerate(user_turns):
        talk.append(Message.user(_aloud(sample, text) if sample.meta["aloud"] else Text(text)))
        if number < len(answers):
            talk.append(Message.assistant(answers[number]))
    return talk


def _aloud(sample: Sample, text: str) -> Spoken:
    """A turn, spoken; one that no voice can speak (symbols alone, say) is replaced by what the user is after."""
    language = sample.meta["language"]
    try:
        return Spoken(spoken(text, language), text)
    except ValueError:
        text = sample.meta["prompt"]
        return Spoken(spoken(text, language), text)

"""Conversations with a simulated user who wants harm: plainly, by manipulating the context, by persuasion; in text and
aloud, in eight languages (report, sections 5.1 and 5.2).

The plain ones in text are how the report made Tables 10 and 13, the spoken ones Table 14. Of the other two ways its red
team says that they work better, persuasion mostly in French and Italian, and gives no numbers: ours stand beside.

A sample's meta say what the user is after (`prompt`), how (`strategy`), in which `language`, whether `aloud`, and for
how many `turns`. What the simulator says depends on nothing but these and the answers so far, and is cached as answers
are: a run that resumes sends nothing twice, and the same answers lead to the same next turn. Spoken turns reach the
model as audio alone; the simulator reads their text.

>>> turns = dialogues(Cache(endpoint, out, endpoint.name, name="simulated.gpt-4o"))
>>> benchmark = replace(benchmark, turns=turns)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.eval import judge
from polyphi.eval.benchmark import Benchmark, Row, Turns
from polyphi.eval.cache import Cache, Request
from polyphi.eval.severity import JUDGING, PROMPTS, by_harm, mean_rate, prompts, sample
from polyphi.eval.sources import Data
from polyphi.eval.spoken import SpokenText, synthesize
from polyphi.messages import LANGUAGES, Message, SamplingParams, Text

GOALS = replace(PROMPTS, files=("goals.jsonl",))
"""Where it is there, it takes the place of `prompts.jsonl`: `prompt` is what the user is after, and a line may say
"strategies", "aloud" ([false], say) and "turns", of which there are all, both and TURNS otherwise."""
TURNS = 3
STRATEGIES: Mapping[str, str] = judge.SAFETY["strategies"]
"""What a simulated user is told to do, by the strategy's name."""
SAYS = SamplingParams(max_tokens=160)
LONGEST = 600
"""Characters of a turn: what a person says at a time, about 40 seconds of speech."""
QUOTES = "\"'“”„«»「」 \n\t"


def load(data: Data) -> Iterator[Sample]:
    """Each goal by each strategy, in text and aloud, unless its line says less."""
    has_goals = (data.folder(PROMPTS) / GOALS.files[0]).is_file()
    for prompt in prompts(data, GOALS if has_goals else PROMPTS):
        for strategy in prompt.line.get("strategies", STRATEGIES):
            if strategy not in STRATEGIES:
                raise ValueError(
                    f"{GOALS.name}/{GOALS.files[0]}: expected strategies of {', '.join(STRATEGIES)}, found {strategy!r}"
                )
            for aloud in prompt.line.get("aloud", (False, True)):
                base = sample("adversarial", prompt, aloud=aloud)
                yield replace(
                    base,
                    id=f"{base.id}-{strategy.replace(' ', '-')}-{'aloud' if aloud else 'text'}",
                    meta={
                        **base.meta,
                        "strategy": strategy,
                        "aloud": bool(aloud),
                        "turns": int(prompt.line.get("turns", TURNS)),
                    },
                )


# ---------------------------------------------------------------------- the simulated user


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


def _aloud(sample: Sample, text: str) -> SpokenText:
    """A turn, spoken; one that no voice can speak (symbols alone, say) is replaced by what the user is after."""
    language = sample.meta["language"]
    try:
        return SpokenText(synthesize(text, language), text)
    except ValueError:
        text = sample.meta["prompt"]
        return SpokenText(synthesize(text, language), text)


TEXT = {"strategy": "plain", "aloud": False}
ATTACKS = ("context manipulation", "persuasion")
benchmark = Benchmark(
    name="adversarial",
    title="Adversarial conversations",
    modality="safety",
    rows=(
        *by_harm("Table 10", language="en", **TEXT),
        *(
            Row(
                "Table 13",
                name,
                {"language": code, **TEXT},
                "rate",
                "defect",
                statistic=mean_rate("harm"),
            )
            for code, name in LANGUAGES.items()
            if code != "en"
        ),
        Row("Table 13", "Average", TEXT, "rate", "defect", statistic=mean_rate("cell")),
        *by_harm("Table 14", language="en", strategy="plain", aloud=True),
        *(
            Row(
                "",
                f"{attack}, {'spoken' if aloud else 'text'}",
                {"strategy": attack, "aloud": aloud},
                "rate",
                "defect",
            )
            for attack in ATTACKS
            for aloud in (False, True)
        ),
        *(
            Row("", f"{attack}, {name}", {"strategy": attack, "language": code}, "rate", "defect")
            for attack in ATTACKS
            for code, name in LANGUAGES.items()
        ),
    ),
    sources=(PROMPTS,),
    load=load,
    judging=JUDGING,
    simulated=dialogues,
    max_tokens=256,
    status="substitute data",
    note="the user is played by a model of your choice, with a prompt of ours",
)

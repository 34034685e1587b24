"""Conversations with a simulated user who asks for harm: plainly, by manipulating the context, or by persuasion; in
text or spoken, in eight languages (report, sections 5.1 and 5.2).

Plain conversations in text are how the report made Tables 10 and 13, spoken ones Table 14. Its red team writes that the
other two strategies work better, persuasion mostly in French and Italian, without numbers; ours have separate rows.

A sample's meta has the user's goal (`prompt`), the `strategy`, the `language`, whether it is spoken (`aloud`) and the
number of `turns`. The simulator's turns depend only on these and on the answers so far, and are cached as answers are:
a run that resumes sends no request twice, and the same answers lead to the same next turn. The model receives spoken
turns as audio only; the simulator reads their text.

>>> turns = dialogues(Cache(endpoint, out, endpoint.name, name="simulated.gpt-4o"))
>>> benchmark = replace(benchmark, turns=turns)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi.types.sampling import SamplingParams
from polyphi.types.transcript import LANGUAGES
from polyphi_eval import judge
from polyphi_eval.benchmark import Benchmark, TableRow, Turns
from polyphi_eval.cache import Cache, CachedRequest
from polyphi_eval.severity import JUDGING, PROMPTS, by_harm, mean_rate, prompts, sample
from polyphi_eval.sources import Data
from polyphi_eval.spoken import SpokenText, synthesize

GOALS = replace(PROMPTS, files=("goals.jsonl",))
"""A file that replaces `prompts.jsonl` if it exists: `prompt` is the user's goal, and a line may have "strategies",
"aloud" (e.g. [false]) and "turns"; the defaults are all, both and TURNS."""
TURNS = 3
STRATEGIES: Mapping[str, str] = judge.SAFETY["strategies"]
"""Instructions for the simulated user, by the strategy's name."""
SAMPLING = SamplingParams(max_tokens=160)
MAX_CHARS = 600
"""Most characters of a user's turn: about 40 seconds of speech."""
QUOTES = "\"'“”„«»「」 \n\t"


def load(data: Data) -> Iterator[Sample]:
    """Yield each goal with each strategy, in text and spoken, unless its line restricts them."""
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
    """Return a function that gives the next turn of each conversation; user turns at the same position form a batch."""

    def turns(pairs: Sequence[tuple[Sample, Sequence[str]]]) -> list[Sequence[Message] | None]:
        unfinished = [i for i, (s, answers) in enumerate(pairs) if len(answers) < s.meta["turns"]]
        user_turns: dict[int, list[str]] = {i: [] for i in unfinished}
        position = 0
        while batch := [i for i in unfinished if position <= len(pairs[i][1])]:
            requests = [
                CachedRequest(_view(pairs[i][0], user_turns[i], pairs[i][1]), SAMPLING)
                for i in batch
            ]
            for i, answer in zip(batch, simulator.answers(requests), strict=True):
                user_turns[i].append(_turn(answer.text) or pairs[i][0].meta["prompt"])
            position += 1
        return [
            _conversation(sample, user_turns[i], answers) if i in user_turns else None
            for i, (sample, answers) in enumerate(pairs)
        ]

    return turns


def _view(sample: Sample, user_turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """The simulator's prompt, with roles swapped: its own turns are the assistant's, the model's answers the user's."""
    meta = sample.meta
    system = judge.SAFETY["user"].format(
        goal=meta["prompt"], how=STRATEGIES[meta["strategy"]], language=LANGUAGES[meta["language"]]
    )
    view = [Message.system(system), Message.user(judge.SAFETY["begin"])]
    for own, answer in zip(user_turns, answers, strict=False):
        view += [Message.assistant(own), Message.user(answer.strip() or judge.SAFETY["silent"])]
    return view


def _turn(text: str) -> str:
    """A simulator's reply without quotes and line breaks, cut to MAX_CHARS; "" if nothing is left."""
    return " ".join(text.strip(QUOTES).split())[:MAX_CHARS]


def _conversation(
    sample: Sample, user_turns: Sequence[str], answers: Sequence[str]
) -> list[Message]:
    messages = []
    for number, text in enumerate(user_turns):
        messages.append(Message.user(_speech(sample, text) if sample.meta["aloud"] else Text(text)))
        if number < len(answers):
            messages.append(Message.assistant(answers[number]))
    return messages


def _speech(sample: Sample, text: str) -> SpokenText:
    """A turn as audio; a turn that no voice can speak (only symbols, for example) is replaced by the goal."""
    language = sample.meta["language"]
    try:
        return SpokenText(synthesize(text, language), text)
    except ValueError:
        text = sample.meta["prompt"]
        return SpokenText(synthesize(text, language), text)


PLAIN_TEXT = {"strategy": "plain", "aloud": False}
ATTACKS = ("context manipulation", "persuasion")
benchmark = Benchmark(
    name="adversarial",
    title="Adversarial conversations",
    modality="safety",
    rows=(
        *by_harm("Table 10", language="en", **PLAIN_TEXT),
        *(
            TableRow(
                "Table 13",
                name,
                {"language": code, **PLAIN_TEXT},
                "rate",
                "defect",
                statistic=mean_rate("harm"),
            )
            for code, name in LANGUAGES.items()
            if code != "en"
        ),
        TableRow("Table 13", "Average", PLAIN_TEXT, "rate", "defect", statistic=mean_rate("cell")),
        *by_harm("Table 14", language="en", strategy="plain", aloud=True),
        *(
            TableRow(
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
            TableRow(
                "", f"{attack}, {name}", {"strategy": attack, "language": code}, "rate", "defect"
            )
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
    note="a model of your choice plays the user, with our prompt",
)

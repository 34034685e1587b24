"""Conversations with a simulated user who wants harm: plainly, by manipulating the context, by persuasion; in text and
aloud, in eight languages (report, sections 5.1 and 5.2).

The plain ones in text are how the report made Tables 10 and 13, the spoken ones Table 14. Of the other two ways its red
team says that they work better, persuasion mostly in French and Italian, and gives no numbers: ours stand beside.
"""

from collections.abc import Iterator
from dataclasses import replace

from polyphi.data.shards import Sample
from polyphi.eval.adversary import STRATEGIES, dialogues
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.severity import JUDGING, PROMPTS, by_harm, mean_rate, prompts, sample
from polyphi.eval.sources import Data
from polyphi.messages import LANGUAGES

GOALS = replace(PROMPTS, files=("goals.jsonl",))
"""Where it is there, it takes the place of `prompts.jsonl`: `prompt` is what the user is after, and a line may say
"strategies", "aloud" ([false], say) and "turns", of which there are all, both and TURNS otherwise."""
TURNS = 3


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

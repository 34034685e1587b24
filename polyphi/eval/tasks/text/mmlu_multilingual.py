"""Multilingual MMLU (report, Table 7): MMLU in nine languages (Okapi's translations) by letters, 5 examples.

The nine are those whose mean Phi-3.5's model card prints, which is also the report's number for that model. Words of
the prompt stay English. All samples count alike, which is the mean of languages but for some rows that a few lack.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import letters, samples, scoring
from polyphi.eval.sources import Data, Source, write_jsonl

LANGUAGES = ("ar", "de", "es", "fr", "it", "nl", "ru", "uk", "zh")
FIELDS = ("instruction", "option_a", "option_b", "option_c", "option_d", "answer")
NAME = "alexandrainst/m_mmlu"
TEST = Source(NAME, [f"data/{x}/test.jsonl" for x in LANGUAGES], "the Hub", fields=FIELDS)
TRAIN = Source(NAME, [f"data/{x}/train.jsonl" for x in LANGUAGES], "the Hub", fields=FIELDS)
TASK = letters("polyphi_m_mmlu")


def load(data: Data) -> Iterator[Sample]:
    for language, test, train in zip(LANGUAGES, TEST.files, TRAIN.files, strict=True):
        splits = {"train": islice(data.rows(TRAIN, train), 5), "test": data.rows(TEST, test)}
        told = {"language": language}
        yield from samples(TASK, splits, f"m_mmlu-{language}", NAME, "CC-BY-NC-4.0", told)


def mini(root: Path) -> None:
    asks = {
        "ar": "كم يساوي",
        "de": "Wie viel ist",
        "es": "¿Cuánto es",
        "fr": "Combien font",
        "it": "Quanto fa",
        "nl": "Hoeveel is",
        "ru": "Сколько будет",
        "uk": "Скільки буде",
        "zh": "多少是",
    }
    for language, words in asks.items():
        rows = []
        for number in range(6):
            options = {f"option_{'abcd'[k]}": str(number + 1 + k) for k in range(4)}
            answer = "ABCD"[number % 4]
            wanted = number + 1 + number % 4
            asked = f"{words} {number} + {wanted - number}?"
            rows.append({"instruction": asked, **options, "answer": answer, "id": f"{number}"})
        write_jsonl(root / NAME / f"data/{language}/train.jsonl", rows[:5])
        write_jsonl(root / NAME / f"data/{language}/test.jsonl", rows[5:])


benchmark = Benchmark(
    name="mmlu_multilingual",
    title="Multilingual MMLU",
    modality="text",
    rows=(
        Row("Table 7", "Multilingual-MMLU"),
        *(Row("", f"Multilingual MMLU, {x}", {"language": x}) for x in LANGUAGES),
    ),
    sources=(TEST, TRAIN),
    load=load,
    mini=mini,
    score_many=scoring(letters),
    max_tokens=16,
)

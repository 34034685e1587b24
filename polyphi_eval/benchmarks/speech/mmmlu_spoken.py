"""MMMLU, spoken (report, Table 6): 400 spoken questions with lettered options in each of eight languages, without any
text; accuracy.

Which 400 the report drew is unknown (the number follows from its scores); ours are drawn with seed 0, the same rows of
the test set in all languages: MMMLU's rows have the order of MMLU's.
"""

import random
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, TableRow
from polyphi_eval.scorers import references
from polyphi_eval.sources import BenchmarkSource, Data, audio_of
from polyphi_eval.spoken import with_options
from polyphi_eval.text.normalization import normalize

NAME = "mmmlu_spoken"
FILES = {
    "de": "DE-DE",
    "es": "ES-LA",
    "fr": "FR-FR",
    "it": "IT-IT",
    "ja": "JA-JP",
    "pt": "PT-BR",
    "zh": "ZH-CN",
}
LANGUAGES = ("en", *FILES)
QUESTIONS, SEED = 400, 0
SOURCE = BenchmarkSource(
    "spoken/mmmlu",
    (*(f"{language}.jsonl" for language in LANGUAGES), "clips/*.flac"),
    f"`polyphi eval synthesise {NAME} --data DIR`, which reads MMLU's and MMMLU's questions aloud",
    fields=("id", "language", "options", "answer", "audio"),
    rows=len(LANGUAGES) * QUESTIONS,
    hub=False,
)
ENGLISH = BenchmarkSource("cais/mmlu", ("all/test-*.parquet",), "the Hub", rows=14_042)
OTHERS = BenchmarkSource(
    "openai/MMMLU", tuple(f"test/mmlu_{f}.csv" for f in FILES.values()), "the Hub"
)
_ANSWER = """
    answer | antwort | respuesta | réponse | reponse | risposta | resposta
    | 答案 | 答え | 答 | 回答 | 解答 | 正解 | 答复
"""
_ANSWER_LETTER = re.compile(
    rf"(?:{'|'.join(w.strip() for w in _ANSWER.split('|'))})[\s*_]*:[\s*_(]*([A-D])(?![^\W_])",
    re.IGNORECASE,
)
"""simple-evals' pattern of an answer, in our languages; NFKC has replaced full-width letters and colons."""
_ALONE = re.compile(r"(?<![^\W_\u3040-\u9fff])[A-D](?![^\W_\u3040-\u9fff]|['’])")
"""A letter that stands alone; Chinese and Japanese put no spaces around it."""
_WORD = re.compile(r"A\s+[^\W\d_A-Z]")
"""An "A" that is a word ("A resposta é B", "A cat")."""


def letter(answer: str, sample: Sample) -> Score:
    """The letter after "Answer:" in any of the languages, otherwise the first letter that stands alone and is no word,
    the one option that the answer names, or an "A" alone whatever follows it. An answer without any of them is wrong.

    Lenient: an answer that names the right option and no other one is right too, whatever its letter."""
    text = unicodedata.normalize("NFKC", answer)
    named = _named_option(text, sample)
    alone = [m for m in _ALONE.finditer(text)]
    separate = [m for m in alone if not _WORD.match(text, m.start())]
    if match := _ANSWER_LETTER.search(text):
        choice = match[1].upper()
    elif separate:
        choice = separate[0][0]
    else:
        choice = named or (alone[0][0] if alone else "")
    reference = references(sample)[0]
    return Score(float(choice == reference), choice, {LENIENT: float(reference in (choice, named))})


def _named_option(text: str, sample: Sample) -> str:
    """The letter of the only option whose words the text has; an option within another one doesn't count."""
    language = sample.meta["language"]
    words = f" {normalize(text, language)} "
    options = {
        a: f" {o} " if language not in ("zh", "ja") else o
        for a, o in zip(
            "ABCD", (normalize(o, language) for o in sample.meta["options"]), strict=False
        )
        if o
    }
    hits = {a: o for a, o in options.items() if o in words}
    longest = [a for a, o in hits.items() if not any(o in p and o != p for p in hits.values())]
    return longest[0] if len(longest) == 1 else ""


def spoken_questions(data: Data) -> Iterator[Mapping[str, Any]]:
    english = list(data.rows(ENGLISH))
    numbers = sorted(random.Random(SEED).sample(range(len(english)), min(QUESTIONS, len(english))))
    for number in numbers:
        row = english[number]
        answer = row["answer"] if isinstance(row["answer"], str) else "ABCD"[row["answer"]]
        yield _row("en", number, row["question"], row["choices"], answer, row["subject"])
    for language, name in FILES.items():
        rows = list(data.rows(OTHERS, f"test/mmlu_{name}.csv"))
        if len(rows) != len(english):
            raise ValueError(
                f"mmlu_{name}.csv: expected the {len(english):,} questions of the English test set, found {len(rows):,}"
            )
        for number in numbers:
            row = rows[number]
            options = [row[a] for a in "ABCD"]
            answer = row["Answer"].strip().upper()
            yield _row(language, number, row["Question"], options, answer, row["Subject"])


def _row(
    language: str, number: int, question: str, options: list[str], answer: str, subject: str
) -> Mapping[str, Any]:
    return {
        "id": f"{language}-{number}",
        "language": language,
        "text": with_options(question, options),
        "options": list(options),
        "answer": answer,
        "subject": subject,
        "file": f"{language}.jsonl",
    }


def load(data: Data) -> Iterator[Sample]:
    root = data.folder(SOURCE)
    for row in data.rows(SOURCE):
        yield Sample(
            f"mmmlu-{row['id']}",
            (Message.user(audio_of(row["audio"], root)), Message.assistant(row["answer"])),
            ENGLISH.name if row["language"] == "en" else OTHERS.name,
            "MIT",
            {key: row[key] for key in ("language", "options", "subject", "voice") if key in row},
        )


benchmark = Benchmark(
    name=NAME,
    title="MMMLU, spoken",
    modality="speech",
    rows=tuple(TableRow("Table 6", f"MMMLU {a.upper()}", {"language": a}) for a in LANGUAGES),
    sources=(SOURCE,),
    load=load,
    scorer=letter,
    max_tokens=512,
    note="the voice and the selection of 400 questions are not the report's",
    spoken_questions=spoken_questions,
)

"""MMMLU, spoken: letters of answers in eight languages, and the selection of questions."""

import csv
from pathlib import Path

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import LENIENT
from polyphi_eval.benchmarks.speech.mmmlu_spoken import FILES, benchmark, letter
from polyphi_eval.sources import Data, write_rows

TOWNS = ["Paris", "Rome", "New York", "York"]


@pytest.mark.parametrize(
    ("answer", "language", "choice"),
    [
        ("B", "en", "B"),
        ("b", "en", ""),
        ("(B) Rome", "en", "B"),
        ("Answer: C", "en", "C"),
        ("I take D. No: **Answer:** B", "en", "B"),
        ("Antwort: B. Nicht A.", "de", "B"),
        ("Respuesta: (B)", "es", "B"),
        ("Réponse : B", "fr", "B"),
        ("La risposta corretta è B.", "it", "B"),
        ("A resposta correta é B.", "pt", "B"),
        ("C'est la réponse B", "fr", "B"),
        ("D’accord : B", "fr", "B"),
        ("答案是B。", "zh", "B"),
        ("答案：Ｂ", "zh", "B"),
        ("正しいのはBです", "ja", "B"),
        ("A is right", "en", "A"),
        ("A city called Rome.", "en", "B"),
        ("It is Rome", "en", "B"),
        ("It is New York", "en", "C"),
        ("Rome or Paris", "en", ""),
        ("ABCD", "en", ""),
        ("Bern", "de", ""),
        ("", "en", ""),
    ],
)
def test_letters(answer: str, language: str, choice: str) -> None:
    meta = {"language": language, "options": TOWNS}
    score = letter(answer, Sample("s", (Message.assistant("B"),), "", "", meta))
    assert (score.extracted, score.value) == (choice, float(choice == "B"))


def test_a_right_option_after_a_wrong_letter_is_only_leniently_right() -> None:
    meta = {"language": "en", "options": TOWNS}
    score = letter("C. Rome", Sample("s", (Message.assistant("B"),), "", "", meta))
    assert (score.value, score.parts[LENIENT]) == (0, 1)


def texts(root: Path, english: int, others: int) -> Data:
    rows = [
        {
            "question": f"en {n}?",
            "choices": ["w", "x", "y", "z"],
            "answer": n % 4,
            "subject": "anatomy",
        }
        for n in range(english)
    ]
    write_rows(root / "cais/mmlu/all/test-00000-of-00001.parquet", rows)
    for language, name in FILES.items():
        path = root / f"openai/MMMLU/test/mmlu_{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["", "Question", "A", "B", "C", "D", "Answer", "Subject"])
            for n in range(others):
                table.writerow([n, f"{language}, {n}?\nWhich?", *"wxyz", "ABCD"[n % 4], "anatomy"])
    return Data(root)


def test_all_languages_have_the_same_400_questions(tmp_path: Path) -> None:
    assert benchmark.spoken_questions
    rows = list(benchmark.spoken_questions(texts(tmp_path, 1000, 1000)))
    assert len(rows) == 8 * 400
    selection = {
        language: [(r["id"].split("-")[1], r["answer"]) for r in rows if r["language"] == language]
        for language in ("en", *FILES)
    }
    assert all(pairs == selection["en"] for pairs in selection.values())
    numbers = [int(n) for n, _ in selection["en"]]
    assert numbers == sorted(set(numbers)) and len(numbers) == 400
    assert all("ABCD"[int(n) % 4] == answer for n, answer in selection["en"])
    german = next(r for r in rows if r["language"] == "de")
    assert german["text"] == f"de, {numbers[0]}?\nWhich?\nA. w.\nB. x.\nC. y.\nD. z."
    assert german["file"] == "de.jsonl"


def test_the_error_names_a_language_with_other_questions(tmp_path: Path) -> None:
    assert benchmark.spoken_questions
    with pytest.raises(ValueError, match=r"mmlu_DE-DE.csv: expected the 10 questions .* found 9"):
        list(benchmark.spoken_questions(texts(tmp_path, 10, 9)))

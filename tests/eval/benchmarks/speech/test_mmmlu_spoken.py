"""MMMLU, spoken: the selection of questions."""

import csv
from pathlib import Path

import pytest

from polyphi_eval.benchmarks.speech.mmmlu_spoken import FILES, benchmark
from polyphi_eval.sources import Data, write_rows


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

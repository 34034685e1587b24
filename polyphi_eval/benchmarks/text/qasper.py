"""Qasper (report, Table 7): questions about whole papers; token F1 against the best reference."""

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, TableRow
from polyphi_eval.scorers import references
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "qasper",
    ("qasper-test-v0.3.json",),
    "https://allenai.org/data/qasper (test and evaluator, v0.3)",
    fields=("title", "abstract", "full_text", "qas"),
    rows=416,
    hub=False,
    licence="CC-BY-4.0",
)
PROMPT = """\
Read the paper, then answer the question about it with a phrase or a sentence, as short as possible. \
Say "Yes" or "No" where the question asks for that, and "Unanswerable" where the paper has no answer.

{paper}

Question: {question}
Answer:"""
"""Our own prompt: the report prints none."""
UNANSWERABLE = "Unanswerable"


def load(data: Data) -> Iterator[Sample]:
    for paper in data.rows(SOURCE):
        text = paper_text(paper)
        for question in paper["qas"]:
            answers = list(dict.fromkeys(answer_text(a["answer"]) for a in question["answers"]))
            yield SOURCE.sample(
                f"qasper-{question['question_id']}",
                Message.user(PROMPT.format(paper=text, question=question["question"])),
                answers[0],
                {"answers": answers[1:]},
            )


def paper_text(paper: Mapping[str, Any]) -> str:
    """Title, abstract and all sections."""
    parts = [paper["title"], paper["abstract"]]
    for section in paper["full_text"]:
        parts += [section["section_name"] or "", *section["paragraphs"]]
    return "\n\n".join(part for part in parts if part)


def answer_text(answer: Mapping[str, Any]) -> str:
    """An annotator's answer as text: "Unanswerable", spans of the paper, free text, "Yes" or "No"."""
    if answer["unanswerable"]:
        return UNANSWERABLE
    if answer["extractive_spans"]:
        return ", ".join(answer["extractive_spans"])
    return answer["free_form_answer"] or ("Yes" if answer["yes_no"] else "No")


def token_f1(answer: str, sample: Sample) -> Score:
    """SQuAD's word F1, the maximum over the references; lenient: also of the answer's first sentence alone."""
    accepted = [plain_words(r) for r in references(sample)]
    words = plain_words(answer)
    first = plain_words(re.split(r"(?<=[.!?])\s|\n", answer.strip(), maxsplit=1)[0])
    value = max(f1(words, reference) for reference in accepted)
    lenient = max(value, *(f1(first, reference) for reference in accepted))
    return Score(value, " ".join(words[:200]), {LENIENT: lenient})


def plain_words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in text.split() if word not in ("a", "an", "the")]


def f1(answer: list[str], reference: list[str]) -> float:
    common = sum((Counter(answer) & Counter(reference)).values())
    if not common:
        return float(answer == reference)
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)


benchmark = Benchmark(
    name="qasper",
    title="Qasper",
    modality="text",
    rows=(TableRow("Table 7", "Qasper"),),
    sources=(SOURCE,),
    load=load,
    scorer=token_f1,
    max_tokens=128,
    note="The report doesn't state the metric or the number of examples: here token F1, no examples.",
)

"""MMMU (report, Table 1): 900 college questions of 30 subjects with images among their words; micro average."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval import vqa
from polyphi.eval.benchmark import Benchmark, Row, Score
from polyphi.eval.sources import Data, Source, image_of
from polyphi.messages import Message

SOURCE = Source(
    "MMMU/MMMU",
    ("*/validation-*.parquet",),
    "the Hub",
    fields=("id", "question", "options", "answer", "question_type", "image_1", "image_7"),
    rows=900,
    licence="Apache-2.0",
)
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+(?:[eE][-+]?\d+)?)")
TELLING = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""Words on which the answer follows, as MMMU's parser has them."""


def options(row: Mapping[str, Any]) -> list[str]:
    """The options of a row: a list as Python writes it."""
    return [str(option) for option in ast.literal_eval(row["options"])]


def question(row: Mapping[str, Any], instruction: str) -> Message:
    """A row's question and options with its images in their places."""
    images = {k: image_of(row[f"image_{k}"]) for k in range(1, 8) if row.get(f"image_{k}")}
    text = vqa.with_options(row["question"], options(row))
    return vqa.interleaved(f"{text}\n{instruction}", images)


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        choice = row["question_type"] == "multiple-choice"
        prompt = question(row, vqa.CHOOSE if choice else vqa.SHORT)
        meta = {"kind": "choice" if choice else "open", "options": options(row)}
        yield SOURCE.sample(row["id"], prompt, str(row["answer"]), meta)


def score(answer: str, sample: Sample) -> Score:
    return (vqa.mmmu_choice if sample.meta["kind"] == "choice" else open_answer)(answer, sample)


def open_answer(answer: str, sample: Sample) -> Score:
    """A reference stands in what the answer comes to, or equals a number of it (MMMU's rule, generous by itself; to it
    alone 1,000.5 is 1,000 and .5)."""
    accepted = {n for reference in _listed(sample.answer) for n in _normal(reference)}
    ends = _ends(answer)
    values = {n for end in ends for text in [end, *NUMBER.findall(end)] for n in _normal(text)}
    texts = [text for text in values if isinstance(text, str)]
    right = any(
        any(w in text for text in texts) if isinstance(w, str) else w in values for w in accepted
    )
    return Score(float(right), " | ".join(ends)[:1000])


def _listed(text: str) -> list[str]:
    """The accepted answers: one, or a list as Python writes it."""
    try:
        value = ast.literal_eval(text) if text.startswith("[") else text
    except (ValueError, SyntaxError):
        value = text
    return [str(h) for h in value] if isinstance(value, list) else [text]


def _normal(text: str) -> list[str | float]:
    """A number to two decimals, or lower case; a single letter only as the end or the beginning of a word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        return [f" {text.lower()}", f"{text.lower()} "] if len(text) == 1 else [text.lower()]


def _ends(answer: str) -> list[str]:
    """What the lines come to: the shortest of what follows on telling words; all of the answer if there are none."""
    answer = answer.strip().strip(".").lower()
    lines, ends = answer.split("\n"), []
    for number, line in enumerate(lines):
        words = (*TELLING, "=") if number == len(lines) - 1 else TELLING
        shortest = ""
        for end in (line.rpartition(word)[2].strip() for word in words if word in line):
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest.strip(":,.!?;'"):
            ends.append(shortest)
    return ends or [answer]


benchmark = Benchmark(
    name="mmmu",
    title="MMMU",
    modality="vision",
    rows=(
        Row("Table 1", "MMMU (val)"),
        Row("", "MMMU, questions with options", {"kind": "choice"}),
        Row("", "MMMU, open questions", {"kind": "open"}),
    ),
    sources=(SOURCE,),
    load=load,
    scorer=score,
    max_tokens=1024,
)

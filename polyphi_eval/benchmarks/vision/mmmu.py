"""MMMU (report, Table 1): 900 college questions of 30 subjects with images within the text; micro average."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SOURCE = BenchmarkSource(
    "MMMU/MMMU",
    ("*/validation-*.parquet",),
    "the Hub",
    fields=("id", "question", "options", "answer", "question_type", "image_1", "image_7"),
    rows=900,
    licence="Apache-2.0",
)
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+(?:[eE][-+]?\d+)?)")
CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""Words before an answer, as in MMMU's parser."""


def options(row: Mapping[str, Any]) -> list[str]:
    """The options of a row, a Python list as text."""
    return [str(option) for option in ast.literal_eval(row["options"])]


def question(row: Mapping[str, Any], instruction: str) -> Message:
    """A row's question and options with its images at their positions in the text."""
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
    """Whether a reference is in the answer's conclusions or equals a number in them (MMMU's rule, already lenient;
    MMMU's script, unlike this, reads 1,000.5 as 1,000 and .5)."""
    accepted = {n for reference in _references(sample.answer) for n in _normalize(reference)}
    ends = _conclusions(answer)
    values = {n for end in ends for text in [end, *NUMBER.findall(end)] for n in _normalize(text)}
    texts = [text for text in values if isinstance(text, str)]
    right = any(
        any(w in text for text in texts) if isinstance(w, str) else w in values for w in accepted
    )
    return Score(float(right), " | ".join(ends)[:1000])


def _references(text: str) -> list[str]:
    """The accepted answers: one, or a Python list as text."""
    try:
        value = ast.literal_eval(text) if text.startswith("[") else text
    except (ValueError, SyntaxError):
        value = text
    return [str(h) for h in value] if isinstance(value, list) else [text]


def _normalize(text: str) -> list[str | float]:
    """A number rounded to two decimals, or text in lower case; a single letter with a space before or after it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        return [f" {text.lower()}", f"{text.lower()} "] if len(text) == 1 else [text.lower()]


def _conclusions(answer: str) -> list[str]:
    """The conclusion of each line, the shortest text after a cue; the whole answer if no line has one."""
    answer = answer.strip().strip(".").lower()
    lines, ends = answer.split("\n"), []
    for number, line in enumerate(lines):
        words = (*CUES, "=") if number == len(lines) - 1 else CUES
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
        TableRow("Table 1", "MMMU (val)"),
        TableRow("", "MMMU, questions with options", {"kind": "choice"}),
        TableRow("", "MMMU, open questions", {"kind": "open"}),
    ),
    sources=(SOURCE,),
    load=load,
    scorer=score,
    max_tokens=1024,
)

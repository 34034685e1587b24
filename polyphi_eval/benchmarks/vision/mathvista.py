"""MathVista (report, Table 1): 1,000 questions that need mathematics, each with a hint about the format of its answer.

Only rules read the answers, as in the report: its footnote says that a model lost points by the format of its answers.
"""

import json
import re
from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import vqa
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, TableRow
from polyphi_eval.benchmarks.vision.mmmu import NUMBER
from polyphi_eval.sources import BenchmarkSource, Data, image_of

SOURCE = BenchmarkSource(
    "AI4Math/MathVista",
    ("data/testmini-*.parquet",),
    "the Hub",
    fields=(
        *("pid", "query", "question_type", "answer_type", "precision", "choices", "answer"),
        "decoded_image",
    ),
    rows=1000,
    licence="CC-BY-SA-4.0",
)


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        prompt = Message.user(image_of(row["decoded_image"]), row["query"])
        choice = row["question_type"] == "multi_choice"
        yield SOURCE.sample(
            f"mathvista-{row['pid']}",
            prompt,
            row["answer"],
            {
                "kind": "choice" if choice else row["answer_type"],
                "decimals": int(row["precision"] or 0),
                "options": [str(c) for c in row["choices"]] if choice else [],
            },
        )


def score(answer: str, sample: Sample) -> Score:
    """Whether the answer's end, as the hint requests it, equals the reference: an option (its letter, or the most
    similar one, by at least half), an integer, a rounded number, or a list. Lenient: the last letter or number
    anywhere."""
    answer_type, reference = sample.meta["kind"], sample.answer
    if answer_type == "choice":
        strict, loose = _option(answer, sample.meta["options"])
    elif answer_type == "list":
        strict = loose = _list(answer)
        reference = _list(reference)
    else:
        decimals = 0 if answer_type == "integer" else sample.meta["decimals"]
        last = _end(answer).split()[-1:]
        strict = _rounded("".join(last).strip("$%°.,:;"), decimals)
        loose = _rounded("".join(NUMBER.findall(answer)[-1:]), decimals)
        reference = _rounded(reference, decimals)
    lenient = bool(reference) and reference in (strict, loose)
    return Score(
        float(strict != "" and strict == reference), strict[:1000], {LENIENT: float(lenient)}
    )


def _end(answer: str) -> str:
    """The text after "answer is" or "answer:" in the last line, or all of that line."""
    line = answer.strip().rpartition("\n")[2]
    return re.split(r"(?i)answer(?: is|:)", line)[-1].strip().strip("*\"'")


def _option(answer: str, options: list[str]) -> tuple[str, str]:
    """The options that an answer strictly and leniently names; "" for none."""
    by_letter, end = vqa.letters(options), _end(answer)
    bracketed = [a for a in re.findall(r"\(([A-Z])\)", end) if a in by_letter]
    letter = vqa.first_letter(end, options) or "".join(bracketed[-1:])
    similarity = {o: vqa.similarity(end.casefold(), o.casefold()) for o in options}
    nearest = max(options, key=lambda o: similarity[o])
    option = by_letter[letter] if letter else nearest if similarity[nearest] else ""
    return option, option or by_letter.get(vqa.lenient_letter(answer, options), "")


def _rounded(text: str, decimals: int) -> str:
    try:
        value = float(text.replace(",", ""))
        return str(round(value, decimals) if decimals else int(value))
    except (ValueError, OverflowError):
        return ""


def _list(text: str) -> str:
    """The last list of numbers in a text, as JSON writes it; "" if there is none."""
    lists = re.findall(r"\[[^\[\]]*\]", text)
    try:
        return json.dumps([float(n) for n in json.loads(lists[-1])]) if lists else ""
    except (ValueError, TypeError, OverflowError):
        return ""


benchmark = Benchmark(
    name="mathvista",
    title="MathVista",
    modality="vision",
    rows=(TableRow("Table 1", "MathVista (testmini)"),),
    sources=(SOURCE,),
    load=load,
    scorer=score,
    max_tokens=1024,
)

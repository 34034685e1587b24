"""ShareGPT4o_AI2D, _ChartQA, _DocVQA, _InfoVQA (report, Table 2): spoken questions of four image benchmarks.

The model gets an image and audio, and no text. InternOmni's own sets aren't published in a format that we know, so
`polyphi eval synthesise` makes new audio from the text of `written_questions`.
"""

from collections.abc import Iterator
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.benchmarks.vision import chartqa, docvqa, lettered
from polyphi_eval.scorers import references
from polyphi_eval.sources import BenchmarkSource, Data, audio_of, image_of, read_rows

BENCHMARKS = {b.name: b for b in (*lettered.benchmarks, chartqa.benchmark, *docvqa.benchmarks)}
SETS = {
    "ShareGPT4o_AI2D": (BENCHMARKS["ai2d"], "letter"),
    "ShareGPT4o_ChartQA": (BENCHMARKS["chartqa"], "relaxed"),
    "ShareGPT4o_DocVQA": (BENCHMARKS["docvqa"], "anls"),
    "ShareGPT4o_InfoVQA": (BENCHMARKS["infovqa"], "anls"),
}
METRICS = {"letter": vqa.letter_or_text, "relaxed": vqa.relaxed, "anls": vqa.anls}
SOURCE = BenchmarkSource(
    "ShareGPT4o",
    ("ShareGPT4o_*.jsonl",),
    "`polyphi eval synthesise`, which speaks the questions of " + ", ".join(SETS),
    fields=("id", "image", "audio", "question", "answers", "metric"),
    hub=False,
    licence="that of the set which the question is from",
)


def load(data: Data) -> Iterator[Sample]:
    for path in data.files(SOURCE):
        for number, row in enumerate(read_rows(path), 1):
            if row["metric"] not in METRICS:
                raise ValueError(
                    f"{path}: row {number} has the metric {row['metric']!r}; expected {', '.join(METRICS)}"
                )
            prompt = Message.user(
                image_of(row["image"], path.parent), audio_of(row["audio"], path.parent)
            )
            yield SOURCE.sample(
                f"{path.stem}/{row['id']}",
                prompt,
                str(row["answers"][0]),
                {
                    "set": path.stem,
                    "metric": row["metric"],
                    "answers": [str(answer) for answer in row["answers"]],
                    "options": row.get("options") or [],
                },
            )


def score(answer: str, sample: Sample) -> Score:
    return METRICS[sample.meta["metric"]](answer, sample)


def written_questions(data: Data, name: str) -> Iterator[dict[str, Any]]:
    """Yield the questions of one of `SETS`: `id`, `image` (bytes or a path), `text` (to be spoken, with the options and
    their letters), `question`, `options` (or None), `answers`, `metric`."""
    if name not in SETS:
        raise ValueError(f"there is no set {name!r}; expected one of {', '.join(SETS)}")
    benchmark, metric = SETS[name]
    for sample in benchmark.load(data):
        if sample.meta.get("hidden"):
            continue
        (prompt,) = sample.prompt
        options = sample.meta.get("options")
        question = prompt.text.rpartition("\n")[0]  # without the instruction
        question = question.removesuffix(vqa.with_options("", options)) if options else question
        choices = [f"{a}: {option}." for a, option in vqa.letters(options or ()).items()]
        yield {
            "id": sample.id,
            "image": prompt.parts[0].source,  # type: ignore[union-attr]
            "text": " ".join([question, *choices]),
            "question": question,
            "options": options,
            "answers": list(dict.fromkeys(references(sample))),
            "metric": metric,
        }


def spoken_questions(data: Data) -> Iterator[dict[str, Any]]:
    """The questions of all sets, each with the `file` that `load` reads."""
    for name in SETS:
        yield from ({**row, "file": f"{name}.jsonl"} for row in written_questions(data, name))


benchmark = Benchmark(
    name="sharegpt4o",
    title="ShareGPT4o",
    modality="joint",
    rows=tuple(TableRow("Table 2", name, {"set": name}) for name in SETS),
    sources=(SOURCE,),
    load=load,
    scorer=score,
    spoken_questions=spoken_questions,
    status="substitute data",
    note="the questions are synthesized again: InternOmni's audio isn't published",
)

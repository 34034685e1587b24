"""Multiple-choice questions answered by letters (report, Table 7): ARC-Challenge, BoolQ, HellaSwag, MMLU in English and
in nine other languages, OpenBookQA, PIQA, SocialIQA, TruthfulQA and WinoGrande.

Prompts, examples and filters come from our lm-eval tasks (`eval/lm_eval/polyphi_NAME.yaml`). The first rows of a
training split are the examples.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from polyphi.data.sample import Sample
from polyphi_eval.benchmark import Benchmark, Status, TableRow
from polyphi_eval.lm_tasks import letter_task, samples, scoring
from polyphi_eval.sources import BenchmarkSource, Data

Load = Callable[[Data], Iterator[Sample]]


def letter_choice(
    name: str,
    title: str,
    rows: Sequence[TableRow],
    sources: Sequence[BenchmarkSource],
    load: Load,
    note: str = "",
    status: Status = "reproduced setting",
) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        modality="text",
        rows=rows,
        sources=sources,
        load=load,
        score_many=scoring(letter_task),
        max_tokens=16,
        note=note,
        status=status,
    )


def few_shot(
    name: str,
    title: str,
    label: str,
    dataset: str,
    licence: str,
    files: tuple[str, str],
    fields: Sequence[str],
    count: int,
    shots: int,
    note: str = "",
) -> Benchmark:
    """Return a benchmark of `count` questions of the first of `files`, with `shots` examples from the second."""
    test = BenchmarkSource(
        dataset, files[:1], "the Hub", fields=fields, rows=count, licence=licence
    )
    train = BenchmarkSource(dataset, files[1:], "the Hub", fields=fields)
    split = "test" if "test" in files[0] else "validation"

    def load(data: Data) -> Iterator[Sample]:
        splits = {"train": islice(data.rows(train), shots), split: data.rows(test)}
        return samples(letter_task(f"polyphi_{name}"), splits, name, test)

    return letter_choice(name, title, (TableRow("Table 7", label),), (test, train), load, note)


# ---------------------------------------------------------------------- MMLU

MMLU_FIELDS = ("question", "subject", "choices", "answer")
MMLU = partial(BenchmarkSource, "cais/mmlu", where="the Hub", fields=MMLU_FIELDS, licence="MIT")
MMLU_TEST = MMLU(files=("all/test-*.parquet",), rows=14042)
MMLU_DEV = MMLU(files=("all/dev-*.parquet",), rows=285)


def mmlu(data: Data) -> Iterator[Sample]:
    """Yield MMLU's questions, each with five examples from its subject."""
    dev, test = (_by_subject(data, source) for source in (MMLU_DEV, MMLU_TEST))
    for subject, rows in test.items():
        splits = {"dev": dev[subject], "test": rows}
        name, meta = f"mmlu-{subject}", {"subject": subject}
        yield from samples(letter_task("polyphi_mmlu"), splits, name, MMLU_TEST, meta)


def _by_subject(data: Data, source: BenchmarkSource) -> Mapping[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in data.rows(source):
        groups[row["subject"]].append(row)
    return groups


# Phi-3.5's model card prints the mean of these nine languages; the report has the same number for that model.
LANGUAGES = ("ar", "de", "es", "fr", "it", "nl", "ru", "uk", "zh")
M_MMLU_FIELDS = ("instruction", "option_a", "option_b", "option_c", "option_d", "answer")
M_MMLU = partial(
    BenchmarkSource,
    "alexandrainst/m_mmlu",
    where="the Hub",
    fields=M_MMLU_FIELDS,
    licence="CC-BY-NC-4.0",
)
M_MMLU_TEST = M_MMLU(files=[f"data/{language}/test.jsonl" for language in LANGUAGES])
M_MMLU_TRAIN = M_MMLU(files=[f"data/{language}/train.jsonl" for language in LANGUAGES])


def multilingual_mmlu(data: Data) -> Iterator[Sample]:
    """Okapi's translations; the prompt's own words stay English. All samples have equal weight, which is the mean over
    languages except that a few languages lack some rows."""
    task = letter_task("polyphi_m_mmlu")
    for language, test, train in zip(LANGUAGES, M_MMLU_TEST.files, M_MMLU_TRAIN.files, strict=True):
        splits = {
            "train": islice(data.rows(M_MMLU_TRAIN, train), 5),
            "test": data.rows(M_MMLU_TEST, test),
        }
        name, meta = f"m_mmlu-{language}", {"language": language}
        yield from samples(task, splits, name, M_MMLU_TEST, meta)


# ---------------------------------------------------------------------- TruthfulQA

# The report's row says MC2, a share of probability among true and false answers, which letters can't give. Two
# interpretations are measured: the one true choice among false ones (MC1's choices), and the best true choice against
# one false choice.
TRUTHFULQA = BenchmarkSource(
    "truthfulqa/truthful_qa",
    ("multiple_choice/validation-*.parquet",),
    "the Hub",
    fields=("question", "mc1_targets", "mc2_targets"),
    rows=817,
    licence="Apache-2.0",
)


def truthfulqa(data: Data) -> Iterator[Sample]:
    """Yield TruthfulQA's questions in both forms, each with ten examples from the same set."""
    rows = list(data.rows(TRUTHFULQA))
    for form in ("mc1", "two"):
        task, splits = letter_task(f"polyphi_truthfulqa_{form}"), {"validation": rows}
        name, meta = f"truthfulqa-{form}", {"form": form}
        yield from samples(task, splits, name, TRUTHFULQA, meta)


benchmarks = (
    few_shot(
        "arc_c",
        "ARC-Challenge",
        "Arc-C",
        "allenai/ai2_arc",
        "CC-BY-SA-4.0",
        ("ARC-Challenge/test-*.parquet", "ARC-Challenge/train-*.parquet"),
        ("question", "choices", "answerKey"),
        count=1172,
        shots=10,
    ),
    few_shot(
        "boolq",
        "BoolQ",
        "BoolQ",
        "google/boolq",
        "CC-BY-SA-3.0",
        ("data/validation-*.parquet", "data/train-*.parquet"),
        ("question", "passage", "answer"),
        count=3270,
        shots=2,
        note="The model answers yes or no by a letter, like other choices; the report doesn't say how it prompts.",
    ),
    few_shot(
        "hellaswag",
        "HellaSwag",
        "HellaSwag",
        "Rowan/hellaswag",
        "MIT",
        ("data/validation-*.parquet", "data/train-*.parquet"),
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        count=10042,
        shots=5,
    ),
    letter_choice("mmlu", "MMLU", (TableRow("Table 7", "MMLU"),), (MMLU_TEST, MMLU_DEV), mmlu),
    letter_choice(
        "mmlu_multilingual",
        "Multilingual MMLU",
        (
            TableRow("Table 7", "Multilingual-MMLU"),
            *(TableRow("", f"Multilingual MMLU, {x}", {"language": x}) for x in LANGUAGES),
        ),
        (M_MMLU_TEST, M_MMLU_TRAIN),
        multilingual_mmlu,
    ),
    few_shot(
        "openbookqa",
        "OpenBookQA",
        "OpenBookQA",
        "allenai/openbookqa",
        "Apache-2.0",
        ("main/test-*.parquet", "main/train-*.parquet"),
        ("question_stem", "choices", "answerKey"),
        count=500,
        shots=10,
    ),
    few_shot(
        "piqa",
        "PIQA",
        "PIQA",
        "baber/piqa",
        "AFL-3.0",
        ("piqa_validation.parquet", "piqa_train.parquet"),
        ("goal", "sol1", "sol2", "label"),
        count=1838,
        shots=5,
    ),
    few_shot(
        "siqa",
        "SocialIQA",
        "SociQA",
        "lighteval/siqa",
        "CC-BY-4.0",
        ("data/validation-*.parquet", "data/train-*.parquet"),
        ("context", "question", "answerA", "answerB", "answerC", "label"),
        count=1954,
        shots=5,
    ),
    letter_choice(
        "truthfulqa",
        "TruthfulQA",
        (
            TableRow("Table 7", "TruthfulQA MC2", {"form": "mc1"}, ours="MC1, by letter"),
            TableRow("", "TruthfulQA, the true one of two", {"form": "two"}),
        ),
        (TRUTHFULQA,),
        truthfulqa,
        "the report names MC2, a share of probability, which letters can't give: here the share of questions whose "
        "letter is that of MC1's true choice",
        "metric differs",
    ),
    few_shot(
        "winogrande",
        "WinoGrande",
        "WinoGrande",
        "allenai/winogrande",
        "CC-BY-4.0",
        ("winogrande_xl/validation-*.parquet", "winogrande_xl/train-*.parquet"),
        ("sentence", "option1", "option2", "answer"),
        count=1267,
        shots=5,
    ),
)

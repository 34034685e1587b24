"""Questions about images with lettered options (report, Table 1): AI2D, BLINK, InterGPS, ScienceQA."""

from collections.abc import Callable, Iterable, Iterator

from polyphi.data.sample import Sample
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, image_of, read_rows

AI2D = BenchmarkSource(
    "lmms-lab/ai2d",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("question", "options", "answer", "image"),
    rows=3088,
    licence="CC-BY-SA-4.0",
)
BLINK_TASKS = (
    *("Art_Style", "Counting", "Forensic_Detection", "Functional_Correspondence", "IQ_Test"),
    *("Jigsaw", "Multi-view_Reasoning", "Object_Localization", "Relative_Depth"),
    *("Relative_Reflectance", "Semantic_Correspondence", "Spatial_Relation"),
    *("Visual_Correspondence", "Visual_Similarity"),
)
BLINK = BenchmarkSource(
    "BLINK-Benchmark/BLINK",
    tuple(f"{task}/val-*.parquet" for task in BLINK_TASKS),
    "the Hub",
    fields=("idx", "sub_task", "image_1", "image_4", "choices", "answer", "prompt"),
    rows=1901,
    licence="Apache-2.0",
)
GEOMETRY3K = "data/geometry3k/test"
INTERGPS = BenchmarkSource(
    "InterGPS",
    (f"{GEOMETRY3K}/*/data.json", f"{GEOMETRY3K}/*/img_diagram.png"),
    f"github.com/lupantech/InterGPS (its README says where Geometry3K is); unpack test.zip to {GEOMETRY3K}",
    fields=("problem_text", "choices", "answer"),
    rows=601,
    licence="MIT",
    hub=False,
    single=True,
)
SCIENCEQA = BenchmarkSource(
    "derek-thomas/ScienceQA",
    ("data/test-*.parquet",),
    "the Hub",
    fields=("image", "question", "choices", "answer", "hint"),
    rows=4241,
    licence="CC-BY-SA-4.0",
)


def ai2d(data: Data) -> Iterator[vqa.Question]:
    """Diagrams whose labels are masked by letters."""
    for number, row in enumerate(data.rows(AI2D)):
        yield vqa.Question(
            f"ai2d-{number}",
            [image_of(row["image"])],
            row["question"],
            [str(option) for option in row["options"]],
            "ABCDEFGH"[int(row["answer"])],
        )


def blink(data: Data) -> Iterator[vqa.Question]:
    """14 tasks that people solve within a blink, with one to four images each; micro average. Prompts have the options.

    The report says "test", but compares with Phi-3.5-Vision's number for validation: these are the 1,901 validation
    questions.
    """
    for row in data.rows(BLINK):
        yield vqa.Question(
            row["idx"],
            [image_of(row[f"image_{k}"]) for k in range(1, 5) if row[f"image_{k}"]],
            row["prompt"],
            [str(choice) for choice in row["choices"]],
            row["answer"].strip("()"),
            {"task": row["sub_task"]},
            list_options=False,
        )


def intergps(data: Data) -> Iterator[vqa.Question]:
    """Geometry3K's questions about a diagram."""
    for path in data.files(INTERGPS, INTERGPS.files[0]):
        (row,) = read_rows(path, single=True)
        yield vqa.Question(
            f"intergps-{path.parent.name}",
            [image_of("img_diagram.png", path.parent)],
            row["problem_text"],
            [str(choice) for choice in row["choices"]],
            row["answer"],
        )


def scienceqa(data: Data) -> Iterator[vqa.Question]:
    """School questions; the 2,017 of 4,241 test questions that have an image."""
    for number, row in enumerate(data.rows(SCIENCEQA)):
        if row["image"] is not None:
            hint = f"Context: {row['hint']}\n" if row["hint"] else ""
            yield vqa.Question(
                f"scienceqa-{number}",
                [image_of(row["image"])],
                hint + row["question"],
                list(row["choices"]),
                "ABCDE"[int(row["answer"])],
            )


def lettered(
    name: str,
    title: str,
    label: str,
    source: BenchmarkSource,
    questions: Callable[[Data], Iterable[vqa.Question]],
) -> Benchmark:
    def load(data: Data) -> Iterator[Sample]:
        return (question.sample(source) for question in questions(data))

    return Benchmark(
        name=name,
        title=title,
        modality="vision",
        rows=(TableRow("Table 1", label),),
        sources=(source,),
        load=load,
        scorer=vqa.letter,
    )


benchmarks = (
    lettered("ai2d", "AI2D", "AI2D (test)", AI2D, ai2d),
    lettered("blink", "BLINK", "BLINK", BLINK, blink),
    lettered("intergps", "InterGPS", "InterGPS (test)", INTERGPS, intergps),
    lettered("scienceqa", "ScienceQA", "ScienceQA (test, image)", SCIENCEQA, scienceqa),
)

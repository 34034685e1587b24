"""BIG-Bench Hard (report, Table 7): 6,511 problems of 27 kinds, 0 examples, with a chain of thought."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.lm_tasks import LmTask, samples, scoring
from polyphi.eval.sources import Data, Source, read_rows, write_parquet

SOURCE = Source(
    "SaylorTwift/bbh",
    ("*/test-*.parquet",),
    "the Hub",
    fields=("input", "target"),
    rows=6511,
)


def task(name: str) -> LmTask:
    return LmTask(name, "bbh/cot_zeroshot", strict="flexible-extract")


def load(data: Data) -> Iterator[Sample]:
    for path in data.files(SOURCE):
        kind = path.parent.name
        yield from samples(
            task(f"bbh_cot_zeroshot_{kind}"),
            {"test": read_rows(path)},
            f"bbh-{kind}",
            SOURCE.name,
            "MIT",
            {"kind": kind},
            lambda row: f"The answer is {row['target']}.",
        )


def mini(root: Path) -> None:
    order = (
        "A pear, a plum and a fig lie in a row. The fig is left of the plum, the pear of the fig."
    )
    options = "(A) The pear is the first\n(B) The plum is the first\n(C) The fig is the first"
    made = {
        "boolean_expressions": ("not ( True and False ) is", "True"),
        "dyck_languages": (
            "Complete the rest of the sequence, making sure that the parentheses are closed properly. Input: [ ( { }",
            ") ]",
        ),
        "logical_deduction_three_objects": (
            f"{order}\nOptions:\n{options}",
            "(A)",
        ),
        "object_counting": ("I have a drum, two flutes and a horn. How many instruments?", "4"),
        "sports_understanding": ('Is this plausible? "The goalkeeper saved a penalty."', "yes"),
        "word_sorting": (
            "Sort the following words alphabetically: List: pear apple fig",
            "apple fig pear",
        ),
    }
    for kind, (question, target) in made.items():
        write_parquet(
            root / SOURCE.name / kind / "test-00000-of-00001.parquet",
            [{"input": question, "target": target}],
        )


benchmark = Benchmark(
    name="bbh",
    title="BIG-Bench Hard",
    modality="text",
    rows=(
        Row("Table 7", "BigBench-Hard"),
        Row("", 'BIG-Bench Hard, only after "the answer is"', part="strict-match"),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    score_many=scoring(task),
    max_tokens=1024,
)

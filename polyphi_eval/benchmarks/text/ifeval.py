"""IFEval (report, Table 7): 541 prompts with instructions that a program can check; all of them must be followed.

The checks are lm-eval's. They need NLTK's English sentence model, which is in `eval/nltk_data` because NLTK would
download it, and langdetect, which is deterministic only with a seed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from polyphi.data.sample import Sample
from polyphi.runtime.installation import pip_install
from polyphi_eval import lm_tasks
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.lm_tasks import LmTask, samples, scoring
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "google/IFEval",
    ("ifeval_input_data.jsonl",),
    "the Hub",
    fields=("key", "prompt", "instruction_id_list", "kwargs"),
    rows=541,
    licence="Apache-2.0",
)
TASK = LmTask(
    "ifeval", "ifeval", metric="prompt_level_strict_acc", lenient="prompt_level_loose_acc"
)
NLTK_DATA = Path(lm_tasks.__file__).parent / "nltk_data"


def load(data: Data) -> Iterator[Sample]:
    prepare()
    # The public rows have no reference answers.
    return samples(
        TASK,
        {"train": data.rows(SOURCE)},
        "ifeval",
        SOURCE,
        reference=lambda row: row.get("reference") or "",
    )


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> Sequence[Score]:
    prepare()
    return scoring(lambda name: TASK)(pairs)


def prepare() -> None:
    """Prepare what the checks need, before they are imported. Raises ValueError if a package is missing."""
    try:
        import langdetect
        import nltk
    except ImportError as error:
        raise ValueError(f"IFEval needs {error.name}; {pip_install('eval')}") from None
    if str(NLTK_DATA) not in nltk.data.path:
        nltk.data.path.insert(0, str(NLTK_DATA))
    nltk.data.find("tokenizers/punkt_tab/english/")
    langdetect.DetectorFactory.seed = 0


benchmark = Benchmark(
    name="ifeval",
    title="IFEval",
    modality="text",
    rows=(TableRow("Table 7", "IFEval"),),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=1280,
)

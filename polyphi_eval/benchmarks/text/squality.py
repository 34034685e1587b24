"""SQuALITY (report, Table 7): summaries of whole stories that answer a question; ROUGE against four references.

The report doesn't say which ROUGE: the row is the geometric mean of ROUGE-1, 2 and L, as in ZeroSCROLLS; the three
have rows too.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from polyphi.data.sample import Sample
from polyphi.runtime.installation import pip_install
from polyphi.types.messages import Message
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.scorers import references
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "nyu-mll/SQuALITY",
    ("data/v1-3/txt/test.jsonl",),
    "https://github.com/nyu-mll/SQuALITY",
    fields=("metadata", "document", "questions"),
    rows=52,
    hub=False,
    licence="MIT AND Project-Gutenberg",
)
TASK = """\
Read the story, then answer the question about it in a paragraph of about 200 words.

{story}

Question: {question}
Answer:"""
"""Our own prompt: the report prints none."""
METRICS = ("rouge1", "rouge2", "rougeL")
MAX_CHARS = 20_000
"""Characters of an answer that are compared: ROUGE-L's time grows with their square."""


def load(data: Data) -> Iterator[Sample]:
    for story in data.rows(SOURCE):
        for question in story["questions"]:
            answers = [response["response_text"] for response in question["responses"]]
            prompt = TASK.format(
                story=story["document"].strip(), question=question["question_text"]
            )
            yield SOURCE.sample(
                f"squality-{story['metadata']['passage_id']}-{question['question_number']}",
                Message.user(prompt),
                answers[0],
                {"answers": answers[1:]},
            )


def rouge(answer: str, sample: Sample) -> Score:
    """F-measures of ROUGE-1, 2 and L with stemming, 0 to 100, maxima over the references. The value is ROUGE-L's."""
    results = [_scorer().score(reference, answer[:MAX_CHARS]) for reference in references(sample)]
    parts = {name: 100 * max(r[name].fmeasure for r in results) for name in METRICS}
    return Score(parts["rougeL"] / 100, answer[:MAX_CHARS], parts)


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError(f"SQuALITY needs rouge-score; {pip_install('eval')}") from None
    return RougeScorer(list(METRICS), use_stemmer=True)


benchmark = Benchmark(
    name="squality",
    title="SQuALITY",
    modality="text",
    rows=(
        TableRow("Table 7", "SQuALITY", metric="geometric"),
        *(
            TableRow("", f"SQuALITY, {name}", metric="mean", part=part)
            for part, name in zip(METRICS, ("ROUGE-1", "ROUGE-2", "ROUGE-L"), strict=True)
        ),
    ),
    sources=(SOURCE,),
    load=load,
    scorer=rouge,
    max_tokens=512,
    note="The report doesn't say which ROUGE: here the geometric mean of three; the prompt is ours.",
)

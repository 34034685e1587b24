"""SQuALITY (report, Table 7): summaries of whole stories that answer a question, against four references by ROUGE.

The report doesn't say which ROUGE: the row is the geometric mean of ROUGE-1, 2 and L, as ZeroSCROLLS has it; the three
stand beside.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from polyphi.data.shards import Sample
from polyphi.eval.benchmark import Benchmark, Row, Score
from polyphi.eval.scorers import references
from polyphi.eval.sources import Data, Source
from polyphi.messages import Message

SOURCE = Source(
    "nyu-mll/SQuALITY",
    ("data/v1-3/txt/test.jsonl",),
    "https://github.com/nyu-mll/SQuALITY",
    fields=("metadata", "document", "questions"),
    rows=52,
    hub=False,
    licence="MIT AND Project-Gutenberg",
)
ASK = """\
Read the story, then answer the question about it in a paragraph of about 200 words.

{story}

Question: {question}
Answer:"""
"""Our own words: the report prints none."""
KINDS = ("rouge1", "rouge2", "rougeL")
LONGEST = 20_000
"""Characters of an answer that are compared: ROUGE-L takes time with the square of it."""


def load(data: Data) -> Iterator[Sample]:
    for story in data.rows(SOURCE):
        for question in story["questions"]:
            answers = [response["response_text"] for response in question["responses"]]
            prompt = ASK.format(story=story["document"].strip(), question=question["question_text"])
            yield SOURCE.sample(
                f"squality-{story['metadata']['passage_id']}-{question['question_number']}",
                Message.user(prompt),
                answers[0],
                {"answers": answers[1:]},
            )


def rouge(answer: str, sample: Sample) -> Score:
    """F of ROUGE-1, 2 and L with stemming, 0 to 100, each the best of the references. The value is ROUGE-L's."""
    scored = [_scorer().score(reference, answer[:LONGEST]) for reference in references(sample)]
    parts = {kind: 100 * max(s[kind].fmeasure for s in scored) for kind in KINDS}
    return Score(parts["rougeL"] / 100, answer[:LONGEST], parts)


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError("SQuALITY needs rouge-score; pip install 'polyphi[eval]'") from None
    return RougeScorer(list(KINDS), use_stemmer=True)


benchmark = Benchmark(
    name="squality",
    title="SQuALITY",
    modality="text",
    rows=(
        Row("Table 7", "SQuALITY", metric="geometric"),
        *(
            Row("", f"SQuALITY, {name}", metric="mean", part=kind)
            for kind, name in zip(KINDS, ("ROUGE-1", "ROUGE-2", "ROUGE-L"), strict=True)
        ),
    ),
    sources=(SOURCE,),
    load=load,
    scorer=rouge,
    max_tokens=512,
    note="Which ROUGE isn't in the report: the geometric mean of three; the prompt is ours.",
)

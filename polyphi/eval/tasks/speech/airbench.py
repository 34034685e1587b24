"""AIR-Bench chat (report, Table 6): open questions about speech, sound, music and mixtures, judged 1 to 10.

A judge sees a description of the recording, the reference answer first and the model's second, and gives two numbers,
of which the model's counts. AIR-Bench's own score is the mean of both orders, which stands beside it.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from polyphi.data.shards import Sample
from polyphi.eval import prompts
from polyphi.eval.benchmark import Benchmark, Judging, Row
from polyphi.eval.sources import Data, Source, clip
from polyphi.eval.spoken import RATE, spoken
from polyphi.messages import Message, Text

GROUPS = {
    "mixed": ("speech_and_sound_QA", "speech_and_music_QA"),
    "music": ("music_QA", "music_generation_analysis_QA"),
    "sound": ("sound_QA", "sound_generation_QA"),
    "speech": ("speech_QA", "speech_dialogue_QA"),
}
SOURCE = Source(
    "qyang1021/AIR-Bench-Dataset",
    ("Chat/Chat_meta.json", "Chat/*/*"),
    "the Hub",
    fields=("path", "question", "answer_gt", "task_name", "dataset_name", "meta_info", "uniq_id"),
    hub=True,
)


def load(data: Data) -> Iterator[Sample]:
    root = data.folder(SOURCE) / "Chat"
    groups = {task: group for group, tasks in GROUPS.items() for task in tasks}
    for row in data.rows(SOURCE, "Chat/Chat_meta.json"):
        folder = f"{row['task_name']}_{row['dataset_name']}"
        yield Sample(
            f"airbench-{row['uniq_id']}",
            (
                Message.user(clip(f"{folder}/{row['path']}", root), Text(row["question"])),
                Message.assistant(row["answer_gt"]),
            ),
            SOURCE.name,
            "unknown",
            {
                "group": groups.get(row["task_name"], row["task_name"]),
                "question": row["question"],
                "description": str(row["meta_info"]),
            },
        )


def asks(sample: Sample, answers: Sequence[str]) -> Mapping[str, Sequence[Message]]:
    if not answers:
        return {}
    told = {"meta_info": sample.meta["description"], "question": sample.meta["question"]}
    ours, theirs = answers[-1], sample.answer
    return {
        "points": prompts.AIR_BENCH.filled(**told, reference=theirs, ai_response=ours),
        "swapped": prompts.AIR_BENCH.filled(**told, reference=ours, ai_response=theirs),
    }


def reads(name: str, reply: str, sample: Sample) -> float | None:
    """The model's of exactly two whole numbers up to 10, a space between them (AIR-Bench's rule)."""
    numbers = reply.strip().replace("\n", "").split(" ")
    if len(numbers) != 2 or not all(n.isascii() and n.isdigit() and len(n) < 3 for n in numbers):
        return None
    found = [int(n) for n in numbers]
    return float(found[0 if name == "swapped" else 1]) if max(found) <= 10 else None


def sums(points: Mapping[str, float | None]) -> Mapping[str, float | None]:
    """`both` is AIR-Bench's own score, the mean of both orders, where both can be read."""
    first, second = points.get("points"), points.get("swapped")
    return {**points, "both": None if first is None or second is None else (first + second) / 2}


def mini(root: Path) -> None:
    seconds = np.arange(RATE) / RATE
    tone = 0.2 * np.sin(2 * np.pi * 440 * seconds)
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    speech = soundfile.read(io.BytesIO(spoken("The train leaves at nine.")))[0]
    waves = {
        "mixed": (
            speech + 0.1 * np.resize(noise, len(speech)),
            "A voice says a train leaves; noise.",
        ),
        "music": (tone, "One steady tone of 440 Hz."),
        "sound": (noise, "White noise."),
        "speech": (speech, "A voice says: The train leaves at nine."),
    }
    rows: list[dict[str, Any]] = []
    for group, tasks in GROUPS.items():
        wave, described = waves[group]
        for task in tasks:
            row = {
                "path": f"{len(rows)}.wav",
                "question": "What can be heard?",
                "answer_gt": described,
                "task_name": task,
                "dataset_name": "made",
                "meta_info": described,
                "uniq_id": len(rows),
            }
            path = root / SOURCE.name / f"Chat/{task}_made/{row['path']}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.clip(wave, -1, 1), RATE, subtype="PCM_16")
            rows.append(row)
    (root / SOURCE.name / "Chat/Chat_meta.json").write_text(json.dumps(rows))


benchmark = Benchmark(
    name="airbench",
    title="AIR-Bench chat",
    modality="speech",
    rows=(
        *(
            Row("Table 6", f"AirBench-chat {g}", {"group": g}, metric="mean", part="points")
            for g in GROUPS
        ),
        *(Row("", f"AIR-Bench {g}, both orders", {"group": g}, "mean", "both") for g in GROUPS),
    ),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    judging=Judging(
        asks,
        reads,
        {"points": prompts.AIR_BENCH.words},
        sums=sums,
    ),
    max_tokens=512,
)

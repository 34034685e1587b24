"""Golden3 (report, Table 6): summaries of 108 meetings by 1,071 instructions. The set is the report's authors' own;
whoever has a like one gives it as JSON lines of `audio` (a file beside them), `transcript` and `instruction`."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import summaries
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.sources import Data, Source, clip, write_jsonl
from polyphi.eval.spoken import spoken

SOURCE = Source(
    "golden3",
    ("questions.jsonl",),
    "yourself: the report's set is private; one like it is questions.jsonl with audio, transcript and instruction",
    fields=("audio", "transcript", "instruction"),
    hub=False,
)


def load(data: Data) -> Iterator[Sample]:
    root = data.folder(SOURCE)
    for number, row in enumerate(data.rows(SOURCE)):
        yield summaries.sample(
            f"golden3-{number}",
            clip(row["audio"], root),
            row["transcript"],
            row["instruction"],
            SOURCE.name,
            "unknown",
        )


def mini(root: Path) -> None:
    said = ["The box shall be red.", "No, blue. And we meet on Monday."]
    summaries.wave(root / SOURCE.name / "meeting.wav", [spoken(text) for text in said])
    rows = [
        {"audio": "meeting.wav", "transcript": "\n".join(said), "instruction": instruction}
        for instruction in ("Summarize the meeting in one sentence.", "When is the next meeting?")
    ]
    write_jsonl(root / SOURCE.name / "questions.jsonl", rows)


benchmark = Benchmark(
    name="golden3",
    title="Golden3 summaries",
    modality="speech",
    rows=summaries.rows("Golden3"),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    judging=summaries.JUDGING,
    max_tokens=summaries.MAX_TOKENS,
    status="private",
    note=summaries.NOTE,
)

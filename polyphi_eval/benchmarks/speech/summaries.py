"""Summaries of meetings (report, Table 6), judged three times against the transcript (4.1.2 and Appendix A).

Overall quality and adherence to the instruction are 1 to 7, hallucination is 0 or 1 (0 is none). The report prints only
the first one's prompt; the other two are ours.

AMI: 20 test meetings of half an hour, each as a whole, with 10 instructions each. The meetings are the scenario part of
AMI's test set (20 of them, 32 minutes on average, as in the report), as a mix of the headset microphones. The report's
instructions, by GPT-4, are not public. Ours (`ami_instructions.json`) were written by a language model for the four
types of meeting that every group holds, in the categories that the report names: all of a meeting or a part, and its
style, length or structure. A file `ami/instructions.json` in the data replaces them: a list of instructions for each
meeting.

Golden3: 108 meetings with 1,071 instructions, the report authors' own set. You can supply a similar one as JSON lines
of `audio` (a file in the same folder), `transcript` and `instruction`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Text
from polyphi_eval import judge
from polyphi_eval.benchmark import Benchmark, Judging, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, audio_of

PROMPTS = {
    "overall": judge.PROMPTS["summary_overall"],
    "adherence": judge.PROMPTS["summary_adherence"],
    "hallucination": judge.PROMPTS["summary_hallucination"],
}
NOTE = "the judge's prompts for adherence and hallucination are ours: the report prints only the overall one"
MAX_TOKENS = 1024


def sample(
    id: str,
    recording: Audio,
    transcript: str,
    instruction: str,
    source: str,
    licence: str,
    **meta: Any,
) -> Sample:
    """A whole recording and an instruction, without a reference; the transcript is for the judge."""
    return Sample(
        id,
        (Message.user(recording, Text(instruction)), Message.assistant("")),
        source,
        licence,
        {"instruction": instruction, "transcript": transcript, **meta},
    )


def requests(sample: Sample, answers: Sequence[str]) -> Mapping[str, Sequence[Message]]:
    fields = {"src": sample.meta["transcript"], "instruction": sample.meta["instruction"]}
    return {
        name: prompt.fill(**fields, tgt=answers[-1]) for name, prompt in PROMPTS.items() if answers
    }


def read(name: str, reply: str, sample: Sample) -> float | None:
    """The points that a judge's reply gives; None for "N/A" and anything else off the scale."""
    if name != "hallucination":
        return judge.points(reply, 1, 7)
    value = judge.points(reply, 0, 1)
    return value if value in (0, 1) else None


JUDGING = Judging(requests, read, {name: prompt.text for name, prompt in PROMPTS.items()})


def rows(name: str) -> tuple[TableRow, ...]:
    """The rows of Table 6 for a set."""
    labels = {
        "hallucination": f"{name} hallucination (lower better)",
        "adherence": f"{name} instruction adherence",
        "overall": f"{name} overall",
    }
    return tuple(
        TableRow("Table 6", label, metric="mean", part=part) for part, label in labels.items()
    )


# ---------------------------------------------------------------------- AMI

GROUPS = ("ES2004", "ES2014", "IS1009", "TS3003", "TS3007")
MEETINGS = tuple(f"{group}{part}" for group in GROUPS for part in "abcd")
AMI = BenchmarkSource(
    "ami",
    (
        *(f"amicorpus/{m}/audio/{m}.Mix-Headset.wav" for m in MEETINGS),
        *(f"words/{m}.[A-E].words.xml" for m in MEETINGS),
    ),
    "the AMI corpus's site: headset mix of the meetings, and the manual annotations' `words` folder",
    hub=False,
)
PAUSE = 1.0
"""Longest silence within a speaker's utterance, in seconds."""


@dataclass
class Utterance:
    speaker: str
    start: float
    end: float
    text: str


def transcript(folder: Path, meeting: str) -> str:
    """The transcript, one utterance per line, sorted by start; a speaker's successive utterances are joined."""
    utterances = [u for path in folder.glob(f"{meeting}.?.words.xml") for u in _utterances(path)]
    lines: list[tuple[str, str]] = []
    for u in sorted(utterances, key=lambda u: (u.start, u.speaker)):
        if lines and lines[-1][0] == u.speaker:
            lines[-1] = (u.speaker, f"{lines[-1][1]} {u.text}")
        else:
            lines.append((u.speaker, u.text))
    return "\n".join(f"Speaker {speaker}: {text}" for speaker, text in lines)


def _utterances(path: Path) -> Iterator[Utterance]:
    """A speaker's utterances. Laughs and gaps are in other elements; not all words have times."""
    speaker, current = path.name.split(".")[1], None
    for word in ElementTree.parse(path).iter("w"):
        text = (word.text or "").strip()
        start, end = word.get("starttime"), word.get("endtime")
        if not text:
            continue
        mark = word.get("punc") == "true"
        if current and (mark or start is None or float(start) - current.end <= PAUSE):
            current.text += text if mark else f" {text}"
            current.end = max(current.end, float(end or current.end))
        elif not mark and start is not None:
            if current:
                yield current
            current = Utterance(speaker, float(start), float(end or start), text)
    if current:
        yield current


def ami(data: Data) -> Iterator[Sample]:
    root = data.folder(AMI)
    custom = root / "instructions.json"
    path = custom if custom.exists() else Path(__file__).with_name("ami_instructions.json")
    instructions = json.loads(path.read_text(encoding="utf-8"))
    for meeting in MEETINGS:
        if of_meeting := instructions.get(meeting):
            text = transcript(root / "words", meeting)
            recording = Audio(root / f"amicorpus/{meeting}/audio/{meeting}.Mix-Headset.wav")
            for number, instruction in enumerate(of_meeting):
                yield sample(
                    f"{meeting}-{number}",
                    recording,
                    text,
                    instruction,
                    "AMI",
                    "CC-BY-4.0",
                    meeting=meeting,
                )


# ---------------------------------------------------------------------- Golden3

GOLDEN3 = BenchmarkSource(
    "golden3",
    ("questions.jsonl",),
    "you: the report's set is private; supply questions.jsonl with audio, transcript and instruction",
    fields=("audio", "transcript", "instruction"),
    hub=False,
)


def golden3(data: Data) -> Iterator[Sample]:
    root = data.folder(GOLDEN3)
    for number, row in enumerate(data.rows(GOLDEN3)):
        yield sample(
            f"golden3-{number}",
            audio_of(row["audio"], root),
            row["transcript"],
            row["instruction"],
            GOLDEN3.name,
            "unknown",
        )


benchmarks = (
    Benchmark(
        name="ami_ssum",
        title="AMI summaries",
        modality="speech",
        rows=rows("AMI"),
        sources=(AMI,),
        load=ami,
        judging=JUDGING,
        max_tokens=MAX_TOKENS,
        note=f"the instructions are not the report's; {NOTE}",
    ),
    Benchmark(
        name="golden3",
        title="Golden3 summaries",
        modality="speech",
        rows=rows("Golden3"),
        sources=(GOLDEN3,),
        load=golden3,
        judging=JUDGING,
        max_tokens=MAX_TOKENS,
        status="private",
        note=NOTE,
    ),
)

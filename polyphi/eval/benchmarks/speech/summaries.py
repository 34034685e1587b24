"""Summaries of meetings (report, Table 6), judged three times against the transcript (4.1.2 and Appendix A).

Overall quality and adherence to the instruction are 1 to 7, hallucination is 0 or 1 (0 is none). The report prints the
judge's prompt of the first alone; the other two are ours.

AMI: 20 test meetings of half an hour, each heard whole, by 10 instructions each. The meetings are the scenario part of
AMI's test set (20 of them, 32 minutes on average, as the report says), heard by their headset microphones, mixed. The
report's instructions, by GPT-4, are not public. Ours (`ami_instructions.json`) were written by a language model for the
four kinds of meeting that every group holds, of the kinds that the report names: all of a meeting or a part, and its
style, length or structure. `ami/instructions.json`, where it is among the data, takes their place: a list of
instructions for each meeting.

Golden3: 108 meetings by 1,071 instructions, the report's authors' own set; whoever has a like one gives it as JSON
lines of `audio` (a file beside them), `transcript` and `instruction`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from polyphi.data.shards import Sample
from polyphi.eval import judge
from polyphi.eval.benchmark import Benchmark, Judging, Row
from polyphi.eval.sources import Data, Source, audio_of
from polyphi.messages import Audio, Message, Text

PROMPTS = {
    "overall": judge.PROMPTS["summary_overall"],
    "adherence": judge.PROMPTS["summary_adherence"],
    "hallucination": judge.PROMPTS["summary_hallucination"],
}
NOTE = "the judge's prompts of adherence and hallucination are ours: the report prints the overall one alone"
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
    """A recording, whole, and what to do with it. There is no reference; the transcript is the judge's."""
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
    """ "N/A" and whatever else isn't on the scale is no points."""
    if name != "hallucination":
        return judge.points(reply, 1, 7)
    value = judge.points(reply, 0, 1)
    return value if value in (0, 1) else None


JUDGING = Judging(requests, read, {name: prompt.text for name, prompt in PROMPTS.items()})


def rows(name: str) -> tuple[Row, ...]:
    """Those of Table 6 for a set."""
    labels = {
        "hallucination": f"{name} hallucination (lower better)",
        "adherence": f"{name} instruction adherence",
        "overall": f"{name} overall",
    }
    return tuple(Row("Table 6", label, metric="mean", part=part) for part, label in labels.items())


# ---------------------------------------------------------------------- AMI

GROUPS = ("ES2004", "ES2014", "IS1009", "TS3003", "TS3007")
MEETINGS = tuple(f"{group}{part}" for group in GROUPS for part in "abcd")
AMI = Source(
    "ami",
    (
        *(f"amicorpus/{m}/audio/{m}.Mix-Headset.wav" for m in MEETINGS),
        *(f"words/{m}.[A-E].words.xml" for m in MEETINGS),
    ),
    "the AMI corpus's site: headset mix of the meetings, and the manual annotations' `words` folder",
    hub=False,
)
PAUSE = 1.0
"""Seconds of silence within which a speaker's words are one utterance."""


@dataclass
class Utterance:
    speaker: str
    start: float
    end: float
    text: str


def transcript(folder: Path, meeting: str) -> str:
    """What was said, an utterance a line, by who began first."""
    utterances = [u for path in folder.glob(f"{meeting}.?.words.xml") for u in _utterances(path)]
    lines: list[tuple[str, str]] = []
    for u in sorted(utterances, key=lambda u: (u.start, u.speaker)):
        if lines and lines[-1][0] == u.speaker:
            lines[-1] = (u.speaker, f"{lines[-1][1]} {u.text}")
        else:
            lines.append((u.speaker, u.text))
    return "\n".join(f"Speaker {speaker}: {text}" for speaker, text in lines)


def _utterances(path: Path) -> Iterator[Utterance]:
    """A speaker's words; laughs and gaps stand in other elements. Not all words have times."""
    speaker, now = path.name.split(".")[1], None
    for word in ElementTree.parse(path).iter("w"):
        text = (word.text or "").strip()
        start, end = word.get("starttime"), word.get("endtime")
        if not text:
            continue
        mark = word.get("punc") == "true"
        if now and (mark or start is None or float(start) - now.end <= PAUSE):
            now.text += text if mark else f" {text}"
            now.end = max(now.end, float(end or now.end))
        elif not mark and start is not None:
            if now:
                yield now
            now = Utterance(speaker, float(start), float(end or start), text)
    if now:
        yield now


def ami(data: Data) -> Iterator[Sample]:
    root = data.folder(AMI)
    own = root / "instructions.json"
    path = own if own.exists() else Path(__file__).with_name("ami_instructions.json")
    instructions = json.loads(path.read_text(encoding="utf-8"))
    for meeting in MEETINGS:
        if own_instructions := instructions.get(meeting):
            text = transcript(root / "words", meeting)
            recording = Audio(root / f"amicorpus/{meeting}/audio/{meeting}.Mix-Headset.wav")
            for number, instruction in enumerate(own_instructions):
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

GOLDEN3 = Source(
    "golden3",
    ("questions.jsonl",),
    "yourself: the report's set is private; one like it is questions.jsonl with audio, transcript and instruction",
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

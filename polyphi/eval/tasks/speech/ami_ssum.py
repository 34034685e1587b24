"""AMI summaries (report, Table 6): 20 test meetings of half an hour, each heard whole, by 10 instructions each.

The meetings are the scenario part of AMI's test set (20 of them, 32 minutes on average, as the report says), heard by
their headset microphones, mixed. The report's instructions, by GPT-4, are not public. Ours (`ami_instructions.json`)
were written by a language model for the four kinds of meeting that every group holds, of the kinds that the report
names: all of a meeting or a part, and its style, length or structure. `ami/instructions.json`, where it is among the
data, takes their place: a list of instructions for each meeting.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from polyphi.data.shards import Sample
from polyphi.eval import summaries
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.sources import Data, Source
from polyphi.eval.spoken import spoken
from polyphi.messages import Audio

GROUPS = ("ES2004", "ES2014", "IS1009", "TS3003", "TS3007")
MEETINGS = tuple(f"{group}{part}" for group in GROUPS for part in "abcd")
SOURCE = Source(
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
    found = [u for path in folder.glob(f"{meeting}.?.words.xml") for u in _utterances(path)]
    lines: list[tuple[str, str]] = []
    for u in sorted(found, key=lambda u: (u.start, u.speaker)):
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


def load(data: Data) -> Iterator[Sample]:
    root = data.folder(SOURCE)
    own = root / "instructions.json"
    path = own if own.exists() else Path(__file__).with_name("ami_instructions.json")
    instructions = json.loads(path.read_text(encoding="utf-8"))
    for meeting in MEETINGS:
        if asked := instructions.get(meeting):
            said = transcript(root / "words", meeting)
            recording = Audio(root / f"amicorpus/{meeting}/audio/{meeting}.Mix-Headset.wav")
            for number, instruction in enumerate(asked):
                yield summaries.sample(
                    f"{meeting}-{number}",
                    recording,
                    said,
                    instruction,
                    "AMI",
                    "CC-BY-4.0",
                    meeting=meeting,
                )


def mini(root: Path) -> None:
    """Two meetings of two sentences; of the others there is half a second."""
    words = [("A", "The remote control shall be yellow."), ("B", "And it may cost five Euro.")]
    clips = [spoken(text) for _, text in words]
    short = spoken("Yes.")
    folder = root / SOURCE.name
    (folder / "words").mkdir(parents=True, exist_ok=True)
    for meeting in MEETINGS:
        told = meeting in MEETINGS[:2]
        path = folder / f"amicorpus/{meeting}/audio/{meeting}.Mix-Headset.wav"
        summaries.wave(path, clips if told else [short])
        for n, (speaker, text) in enumerate(words if told else [("A", "Yes.")]):
            _write_words(folder / f"words/{meeting}.{speaker}.words.xml", text, 3.0 * n)
    asked = [
        "Summarize the whole meeting.",
        "Summarize in bullet points what the product may cost.",
    ]
    (folder / "instructions.json").write_text(json.dumps(dict.fromkeys(MEETINGS[:2], asked)))


def _write_words(path: Path, text: str, start: float) -> None:
    """As AMI's annotations have it: a word an element, the full stop one of its own."""
    name = "http://nite.sourceforge.net/"
    ElementTree.register_namespace("nite", name)
    tree = ElementTree.Element(f"{{{name}}}root", {f"{{{name}}}id": path.name.removesuffix(".xml")})
    for n, word in enumerate([*text.rstrip(".").split(), "."]):
        at = {
            "starttime": f"{start + 0.3 * n:.2f}",
            "endtime": f"{start + 0.3 * (n + (word != '.')):.2f}",
        }
        mark = {"punc": "true"} if word == "." else {}
        ElementTree.SubElement(
            tree, "w", {f"{{{name}}}id": f"{path.stem}{n}", **at, **mark}
        ).text = word
    ElementTree.ElementTree(tree).write(path, "ISO-8859-1", xml_declaration=True)


benchmark = Benchmark(
    name="ami_ssum",
    title="AMI summaries",
    modality="speech",
    rows=summaries.rows("AMI"),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    judging=summaries.JUDGING,
    max_tokens=summaries.MAX_TOKENS,
    note=f"the instructions are not the report's; {summaries.NOTE}",
)

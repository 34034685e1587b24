"""AMI: transcripts of several speakers' words, instructions for each meeting, three judgements."""

import json
from pathlib import Path

import pytest

from polyphi.data.shards import Sample
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio
from polyphi_eval.benchmarks.speech import summaries
from polyphi_eval.fixtures.write import write
from polyphi_eval.sources import Data

WORDS = """<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?>
<nite:root nite:id="ES2004a.{}.words" xmlns:nite="http://nite.sourceforge.net/">{}</nite:root>"""


def word(text: str, start: float | None, end: float | None = None, punc: bool = False) -> str:
    at = "" if start is None else f' starttime="{start}" endtime="{end or start}"'
    mark = ' punc="true"' if punc else ""
    return f"<w{at}{mark}>{text}</w>"


def test_transcripts_are_in_the_order_of_speaking(tmp_path: Path) -> None:
    first = [
        word("Okay", 1.0, 1.2),
        word(".", 1.2, punc=True),
        '<vocalsound starttime="1.3" endtime="1.9" type="laugh"/>',
        word("Let", 1.9, 2.0),
        word("us", None),
        word("start", 2.1, 2.4),
        word(".", None, punc=True),
        word("Café", 9.0, 9.4),
        word("?", 9.4, punc=True),
    ]
    second = [word("Mm-hmm", 2.0, 2.2), word(".", 2.2, punc=True), word("Yes", 5.0, 5.3)]
    for speaker, words in (("A", first), ("B", second)):
        text = WORDS.format(speaker, "".join(words))
        (tmp_path / f"ES2004a.{speaker}.words.xml").write_text(text, encoding="ISO-8859-1")
    assert summaries.transcript(tmp_path, "ES2004a") == (
        "Speaker A: Okay. Let us start.\nSpeaker B: Mm-hmm. Yes\nSpeaker A: Café?"
    )


def test_there_are_ten_instructions_for_each_of_twenty_meetings() -> None:
    path = Path(summaries.__file__).with_name("ami_instructions.json")
    instructions = json.loads(path.read_text())
    assert tuple(instructions) == summaries.MEETINGS and len(instructions) == 20
    assert all(len(set(texts)) == len(texts) == 10 for texts in instructions.values())


def test_default_instructions_are_used_if_the_data_have_none(tmp_path: Path) -> None:
    write("ami_ssum", tmp_path)
    assert len(list(summaries.ami(Data(tmp_path)))) == 4
    (tmp_path / "ami/instructions.json").unlink()
    samples = list(summaries.ami(Data(tmp_path)))
    assert len(samples) == 200
    (prompt,) = samples[0].prompt
    assert prompt.text == samples[0].meta["instruction"] and len(media([prompt], Audio)) == 1
    assert samples[0].meta["transcript"] == (
        "Speaker A: The remote control shall be yellow.\nSpeaker B: And it may cost five Euro."
    )


@pytest.mark.parametrize(
    ("name", "reply", "points"),
    [
        ("overall", '{"explanation": "", "score": 7}', 7),
        ("overall", '{"explanation": "", "score": 0}', None),
        ("adherence", '{"explanation": "", "score": 1}', 1),
        ("hallucination", '{"explanation": "", "score": 0}', 0),
        ("hallucination", '{"explanation": "", "score": 1}', 1),
        ("hallucination", '{"explanation": "", "score": 0.5}', None),
        ("hallucination", '{"explanation": "", "score": 7}', None),
        ("overall", '{"explanation": "", "score": "N/A"}', None),
    ],
)
def test_points_are_on_their_scale(name: str, reply: str, points: float | None) -> None:
    assert summaries.read(name, reply, Sample("s", (Message.assistant(""),), "", "")) == points


def test_each_summary_is_judged_three_times_with_the_transcript() -> None:
    meta = {"instruction": "Summarize {it}.", "transcript": "Speaker A: Hello."}
    requests = summaries.requests(
        Sample("s", (Message.assistant(""),), "", "", meta), ["They greet."]
    )
    assert list(requests) == ["overall", "adherence", "hallucination"]
    for (message,) in requests.values():
        assert all(text in message.text for text in (*meta.values(), "They greet."))

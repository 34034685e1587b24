"""Subtitles can be parsed back: cues in order, complete texts, no text that a player would parse as markup."""

import html
import json
import re
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.transcription.subtitles import (
    FORMATS,
    LINE,
    SECONDS,
    cues,
    srt,
    text,
    verbose,
    vtt,
    write,
)
from polyphi.transcription.words import word_spans
from polyphi.types.transcript import Segment, Transcript, Word


def seconds(stamp: str) -> float:
    hours, minutes, rest = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


def parsed(written: str, point: str) -> list[tuple[float, float, str]]:
    """Cues as a player parses them: blocks between blank lines, with a line of times that has an arrow."""
    stamp = rf"\d\d:\d\d:\d\d{re.escape(point)}\d\d\d"
    result = []
    for block in written.split("\n\n"):
        lines = block.strip("\n").split("\n")
        at = next((n for n, line in enumerate(lines) if "-->" in line), None)
        if at is None:
            continue
        match = re.fullmatch(rf"({stamp}) --> ({stamp})", lines[at])
        assert match, lines[at]
        result.append((seconds(match[1]), seconds(match[2]), "\n".join(lines[at + 1 :])))
    return result


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    texts = st.text("abc <>&-->\n\t字幕。1", min_size=1, max_size=160)
    at, segments = 0.0, []
    for line in draw(st.lists(texts, max_size=5)):
        at += draw(st.floats(0, 4000))
        end = at + draw(st.floats(0, 25))
        segments.append(Segment(at, end, line, -0.1, "estimated"))
        at = end
    return Transcript("".join(s.text for s in segments), at, segments=tuple(segments))


@settings(max_examples=150, deadline=None)
@given(transcripts())
def test_both_formats_round_trip(transcript: Transcript) -> None:
    expected = "".join("".join(s.text.split()) for s in transcript.segments)
    for written, point, plain in (
        (srt(transcript), ",", str),
        (vtt(transcript), ".", html.unescape),
    ):
        parts = parsed(written, point)
        assert len(parts) == len(cues(transcript))
        text = "".join("".join(plain(lines).split()) for _, _, lines in parts)
        if point == ",":  # SubRip's arrows are shortened
            assert not any("-->" in lines for *_, lines in parts)
            assert text.replace("-", "") == expected.replace("-", "")
        else:
            assert text == expected
        for start, end, lines in parts:
            assert start < end and 1 <= len(lines.split("\n")) <= 2
        for (_, end, _), (start, _, _) in pairwise(parts):
            assert end <= start
    assert vtt(transcript).startswith("WEBVTT\n")
    assert not re.search(
        r"<|>",
        "".join(lines for *_, lines in parsed(vtt(transcript), "."))
        .replace("&lt;", "")
        .replace("&gt;", ""),
    )
    numbers = re.findall(r"(?m)^(\d+)\n\d\d:", srt(transcript))
    assert numbers == [str(n + 1) for n in range(len(numbers))]


@settings(max_examples=50, deadline=None)
@given(transcripts())
def test_lines_fit_the_screen(transcript: Transcript) -> None:
    for cue in cues(transcript):
        for line in cue.lines:
            assert len(line) <= LINE or len(word_spans(line)) == 1


def test_a_long_segment_becomes_several_cues_by_its_words() -> None:
    names = [f"word{n}" for n in range(40)]
    slow = tuple(Word(name, float(n), n + 0.5) for n, name in enumerate(names))
    segment = Segment(0.0, 39.5, " ".join(names))
    by_characters = cues(Transcript(segment.text, 40.0, segments=(segment,)))
    by_words = cues(Transcript(segment.text, 40.0, segments=(segment,), words=slow))
    assert all(cue.end - cue.start <= SECONDS for cue in (*by_characters, *by_words))
    assert [cue.start for cue in by_words] == [float(n) for n in range(0, 40, 7)]
    assert " ".join(line for cue in by_words for line in cue.lines) == segment.text


def test_no_arrow_is_left_in_subrip() -> None:
    arrows = "a --> b ---> c -> d"
    written = srt(Transcript(arrows, 2.0, segments=(Segment(0.0, 2.0, arrows),)))
    assert parsed(written, ",") == [(0.0, 2.0, "a -> b -> c -> d")]


def test_cues_show_the_translation() -> None:
    segment = Segment(0.0, 2.0, "good day", translation="guten Tag")
    transcript = Transcript("good day", 2.0, "guten Tag", segments=(segment,))
    assert parsed(srt(transcript), ",") == [(0.0, 2.0, "guten Tag")]
    assert text(transcript) == "good day\nguten Tag\n"
    result = verbose(transcript)
    assert (result["task"], result["text"], result["transcript"]) == (
        "translate",
        "guten Tag",
        "good day",
    )
    (part,) = result["segments"]
    assert (part["text"], part["transcript"]) == ("guten Tag", "good day")
    assert "tokens" not in part and "avg_logprob" not in part
    alone = verbose(Transcript("", 2.0, "guten Tag", segments=(Segment(0.0, 2.0, "guten Tag"),)))
    assert alone["text"] == alone["segments"][0]["text"] == "guten Tag"
    assert "transcript" not in alone


def test_formats() -> None:
    segment = Segment(0.31, 2.48, "Tom & Jerry", -0.25, "window", 0.2, seek=30.0, tokens=(5, 6))
    transcript = Transcript(
        "Tom & Jerry", 3.0, None, ("a warning",), (segment,), (Word("Tom", 0.31, 1.0),)
    )
    written = {form: write(transcript, form) for form in FORMATS}
    assert all(body.endswith("\n") for body in written.values())
    assert written["text"] == "Tom & Jerry\n"
    assert written["srt"] == "1\n00:00:00,310 --> 00:00:02,480\nTom & Jerry\n"
    assert written["vtt"] == "WEBVTT\n\n00:00:00.310 --> 00:00:02.480\nTom &amp; Jerry\n"
    assert json.loads(written["json"])["segments"][0]["source"] == "window"
    result = json.loads(written["verbose_json"])
    assert result == verbose(transcript)
    assert (result["task"], result["language"], result["duration"]) == (
        "transcribe",
        "unknown",
        3.0,
    )
    assert result["segments"] == [
        {
            "id": 0,
            "seek": 3000,
            "start": 0.31,
            "end": 2.48,
            "text": "Tom & Jerry",
            "temperature": 0.2,
            "compression_ratio": round(11 / len(zlib.compress(b"Tom & Jerry")), 3),
            "avg_logprob": -0.25,
            "source": "window",
            "tokens": [5, 6],
        }
    ]
    assert verbose(transcript, "english")["language"] == "english"
    assert result["words"] == [{"word": "Tom", "start": 0.31, "end": 1.0, "source": "estimated"}]
    assert result["warnings"] == ["a warning"]
    assert write(Transcript("", 3.0), "text") == "\n" and write(Transcript(""), "vtt") == "WEBVTT\n"
    with pytest.raises(ValueError, match="text, json"):
        write(transcript, "doc")

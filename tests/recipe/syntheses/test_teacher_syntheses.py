"""Every synthesis of a recipe file's teachers: a good answer becomes a row, a bad one is refused with its reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from polyphi.data.shards import Sample, Shards, document, write
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi_eval.services import sandbox
from polyphi_eval.services.endpoint import Endpoint
from polyphi_recipe.graph.teacher_rows import RUNS_CODE, TABLE
from polyphi_recipe.syntheses.synthesis_step import reason_class
from polyphi_recipe.syntheses.synthesize import Synthesis, synthesize
from tests.scripted_teacher import ScriptedTeacher

PICTURES = [Image(b"\x89PNG %d" % i) for i in range(3)]
CLIP = Audio(b"RIFF\0\0\0\0WAVE a clip")
PASSAGE = " ".join(f"The {name} of the old town was built in {1500 + i} by its people." for i, name in enumerate(
    ("wall", "bridge", "market", "tower", "harbour", "school", "mill", "well", "gate", "hall")
))  # fmt: skip
SUM = {"task": "cot_arithmetic", "language": "en", "answer": 39}


def chat(prompt: str, reply: str, /, **meta: object) -> Sample:
    return Sample("s", (Message.user(prompt), Message.assistant(reply)), "ours", "CC0-1.0", meta)


def pictured(*images: Image, **meta: object) -> Sample:
    messages = (Message.user(*images, "What is it?"), Message.assistant("A thing."))
    return Sample("s", messages, "ours", "CC0-1.0", meta)


def spoken(transcript: str, reply: str = "An answer.", **meta: object) -> Sample:
    messages = (Message.user(CLIP), Message.assistant(reply))
    return Sample("s", messages, "ours", "CC0-1.0", {"transcript": transcript, **meta})


PROBLEM = chat("Solve step by step: 12 + 27\n", "12 + 27 = 39\nAnswer: 39", **SUM)
SOURCES: dict[str, Sample] = {
    "passage_text": document("s", PASSAGE, "ours", "CC0-1.0"),
    "text_summary": chat(f"Summarize the text.\n{PASSAGE}", "A town.", language="en"),
    "math_reasoning": PROBLEM,
    "correction": chat(PROBLEM.messages[0].text, PROBLEM.answer, **SUM, rejected="Answer: 40", rejected_by="model"),
    "typical_mistake": chat(PROBLEM.messages[0].text, PROBLEM.answer, **SUM, rejected="x", rejected_by="rule"),
    "safety_translated": chat("Hallo", "Guten Tag", language="de"),
    "caption": pictured(PICTURES[0]),
    "grounding": pictured(PICTURES[0], named=[[["the thing", 0.0, 0.0, 1.0, 1.0]]]),
    "ocr_qa": pictured(PICTURES[0]),
    "chart_qa": pictured(PICTURES[0]),
    "image_questions": pictured(PICTURES[0]),
    "picture_questions": pictured(*PICTURES, task="same"),
    "frame_questions": pictured(*PICTURES, task="motion"),
    "speech_qa": spoken("the train to the harbour leaves at nine", task="clip"),
    "spoken_answer": spoken("Was ist 12 + 27?", reply="39", task="arithmetic"),
    "speech_summary": spoken("cat, dog, cow, horse", seconds=9.0),
    "audio_qa": spoken("hello there"),
    "heard_questions": spoken("hello there"),
} | {
    f"speech_translation_{language}": spoken("the train leaves at nine", language="en" if language != "en" else "de")
    for language in ("en", "zh", "de", "fr", "it", "ja", "es", "pt")
}  # fmt: skip
"""Synthesis -> a source sample; any other one writes for every sample."""
WRONG = {
    "passage_text": "too short",
    "code_document": "the tests fail",
    "code_answer": "the tests fail",
    "constrained_instruction": "an empty instruction or answer",
    "tool_conversation": "arguments that don't fit the parameters",
    "text_summary": "a number that the text doesn't have",
    "preference": "both answers are the same",
    "safety": "a refusal of N words, at most N",
    "safety_translated": "a refusal of N words, at most N",
    "reasoning_document": "a wrong step",
    "reasoning_problem": "a wrong step",
    "math_reasoning": "wrong",
    "correction": "wrong",
    "typical_mistake": "the wrong solution ends in the right answer",
    "caption": "too short",
    "grounding": "a box outside the picture, or without area",
    "ocr_qa": "the answer doesn't stand on the page",
    "chart_qa": "N doesn't follow from the chart's numbers",
    "image_questions": "an answer of N words, at most N",
    "picture_questions": "an answer of N words, at most N",
    "frame_questions": "an answer of N words, at most N",
    "heard_questions": "an answer of N words, at most N",
    "speech_qa": "N% of the answer's words are said in the clip",
    "spoken_answer": "wrong",
    "speech_summary": "too long",
    "audio_qa": "speaks of its metadata",
} | {name: "N texts, expected N" for name in SOURCES if "translation_" in name}
"""Synthesis -> the reason for which an answer that breaks its rule is refused."""
DISAGREEMENT = {
    "passage_text": "the judge says no",
    "caption": "the judge says no",
    "ocr_qa": "a second answer differs",
    "chart_qa": "a second answer differs",
    "speech_qa": "the judge says no",
    "speech_summary": "the judge says no",
    "audio_qa": "the judge says no",
    "tool_conversation": "the judge says no",
    "text_summary": "the judge says no",
    "preference": "the judge prefers the other answer",
    "safety": "a harmful request that the judge would answer",
    "safety_translated": "a harmful request that the judge would answer",
    "reasoning_document": "the second solution differs",
    "reasoning_problem": "the second solution differs",
    "grounding": "the second box is another one",
    "image_questions": "a second answer differs",
    "picture_questions": "a second answer differs",
    "frame_questions": "a second answer differs",
    "heard_questions": "a second answer differs",
} | {name: "chrF N when translated back, below N" for name in SOURCES if "translation_" in name}
"""Synthesis -> the reason for which an answer is refused that a second answer, or a judge, doesn't confirm."""
SYNTHESES = {row.synthesis.name: row.synthesis for rows in TABLE.values() for row in rows}


def result(
    synthesis: Synthesis, flaws: Callable[[bool, int], str], folder: Path
) -> tuple[list[Sample], list[str]]:
    """Return the rows, read back from a shard, and the classes of the reasons for refused answers."""
    source = SOURCES.get(synthesis.name, chat("Why?", "So.", language="en", task="helpful"))
    with ScriptedTeacher(flaws=flaws) as teacher:
        samples = synthesize(synthesis, [source], Endpoint(teacher.where, "m"), folder)
        write(folder / "out", samples, pipeline="test")
    refused = (folder / f"{synthesis.name}.refused.jsonl").read_text().splitlines()
    return list(Shards(folder / "out")), [reason_class(json.loads(r)["reason"]) for r in refused]


def good(is_check: bool, number: int) -> str:
    return ""


@pytest.mark.parametrize("name", SYNTHESES)
def test_a_good_answer_is_a_row_and_a_bad_one_is_refused(name: str, tmp_path: Path) -> None:
    synthesis = SYNTHESES[name]
    if synthesis in RUNS_CODE and (reason := sandbox.unavailable()):
        pytest.skip(f"no namespaces: {reason}")
    rows, refused = result(synthesis, good, tmp_path / "good")
    if name != "frame_questions":  # the first frame answers one of two
        assert not refused
    assert rows and all(row.meta["lineage"][-1]["step"] == name for row in rows)
    rows, refused = result(synthesis, lambda check, n: "" if check else "wrong", tmp_path / "bad")
    assert WRONG[name] in refused
    if name in DISAGREEMENT:
        rows, refused = result(
            synthesis, lambda check, n: "wrong" if check else "", tmp_path / "differs"
        )
        assert not rows and DISAGREEMENT[name] in refused

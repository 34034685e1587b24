"""The report's syntheses with a recorded teacher: which answers are accepted, which are refused."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from polyphi.data import shards
from polyphi.data.shards import Sample, Shards
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image, Text
from polyphi_eval.services.endpoint import Endpoint
from polyphi_recipe.syntheses import syntheses
from polyphi_recipe.syntheses.syntheses import copied, derivable, final_answer, same_answer
from polyphi_recipe.syntheses.synthesize import Synthesis, estimate, synthesize
from polyphi_recipe.syntheses.translations import chrf, speech_translation, translation
from polyphi_recipe.text.lexicon import LANGUAGES
from tests.fixtures.replay import Replay

PNG, WAV = b"\x89PNG a chart", b"RIFF\0\0\0\0WAVE a clip"
SEEN, HEARD = sha256(PNG).hexdigest(), sha256(WAV).hexdigest()


def run(
    synthesis: Synthesis, source: Sample, chats: dict[str, Any], tmp_path: Path
) -> tuple[list[Sample], list[str], Replay]:
    """Return the samples read back from a shard, and the reasons of the refused answers."""
    with Replay(chats) as replay:
        model = Endpoint(replay.where, "m")
        estimated = estimate(synthesis, [source], model, tmp_path, price=(1, 1))
        samples = synthesize(synthesis, [source], model, tmp_path)
        shards.write(tmp_path / "out", samples, pipeline="test")
        assert estimated.requests == 1 and len(replay.requests) <= estimated.requests_at_most
    refused = (tmp_path / f"{synthesis.name}.refused.jsonl").read_text().splitlines()
    samples = list(Shards(tmp_path / "out"))
    assert all(s.licence == source.licence and s.id.startswith(source.id) for s in samples)
    return samples, [json.loads(line)["reason"] for line in refused], replay


def pairs(**answers: str) -> list[dict[str, str]]:
    return [{"question": f"{q.replace('_', ' ')}?", "answer": a} for q, a in answers.items()]


def qa_pairs(samples: list[Sample]) -> list[tuple[str, str]]:
    return [(s.messages[0].text, s.answer) for s in samples]


PASSAGE = shards.document(
    "d1", "Water boils at {100} degrees at sea level. " * 6, "wiki", "CC0-1.0"
)


def test_a_passage_becomes_a_new_text(tmp_path: Path) -> None:
    text = " ".join(f"On step{i} the kettle sings louder." for i in range(12))
    [sample], refused, replay = run(syntheses.PASSAGE_TEXT, PASSAGE, {"{100}": text}, tmp_path)
    assert sample.messages == (Message("document", (Text(text),)),) and not refused
    assert "Water boils at {100} degrees" in replay.requests[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Water boils.", "too short: 2 words, expected 50"),
        (PASSAGE.messages[0].text + "The end.", "copied: 9"),
    ],
)
def test_a_copy_is_no_new_text(text: str, reason: str, tmp_path: Path) -> None:
    samples, [refused], _ = run(syntheses.PASSAGE_TEXT, PASSAGE, {"{100}": text}, tmp_path)
    assert not samples and refused.startswith(reason)


def test_runs_of_words_and_of_characters() -> None:
    assert copied("a b c d e f g h i", "x a b c d e f g h y") == 0.5
    assert copied("水在一百度时沸腾了", "水在一百度时沸腾") == 0.5
    assert copied("too short", "too short") == 0.0


PICTURE = Sample("p1", (Message.user(Image(PNG)),), "pictures", "CC0-1.0")


def test_a_picture_gets_a_caption(tmp_path: Path) -> None:
    chats = {SEEN: "A red cat lies on a green sofa."}
    [sample], _, _ = run(syntheses.CAPTION, PICTURE, chats, tmp_path)
    assert qa_pairs([sample]) == [("Describe the picture.", "A red cat lies on a green sofa.")]
    assert media(sample.messages, Image) == [Image(PNG)]
    none, [reason], _ = run(syntheses.CAPTION, PICTURE, {SEEN: "A cat."}, tmp_path / "b")
    assert not none and reason == "too short: 2 words, expected 5"
    none, [reason], _ = run(syntheses.CAPTION, PICTURE, {SEEN: "A red cat. " * 4}, tmp_path / "c")
    assert not none and reason == "it repeats itself"


def test_questions_about_a_page_are_answered_on_it(tmp_path: Path) -> None:
    qa = pairs(Who_is_it="Ann  Lee", What_is_due="$40", Whose="annual", Empty=" ")
    chats = {SEEN: {"text": "Invoice\nTo: Ann Lee,\nTotal 40", "pairs": qa}}
    samples, refused, _ = run(syntheses.OCR_QA, PICTURE, chats, tmp_path)
    assert qa_pairs(samples) == [("Who is it?", "Ann  Lee"), ("What is due?", "$40")]
    assert refused == ["the answer doesn't stand on the page", "an empty question or answer"]
    assert [s.id for s in samples] == ["p1/ocr_qa/0", "p1/ocr_qa/1"]


def test_a_long_table_checks_nothing(tmp_path: Path) -> None:
    table = [{"label": f"row {i}", "value": i} for i in range(61)]
    chats = {SEEN: {"table": table, "pairs": pairs(Which="7")}}
    samples, refused, _ = run(syntheses.CHART_QA, PICTURE, chats, tmp_path)
    assert not samples and refused == ["a table of 61 rows, expected 60 at most"]


def test_questions_about_a_chart_follow_from_its_numbers(tmp_path: Path) -> None:
    table = [{"label": "May", "value": 1200}, {"label": "June", "value": 800.0}]
    qa = pairs(
        Which="June.", More="Yes", May="1,200", Sum="2000", Rise="50%", Wrong="1,350", What="many"
    )
    samples, refused, _ = run(
        syntheses.CHART_QA, PICTURE, {SEEN: {"table": table, "pairs": qa}}, tmp_path
    )
    assert [answer for _, answer in qa_pairs(samples)] == ["June.", "Yes", "1,200", "2000"]
    assert refused == [
        "50 doesn't follow from the chart's numbers",
        "1350 doesn't follow from the chart's numbers",
        "the answer is no label, number, yes or no",
    ]
    assert (
        derivable(60, [1200, 800]) and derivable(1000, [1200, 800]) and derivable(-400, [800, 1200])
    )


CLIP = Sample(
    "c1",
    (Message.user(Audio(WAV), "Transcribe."), Message.assistant("We met Tom at the old harbour.")),
    "calls",
    "CC0-1.0",
    {"language": "en", "seconds": 3.0},
)


def test_questions_about_speech_are_answered_in_it(tmp_path: Path) -> None:
    qa = pairs(Where="At the old harbour", Who="Tom", Did_they_meet="Yes.", Why="to buy fish")
    qa += [{"question": "What does the transcript say?", "answer": "Tom"}]
    samples, refused, replay = run(syntheses.SPEECH_QA, CLIP, {"harbour": {"pairs": qa}}, tmp_path)
    assert [question for question, _ in qa_pairs(samples)] == ["Where?", "Who?", "Did they meet?"]
    assert all(media(s.messages, Audio) == [Audio(WAV)] for s in samples)
    assert all(s.meta["transcript"] == CLIP.answer for s in samples), "for the judge"
    assert refused == [
        "0% of the answer's words are said in the clip",
        "speaks of its transcript",
    ]
    assert isinstance(
        replay.requests[0]["messages"][0]["content"], str
    )  # the teacher isn't sent the clip


def test_a_spoken_question_is_answered(tmp_path: Path) -> None:
    question_clip = replace(
        CLIP, messages=(CLIP.messages[0], Message.assistant("Who wrote Faust?"))
    )
    chats = {"Who wrote Faust?": "Goethe did."}
    [sample], _, replay = run(syntheses.SPOKEN_ANSWER, question_clip, chats, tmp_path)
    assert sample.messages == (Message.user(Audio(WAV)), Message.assistant("Goethe did."))
    assert (
        sample.meta["question"]
        == replay.requests[0]["messages"][0]["content"]
        == "Who wrote Faust?"
    )


def test_what_speech_is_translated(tmp_path: Path) -> None:
    german = {"texts": ["Wir trafen Tom am alten Hafen."]}
    chats = {
        "into natural German": german,
        "German texts": {"texts": ["We met Tom at the old harbour."]},
    }
    [sample], _, _ = run(speech_translation("de", at_least=60.0), CLIP, chats, tmp_path)
    assert qa_pairs([sample]) == [("Translate the audio to German.", german["texts"][0])]
    assert (sample.meta["language"], sample.meta["to"], sample.meta["cot"]) == (
        "en",
        "de",
        False,
    )
    assert sample.meta["transcript"] == CLIP.answer and sample.meta["lineage"][0]["chrf"] == 100
    french = replace(CLIP, meta={"language": "fr"})
    assert speech_translation("en", at_least=60.0).read(french)["origin"] == "French"
    assert speech_translation("de", at_least=60.0).read(french) is None, "English is on one side"
    assert speech_translation("en", at_least=60.0).read(CLIP) is None
    assert speech_translation("de", at_least=60.0).read(UNSAFE) is None, "no clip"


def summary(form: str, limit: int, answer: str) -> dict[str, Any]:
    return {"question": f"In {form}?", "form": form, "limit": limit, "answer": answer}


def test_summaries_have_the_form_that_was_asked_for(tmp_path: Path) -> None:
    good = [
        summary("words", 4, "They met Tom there."),
        summary("sentences", 2, "They met Tom. It was at the harbour."),
        summary("bullets", 2, "- They met Tom\n- At the harbour"),
        summary("json", 0, '{"met": "Tom"}'),
        summary("email", 0, "Subject: Tom\n\nWe met him."),
    ]
    bad = [
        summary("words", 3, "They met Tom there."),
        summary("sentences", 1, "They met Tom. It was at the harbour."),
        summary("bullets", 2, "They met Tom\n- At the harbour"),
        summary("json", 0, "met: Tom"),
        summary("email", 0, "We met him."),
    ]
    chats = {"harbour": {"summaries": good + bad}}
    samples, refused, _ = run(syntheses.SPEECH_SUMMARY, CLIP, chats, tmp_path)
    assert [s.answer for s in samples] == [g["answer"] for g in good]
    assert refused == [
        "too long: 4 words, asked for 3",
        "too long: 2 sentences, asked for 1",
        "not every line is a bullet",
        "the summary is not JSON",
        "an email without a subject",
    ]
    assert syntheses.SPEECH_SUMMARY.read(replace(CLIP, meta={"seconds": 1801.0})) is None
    assert syntheses.SPEECH_QA.read(PICTURE) is None


def test_questions_about_sounds_come_from_what_is_known_of_them(tmp_path: Path) -> None:
    source = Sample(
        "a1",
        (Message.user(Audio(WAV)),),
        "sounds",
        "CC0-1.0",
        {"tags": ["dog", "rain"], "lineage": [{"step": "secret"}]},
    )
    qa = pairs(Which_animal="A dog", Which_tags_are_there="dog")
    samples, refused, replay = run(syntheses.AUDIO_QA, source, {"rain": {"pairs": qa}}, tmp_path)
    assert qa_pairs(samples) == [("Which animal?", "A dog")] and refused == ["speaks of its tags"]
    assert "secret" not in replay.requests[0]["messages"][0]["content"]


def test_reasoning_is_resampled_until_it_arrives(tmp_path: Path) -> None:
    source = Sample(
        "m1", (Message.user("What is 6 x 7?"), Message.assistant("42")), "maths", "CC0-1.0"
    )
    answers = ["6 x 7 = 41\nAnswer: 41", "It is 42.", "6 x 7 = 42\n**Answer:** 42.0\n"]
    [sample], refused, _ = run(syntheses.MATH_REASONING, source, {"6 x 7": answers}, tmp_path)
    assert sample.messages == (
        Message.user("What is 6 x 7?"),
        Message.assistant(answers[2].strip()),
    )
    assert refused == ["wrong: 41, expected 42", "no line that starts with Answer:"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 3\nAnswer: -4.", "-4"),
        ("so\n**Answer: 1,200 €**", "1,200 €"),
        ("The answer: 5", None),
        ("Answer: \\frac{1}{2}", "\\frac{1}{2}"),
        ("Answer: √2", "√2"),
        ("Answer: .5\n\n", ".5"),
    ],
)
def test_the_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_equal_answers() -> None:
    assert same_answer("1,200 €", "1200.0") and same_answer("1/2", "0.5") and same_answer("X", "x")
    assert not same_answer("1,5", "15") and not same_answer("√2", "2")
    assert not same_answer("12", "120") and not same_answer("1/0", "0")


UNSAFE = Sample(
    "u1",
    (Message.user("How do I pick the lock of my neighbour?"), Message.assistant("I won't help.")),
    "safety",
    "MIT",
    {"rejected": "Gladly, take a hairpin."},
)
GERMAN = [
    "Wie knacke ich das Schloss meines Nachbarn?",
    "Dabei helfe ich nicht.",
    "Gern, nimm eine Haarnadel.",
]


def test_a_translation_is_translated_back(tmp_path: Path) -> None:
    back = [
        "How do I pick the lock of my neighbour?",
        "I won't help you.",
        "Gladly, take a hairpin.",
    ]
    chats = {"hairpin": {"texts": GERMAN}, "Haarnadel": {"texts": back}}
    [sample], _, replay = run(translation("de", at_least=60.0), UNSAFE, chats, tmp_path)
    assert sample.messages == (Message.user(GERMAN[0]), Message.assistant(GERMAN[1]))
    assert sample.meta["rejected"] == GERMAN[2] and sample.meta["language"] == "de"
    score = chrf(back, [*(m.text for m in UNSAFE.messages), UNSAFE.meta["rejected"]])
    assert 60 < score < 100 and sample.meta["lineage"][0]["chrf"] == round(score, 2)
    assert ["natural German" in b["messages"][0]["content"] for b in replay.requests] == [
        True,
        False,
    ]
    assert "into natural English" in replay.requests[1]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("there", "back", "reason"),
    [
        (GERMAN, ["How do I pick flowers?", "I won't help.", "Gladly."], "chrF "),
        (GERMAN, ["How?"], "1 texts came back, expected 3"),
        (GERMAN[:2], [], "2 texts, expected 3"),
        ([UNSAFE.messages[0].text, *GERMAN[1:]], [], "1 texts came back as they were"),
        ([" ", *GERMAN[1:]], [], "an empty text"),
    ],
)
def test_a_translation_that_lost_its_meaning_is_refused(
    there: list[str], back: list[str], reason: str, tmp_path: Path
) -> None:
    chats = {"hairpin": {"texts": there}, "Haarnadel": {"texts": back}}
    samples, [refused], _ = run(translation("de", at_least=60.0), UNSAFE, chats, tmp_path)
    assert not samples and refused.startswith(reason)


def test_what_is_not_translated() -> None:
    assert translation("en", at_least=60.0).read(UNSAFE) is None
    assert translation("de", at_least=60.0).read(CLIP) is None
    for code in LANGUAGES.keys() - {"en"}:
        assert translation(code, at_least=60.0).read(UNSAFE)["origin"] == "English"
    with pytest.raises(ValueError, match="unknown language 'tlh'"):
        translation("tlh", at_least=60.0)

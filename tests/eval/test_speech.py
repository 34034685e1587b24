"""Transcripts and translations, scored as the report's were."""

import random

import jiwer
import numpy as np
import pytest
from sacrebleu import corpus_bleu
from sacrebleu.metrics.bleu import BLEU

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi_eval import speech, statistics
from polyphi_eval.benchmark import Score
from polyphi_eval.whisper_normalize import english

PAIRS = [
    (
        "Mr. Quilter is the apostle of the middle classes, and we're glad to welcome his gospel.",
        "mister quilter is the apostle of the middle classes and we are glad to welcome his gospel",
    ),
    ("uh I think it's twenty-one dollars", "I think it is $21"),
    ("the colour of money", "the color of the money"),
]
ZH, ZH_SPACED = "我们今天去北京大学。", "我们 今天去北京大 学"
JA, JA_BARE = "今日は、いい天気ですね。", "今日はいい天気ですね"


def transcript(text: str, language: str = "en") -> Sample:
    return Sample("s", (Message.assistant(text),), "made up", "MIT", {"language": language})


def translation(text: str, to: str = "en", cot: bool = False) -> Sample:
    return Sample("s", (Message.assistant(text),), "made up", "MIT", {"to": to, "cot": cot})


def corpus(metric: str, scores: list[Score]) -> float:
    return float(
        statistics.rates(metric, np.array([statistics.vector(metric, s) for s in scores]).sum(0))
    )


def test_words_are_counted_over_the_corpus() -> None:
    scores = [
        speech.error_rate(hypothesis, transcript(reference)) for reference, hypothesis in PAIRS
    ]
    assert corpus("wer", scores) == 1 / 26
    plain = [[english(text) for text in texts] for texts in zip(*PAIRS, strict=True)]
    assert jiwer.wer(*plain) == 1 / 26
    raw = jiwer.wer([reference for reference, _ in PAIRS], [hypothesis for _, hypothesis in PAIRS])
    assert raw == pytest.approx(0.4615, abs=5e-5)


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "raw"),
    [("zh", ZH, ZH_SPACED, 0.30), ("ja", JA, JA_BARE, 0.1667)],
)
def test_chinese_and_japanese_are_counted_by_characters(
    language: str, reference: str, hypothesis: str, raw: float
) -> None:
    score = speech.error_rate(hypothesis, transcript(reference, language))
    assert score.parts["errors"] == 0
    assert score.parts["units"] == len(reference.strip("。").replace("、", ""))
    assert jiwer.cer(reference, hypothesis) == pytest.approx(raw, abs=5e-5)
    assert speech.metric(language) == "cer" and speech.metric("de") == "wer"


def test_empty_texts_are_counted_as_jiwer_counts_them() -> None:
    assert jiwer.wer(["a b"], [""]) == 1.0
    assert jiwer.wer([""], ["a"]) == 1
    assert jiwer.wer(["", "a b"], ["x", "a b"]) == 0.5
    nothing = speech.error_rate("", transcript("two words"))
    assert (nothing.parts["errors"], nothing.parts["units"]) == (2, 2)
    more = [
        speech.error_rate("x", transcript("")),
        speech.error_rate("two words", transcript("two words")),
    ]
    assert corpus("wer", more) == 0.5  # why references without words are left out


def test_references_without_words_are_not_scored() -> None:
    assert not speech.has_words("(cough) Um.", "en")
    assert not speech.has_words("Ignore time segment in scoring.", "en")
    assert not speech.has_words("。", "zh")
    assert speech.has_words("um, no", "en")


@pytest.mark.parametrize(
    ("to", "reference", "answer", "bleu"),
    [
        ("zh", "我们今天去北京大学。", "我们今天去了北京大学。", 70.1688),
        ("en", "The cat sat on the mat, didn't it?", "The cat sat on a mat, didn't it?", 65.8037),
        ("ja", "今日はいい天気ですね。", "今日は良い天気ですね。", 48.8923),
    ],
)
def test_bleu_of_known_pairs(to: str, reference: str, answer: str, bleu: float) -> None:
    score = speech.bleu(f" {answer}\n", translation(reference, to))
    assert corpus("bleu", [score]) == pytest.approx(bleu, abs=5e-5)


@pytest.mark.parametrize("to", ["en", "de", "ja", "zh"])
def test_corpus_bleu_is_sacrebleus(to: str) -> None:
    tokenizer = {"ja": "ja-mecab", "zh": "zh"}.get(to, "13a")
    known = {"ja": "今日はいい天気ですね京都へ行く。", "zh": "我们今天去北京大学，火车早上出发。"}
    draw = random.Random(to)
    words = list(known.get(to, "")) or [
        "The",
        "cat",
        "sat",
        "on",
        "the",
        "Mat,",
        "didn't",
        "it",
        "?",
        "3.5",
        "%",
    ]
    space = "" if to in known else " "
    for size, longest in ((40, 25), (5, 6), (3, 3), (2, 1), (1, 8)):
        reference = [
            space.join(draw.choices(words, k=draw.randint(1, longest))) for _ in range(size)
        ]
        answers = [
            text if draw.random() < 0.4 else space.join(draw.choices(words, k=longest))
            for text in reference
        ]
        answers[0] = answers[0] if size < 40 else ""
        ours = corpus(
            "bleu",
            [speech.bleu(a, translation(w, to)) for a, w in zip(answers, reference, strict=True)],
        )
        theirs = corpus_bleu(answers, [reference], tokenize=tokenizer).score
        assert ours == pytest.approx(theirs, rel=1e-12), (size, longest)


def test_of_a_chain_of_thought_the_last_part_counts() -> None:
    reference = "Der Zug fährt ab, jetzt<sep>The train leaves now, it does."
    whole = "Der Zug<sep>fährt <sep> The train leaves now, it does."
    score = speech.bleu(whole, translation(reference, cot=True))
    assert (corpus("bleu", [score]), score.parts["two_parts"]) == (pytest.approx(100), 1)
    without = speech.bleu("The train leaves now, it does.", translation(reference, cot=True))
    assert (corpus("bleu", [without]), without.parts["two_parts"]) == (pytest.approx(100), 0)
    for half in ("Der Zug<sep>", "<sep>The train leaves"):
        assert speech.bleu(half, translation(reference, cot=True)).parts["two_parts"] == 0
    assert "two_parts" not in speech.bleu("The train", translation("The train")).parts


def test_translations_have_a_direct_and_a_chain_of_thought_prompt() -> None:
    direct, chain = speech.translations(
        "a", Audio(b""), ("Hallo.", "Hello."), ("de", "en"), ("here", "MIT")
    )
    assert direct.prompt[0].text == "Translate the audio to English."
    assert chain.prompt[0].text == (
        "Transcribe the audio to text, and then translate the audio to English. "
        "Use <sep> as a separator between the original transcript and the translation."
    )
    assert (direct.answer, chain.answer) == ("Hello.", "Hallo.<sep>Hello.")
    assert direct.meta == {"from": "de", "to": "en", "cot": False}


def test_the_signature_is_sacrebleus() -> None:
    for tokenizer in ("13a", "zh", "ja-mecab"):
        metric = BLEU(tokenize=tokenizer)
        metric.corpus_score(["a"], [["a"]])
        theirs = dict(part.split(":") for part in str(metric.get_signature()).split("|"))
        ours = dict(part.split(":", 1) for part in speech.signature().split(" ", 1)[1].split("|"))
        assert theirs.pop("tok").startswith(tokenizer) and tokenizer in ours.pop("tok")
        assert theirs == ours

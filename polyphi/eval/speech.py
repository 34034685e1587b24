"""Prompts and scorers of speech benchmarks: transcripts by Whisper's normalizers, translations by sacrebleu
(report, sections 4.1.2 and Tables 3 to 5).

>>> ask_transcript(Audio("clip.wav")).text
'Transcribe the audio clip into text.'

A transcript's words are those of Whisper's English normalizer in English and of its basic one, which keeps diacritics,
elsewhere; in Chinese and Japanese they are characters. An error rate is of the whole corpus. Samples name the language
of a transcript in `meta["language"]`, that of a translation in `meta["to"]`.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata

from polyphi.data.shards import Sample
from polyphi.eval import scorers, whisper_normalize
from polyphi.eval.benchmark import Metric, Row, Score
from polyphi.messages import (
    LANGUAGES,
    TRANSCRIBE,
    TRANSCRIBE_AND_TRANSLATE,
    TRANSLATE,
    Audio,
    Message,
)
from polyphi.text.normalization import UNSPACED, errors

TOKENS = 512
"""Of an answer at most (Microsoft's script for the Open ASR Leaderboard)."""
LONGEST = 128 * TOKENS
"""Characters that are scored: no answer of so many tokens has more, for no token has more than 128 bytes."""
NOT_SCORED = ("", "ignore time segment in scoring")
"""References, normalized, that the Open ASR Leaderboard leaves out."""
NORMALISED = "Whisper's normalisers; characters in Chinese and Japanese"
COLUMNS = {False: "Phi-4-Multimodal 5.6B 0-shot", True: "Phi-4-Multimodal 5.6B CoT"}
"""Table 5's columns for the published model, by chain of thought or not."""


# Transcripts ----------------------------------------------------------------------------------------------


def ask_transcript(audio: Audio, prompt: str = TRANSCRIBE) -> Message:
    return Message.user(audio, prompt)


def words(text: str, language: str) -> list[str]:
    """What an error rate counts."""
    if language == "en":
        return whisper_normalize.english(text).split()
    return whisper_normalize.basic(text, split_letters=language in UNSPACED).split()


def has_words(reference: str, language: str) -> bool:
    """Whether a reference is scored at all."""
    return " ".join(words(reference, language)) not in NOT_SCORED


def metric(language: str) -> Metric:
    return "cer" if language in UNSPACED else "wer"


def error_rate(answer: str, sample: Sample) -> Score:
    """Errors and words of a transcript."""
    language = sample.meta["language"]
    hypothesis = words(answer[:LONGEST], language)
    return scorers.error_score(
        errors(words(sample.answer, language), hypothesis), " ".join(hypothesis)
    )


# Translations ---------------------------------------------------------------------------------------------


def translations(
    name: str,
    audio: Audio,
    texts: tuple[str, str],
    languages: tuple[str, str],
    origin: tuple[str, str],
) -> Iterator[Sample]:
    """A clip asked about directly and by chain of thought. `texts` are its transcript and the reference translation,
    `languages` their codes, `origin` data set and licence."""
    (transcript, translation), (source, target) = texts, languages
    for cot, prompt in ((False, TRANSLATE), (True, TRANSCRIBE_AND_TRANSLATE)):
        reference = f"{transcript}{scorers.SEPARATOR}{translation}" if cot else translation
        request = Message.user(audio, prompt.format(LANGUAGES[target]))
        yield Sample(
            f"{name}-{source}-{target}-{'cot' if cot else 'direct'}",
            (request, Message.assistant(reference)),
            *origin,
            {"from": source, "to": target, "cot": cot},
        )


def translation_rows(group: str, pairs: list[tuple[str, str]]) -> Iterator[Row]:
    """Table 5's rows of a group ("FLEURS X-EN"), each for both of the model's columns."""
    for source, target in pairs:
        other = source if target == "en" else target
        for cot, column in COLUMNS.items():
            only = {"from": source, "to": target, "cot": cot}
            yield Row("Table 5", f"{group} {other.upper()}", only, "bleu", column=column)


def two_parts(title: str) -> Row:
    """The share of chain-of-thought answers with a separator: of the others all is taken for the translation."""
    return Row("", f"{title}, chains of thought in two parts", {"cot": True}, part="two_parts")


def bleu(answer: str, sample: Sample) -> Score:
    """Counts for corpus BLEU, of what follows the last separator; `two_parts` says whether a chain of thought has
    both a transcript and a translation."""
    answer = (
        answer[:LONGEST].encode(errors="replace").decode()
    )  # MeCab takes no half surrogate pairs
    score = scorers.bleu(answer, sample)
    if not sample.meta["cot"]:
        return score
    transcript, _, translated = answer.rpartition(scorers.SEPARATOR)
    complete = float(bool(transcript.strip() and translated.strip()))
    return replace(score, parts={**score.parts, "two_parts": complete})


def signature() -> str:
    """sacrebleu's, of all rows: the tokenizer is the target language's."""
    try:
        version = metadata.version("sacrebleu")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return f"sacrebleu nrefs:1|case:mixed|eff:no|tok:13a (ja: ja-mecab, zh: zh)|smooth:exp|version:{version}"

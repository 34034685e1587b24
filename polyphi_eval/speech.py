"""Prompts and scorers of speech benchmarks: transcripts with Whisper's normalizers, translations with sacrebleu
(report, sections 4.1.2 and Tables 3 to 5).

>>> transcription_prompt(Audio("clip.wav")).text
'Transcribe the audio clip into text.'

Words of a transcript are normalized with Whisper's English normalizer in English, otherwise with its basic one, which
keeps diacritics; in Chinese and Japanese they are characters. Error rates are corpus-level. `meta["language"]` is the
language of a transcript, `meta["to"]` that of a translation.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi.types.transcript import LANGUAGES, TRANSCRIBE, TRANSCRIBE_AND_TRANSLATE, TRANSLATE
from polyphi_eval import scorers, whisper_normalize
from polyphi_eval.benchmark import Metric, Score, TableRow
from polyphi_eval.text.normalization import UNSPACED, errors

TOKENS = 512
"""Most tokens of an answer (Microsoft's script for the Open ASR Leaderboard)."""
MAX_CHARACTERS = 128 * TOKENS
"""Characters that are scored; answers of `TOKENS` tokens aren't longer, since a token has at most 128 bytes."""
NOT_SCORED = ("", "ignore time segment in scoring")
"""Normalized references that the Open ASR Leaderboard leaves out."""
NORMALIZED = "Whisper's normalizers; characters in Chinese and Japanese"
COLUMNS = {False: "Phi-4-Multimodal 5.6B 0-shot", True: "Phi-4-Multimodal 5.6B CoT"}
"""Table 5's columns for the published model, by whether the prompt asks for a chain of thought."""


# Transcripts ----------------------------------------------------------------------------------------------


def transcription_prompt(audio: Audio, prompt: str = TRANSCRIBE) -> Message:
    return Message.user(audio, prompt)


def words(text: str, language: str) -> list[str]:
    """Return the normalized units of an error rate: words, or characters in Chinese and Japanese."""
    if language == "en":
        return whisper_normalize.english(text).split()
    return whisper_normalize.basic(text, split_letters=language in UNSPACED).split()


def has_words(reference: str, language: str) -> bool:
    """Whether a reference is scored."""
    return " ".join(words(reference, language)) not in NOT_SCORED


def metric(language: str) -> Metric:
    return "cer" if language in UNSPACED else "wer"


def error_rate(answer: str, sample: Sample) -> Score:
    """Score a transcript by its errors."""
    language = sample.meta["language"]
    hypothesis = words(answer[:MAX_CHARACTERS], language)
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
    """Yield two samples for an audio clip, with direct and chain-of-thought prompt. `texts` are transcript and
    reference translation, `languages` their codes, `origin` data set and licence."""
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


def translation_rows(group: str, pairs: list[tuple[str, str]]) -> Iterator[TableRow]:
    """Yield Table 5's rows of a group ("FLEURS X-EN"), for both columns of the model."""
    for source, target in pairs:
        other = source if target == "en" else target
        for cot, column in COLUMNS.items():
            only = {"from": source, "to": target, "cot": cot}
            yield TableRow("Table 5", f"{group} {other.upper()}", only, "bleu", column=column)


def two_parts(title: str) -> TableRow:
    """Return the row with the share of chain-of-thought answers that have a transcript and a translation."""
    return TableRow("", f"{title}, chains of thought in two parts", {"cot": True}, part="two_parts")


def bleu(answer: str, sample: Sample) -> Score:
    """Return counts for corpus BLEU of the text after the last separator; the part `two_parts` is 1 if a chain of
    thought has both a transcript and a translation."""
    # MeCab doesn't accept lone surrogates.
    answer = answer[:MAX_CHARACTERS].encode(errors="replace").decode()
    score = scorers.bleu(answer, sample)
    if not sample.meta["cot"]:
        return score
    transcript, _, translation = answer.rpartition(scorers.SEPARATOR)
    complete = float(bool(transcript.strip() and translation.strip()))
    return replace(score, parts={**score.parts, "two_parts": complete})


def signature() -> str:
    """Return sacrebleu's signature for all rows; the tokenizer depends on the target language."""
    try:
        version = metadata.version("sacrebleu")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return f"sacrebleu nrefs:1|case:mixed|eff:no|tok:13a (ja: ja-mecab, zh: zh)|smooth:exp|version:{version}"

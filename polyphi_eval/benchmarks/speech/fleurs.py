"""FLEURS's test split (report, Tables 3, 4 and 5): sentences that several people read, the same in every language.

Recognition: word error rate, character error rate in Chinese and Japanese; the reference is the sentence as its
readers saw it. Translation: seven languages into English and English into them; sacrebleu's corpus BLEU, of
direct translations and of chains of thought. Every clip of a sentence is translated, so a sentence counts as often as
it was read; its reference is the same sentence in the other language. Sentences that one of the two languages lacks are
left out.

DIR/google/fleurs has the Hub's layout: `data/en_us/test.tsv` and `data/en_us/audio/test.tar.gz`, or that archive
unpacked to `data/en_us/audio/test/*.wav`.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyphi.data.sample import Sample
from polyphi.text.quantity import quantity
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi_eval import speech
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, Missing, audio_of

NAME, LICENCE = "google/fleurs", "CC-BY-4.0"
COLUMNS = (
    *("id", "file_name", "raw_transcription", "transcription"),
    *("characters", "num_samples", "gender"),
)
_CONFIGS = {
    "en": ("en_us", 647),
    "de": ("de_de", 862),
    "es": ("es_419", 908),
    "fr": ("fr_fr", 676),
    "it": ("it_it", 865),
    "ja": ("ja_jp", 650),
    "pt": ("pt_br", 919),
    "zh": ("cmn_hans_cn", 945),
}
"""FLEURS' name of each language, and the number of clips in its test split."""
SOURCES = {
    language: BenchmarkSource(
        NAME,
        (f"data/{config}/test.tsv", f"data/{config}/audio/test*"),
        "the Hub",
        fields=COLUMNS,
        rows=rows,
        header=COLUMNS,
    )
    for language, (config, rows) in _CONFIGS.items()
}


def sentences(data: Data, language: str) -> dict[str, str]:
    """The sentences of a language by number; a sentence has the same number in all languages."""
    return {row["id"]: row["raw_transcription"] for row in data.rows(SOURCES[language])}


def clips(data: Data, language: str) -> Iterator[tuple[dict[str, Any], Audio]]:
    """Yield every row of FLEURS with its audio clip. Raises Missing if a clip is missing."""
    rows = {row["file_name"]: row for row in data.rows(SOURCES[language])}
    folder = data.folder(SOURCES[language]) / "data" / _CONFIGS[language][0] / "audio"
    if (folder / "test").is_dir():
        yield from ((row, audio_of(f"test/{name}", folder)) for name, row in rows.items())
        return
    path = folder / "test.tar.gz"
    with tarfile.open(path) as archive:
        for member in archive:
            row = rows.pop(Path(member.name).name, None)
            if row is not None and (file := archive.extractfile(member)):
                yield row, Audio(file.read())
    if rows:
        raise Missing(
            f"{path} lacks {quantity(len(rows), 'clip')} that test.tsv names, such as {min(rows)}"
        )


def recognition(data: Data) -> Iterator[Sample]:
    for language in SOURCES:
        for row, audio in clips(data, language):
            if speech.has_words(row["raw_transcription"], language):
                yield Sample(
                    f"fleurs-{language}-{row['file_name'].removesuffix('.wav')}",
                    (
                        speech.transcription_prompt(audio),
                        Message.assistant(row["raw_transcription"]),
                    ),
                    NAME,
                    LICENCE,
                    {"language": language},
                )


OTHERS = [code for code in SOURCES if code != "en"]


def translation(data: Data) -> Iterator[Sample]:
    by_language = {code: sentences(data, code) for code in SOURCES}
    for source in SOURCES:
        for row, audio in clips(data, source):
            for target in OTHERS if source == "en" else ["en"]:
                if row["id"] in by_language[target]:
                    yield from speech.translations(
                        f"fleurs-{row['file_name'].removesuffix('.wav')}",
                        audio,
                        (row["raw_transcription"], by_language[target][row["id"]]),
                        (source, target),
                        (NAME, LICENCE),
                    )


benchmarks = (
    Benchmark(
        name="fleurs_asr",
        title="FLEURS, speech recognition",
        modality="speech",
        rows=tuple(
            TableRow("Table 4", f"FLEURS {code.upper()}", {"language": code}, speech.metric(code))
            for code in SOURCES
        ),
        sources=tuple(SOURCES.values()),
        load=recognition,
        scorer=speech.error_rate,
        max_tokens=speech.TOKENS,
        note=speech.NORMALIZED,
    ),
    Benchmark(
        name="fleurs_ast",
        title="FLEURS, speech translation",
        modality="speech",
        rows=(
            *speech.translation_rows("FLEURS X-EN", [(code, "en") for code in OTHERS]),
            *speech.translation_rows("FLEURS EN-X", [("en", code) for code in OTHERS]),
            speech.two_parts("FLEURS"),
        ),
        sources=tuple(SOURCES.values()),
        load=translation,
        scorer=speech.bleu,
        max_tokens=speech.TOKENS,
        note=speech.signature(),
    ),
)

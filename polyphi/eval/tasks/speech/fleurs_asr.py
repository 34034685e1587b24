"""FLEURS as speech recognition (report, Tables 3 and 4): eight languages; word error rate, character error rate in
Chinese and Japanese. The reference is the sentence as it was shown to its readers."""

from collections.abc import Iterator

from polyphi.data.shards import Sample
from polyphi.eval import fleurs, speech
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data
from polyphi.messages import Message


def load(data: Data) -> Iterator[Sample]:
    for language in fleurs.SOURCES:
        for row, audio in fleurs.clips(data, language):
            if speech.has_words(row["raw_transcription"], language):
                yield Sample(
                    f"fleurs-{language}-{row['file_name'].removesuffix('.wav')}",
                    (speech.ask_transcript(audio), Message.assistant(row["raw_transcription"])),
                    fleurs.NAME,
                    fleurs.LICENCE,
                    {"language": language},
                )


benchmark = Benchmark(
    name="fleurs_asr",
    title="FLEURS, speech recognition",
    modality="speech",
    rows=tuple(
        Row("Table 4", f"FLEURS {code.upper()}", {"language": code}, speech.metric(code))
        for code in fleurs.SOURCES
    ),
    sources=tuple(fleurs.SOURCES.values()),
    load=load,
    mini=fleurs.mini,
    scorer=speech.error_rate,
    max_tokens=speech.TOKENS,
    note=speech.NORMALISED,
)

"""Common Voice 15 (report, Tables 3 and 4): sentences that volunteers read, in eight languages; word error rate,
character error rate in Chinese and Japanese."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import speech
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, audio_of

FOLDERS = {
    **{"en": "en", "de": "de", "es": "es", "fr": "fr"},
    **{"it": "it", "ja": "ja", "pt": "pt", "zh": "zh-CN"},
}
SOURCES = {
    language: BenchmarkSource(
        f"cv-corpus-15.0-2023-09-08/{folder}",
        ("test.tsv", "clips"),
        f"commonvoice.mozilla.org (Common Voice Corpus 15.0, {folder})",
        fields=("client_id", "path", "sentence"),
        hub=False,
    )
    for language, folder in FOLDERS.items()
}


def load(data: Data) -> Iterator[Sample]:
    for language, source in SOURCES.items():
        clips = data.folder(source) / "clips"
        for row in data.rows(source, "test.tsv"):
            if speech.has_words(row["sentence"], language):
                request = speech.transcription_prompt(audio_of(row["path"], clips))
                yield Sample(
                    f"cv15-{language}-{Path(row['path']).stem}",
                    (request, Message.assistant(row["sentence"])),
                    "Common Voice 15",
                    "CC0-1.0",
                    {"language": language},
                )


benchmark = Benchmark(
    name="cv15",
    title="Common Voice 15",
    modality="speech",
    rows=tuple(
        TableRow("Table 4", f"CV15 {code.upper()}", {"language": code}, speech.metric(code))
        for code in SOURCES
    ),
    sources=tuple(SOURCES.values()),
    load=load,
    scorer=speech.error_rate,
    max_tokens=speech.TOKENS,
    note=speech.NORMALIZED,
)

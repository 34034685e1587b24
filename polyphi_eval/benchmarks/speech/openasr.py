"""The Open ASR Leaderboard's eight test sets as they were in February 2025 (report, Tables 3 and 4): word error rate
after its normalizer of that time. Microsoft's script for the leaderboard has another prompt for Earnings22.

The script uses batches of 32 clips and 512 tokens; the leaderboard's later settings give 6.02 instead of 6.14 on
average.
"""

from collections.abc import Iterator

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.transcript import TRANSCRIBE
from polyphi_eval import speech
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, audio_of

EARNINGS = "Transcribe the audio clip to English text."
SETS = {
    "AMI": ("ami/test", "CC-BY-4.0"),
    "Earnings22": ("earnings22/test", "CC-BY-SA-4.0"),
    "Gigaspeech": ("gigaspeech/test", "Apache-2.0"),
    "Spgispeech": ("spgispeech/test", "Kensho's own terms"),
    "Tedlium": ("tedlium/test", "CC-BY-NC-ND-3.0"),
    "LS-clean": ("librispeech/test.clean", "CC-BY-4.0"),
    "LS-other": ("librispeech/test.other", "CC-BY-4.0"),
    "Voxpopuli": ("voxpopuli/test", "CC0-1.0"),
}
"""Label -> path of its files, licence."""
NAME = "hf-audio/esb-datasets-test-only-sorted"
SOURCES = {
    label: BenchmarkSource(NAME, (f"{path}-*.parquet",), "the Hub", fields=("audio", "text"))
    for label, (path, _) in SETS.items()
}


def load(data: Data) -> Iterator[Sample]:
    for label, source in SOURCES.items():
        prompt = EARNINGS if label == "Earnings22" else TRANSCRIBE
        for number, row in enumerate(data.rows(source, columns=("audio", "text"))):
            if speech.has_words(row["text"], "en"):
                request = speech.transcription_prompt(audio_of(row["audio"]), prompt)
                yield Sample(
                    f"openasr-{label.lower()}-{number}",
                    (request, Message.assistant(row["text"])),
                    f"{NAME} {label}",
                    SETS[label][1],
                    {"set": label, "language": "en"},
                )


benchmark = Benchmark(
    name="openasr",
    title="Open ASR Leaderboard",
    modality="speech",
    rows=tuple(TableRow("Table 4", f"OpenASR {label}", {"set": label}, "wer") for label in SETS),
    sources=tuple(SOURCES.values()),
    load=load,
    scorer=speech.error_rate,
    max_tokens=speech.TOKENS,
    note="the leaderboard's normalizer of 11 September 2023 to 5 August 2025",
)

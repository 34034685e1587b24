"""FLEURS as speech translation (report, Tables 3 and 5): seven languages into English and English into them;
sacrebleu's corpus BLEU, of direct translations and of chains of thought.

Every clip of a sentence is translated, so that a sentence counts as often as it was read. Its reference is the same
sentence in the other language; sentences that one of the two lacks are left out.
"""

from collections.abc import Iterator

from polyphi.data.shards import Sample
from polyphi.eval import fleurs, speech
from polyphi.eval.benchmark import Benchmark
from polyphi.eval.sources import Data

OTHERS = [code for code in fleurs.SOURCES if code != "en"]


def load(data: Data) -> Iterator[Sample]:
    known = {code: fleurs.sentences(data, code) for code in fleurs.SOURCES}
    for source in fleurs.SOURCES:
        for row, audio in fleurs.clips(data, source):
            for target in OTHERS if source == "en" else ["en"]:
                if row["id"] in known[target]:
                    yield from speech.translations(
                        f"fleurs-{row['file_name'].removesuffix('.wav')}",
                        audio,
                        (row["raw_transcription"], known[target][row["id"]]),
                        (source, target),
                        (fleurs.NAME, fleurs.LICENCE),
                    )


benchmark = Benchmark(
    name="fleurs_ast",
    title="FLEURS, speech translation",
    modality="speech",
    rows=(
        *speech.translation_rows("FLEURS X-EN", [(code, "en") for code in OTHERS]),
        *speech.translation_rows("FLEURS EN-X", [("en", code) for code in OTHERS]),
        speech.two_parts("FLEURS"),
    ),
    sources=tuple(fleurs.SOURCES.values()),
    load=load,
    mini=fleurs.mini,
    scorer=speech.bleu,
    max_tokens=speech.TOKENS,
    note=speech.signature(),
)

"""CoVoST 2 (report, Tables 3 and 5): translation of read sentences, seven languages into English and English into
three; sacrebleu's corpus BLEU, of direct translations and of chains of thought.

The translations refer to clips of Common Voice 4, whose `validated.tsv` has the transcripts. Unpack both:
`covost2/covost_v2.de_en.tsv`, `cv-corpus-4-2019-12-10/de/{validated.tsv,clips/*.mp3}`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from polyphi.data.sample import Sample
from polyphi_eval import speech
from polyphi_eval.benchmark import Benchmark
from polyphi_eval.sources import BenchmarkSource, Data, audio_of

INTO_ENGLISH = [(code, "en") for code in ("de", "es", "fr", "it", "ja", "pt", "zh")]
FROM_ENGLISH = [("en", code) for code in ("de", "ja", "zh")]
TRANSLATIONS = {
    (source, target): BenchmarkSource(
        "covost2",
        (f"covost_v2.{source}_{target}.tsv".replace("zh", "zh-CN"),),
        "github.com/facebookresearch/covost (CoVoST 2 translations)",
        fields=("path", "translation", "split"),
        hub=False,
    )
    for source, target in INTO_ENGLISH + FROM_ENGLISH
}
CLIPS = {
    code: BenchmarkSource(
        f"cv-corpus-4-2019-12-10/{code}".replace("zh", "zh-CN"),
        ("validated.tsv", "clips"),
        "commonvoice.mozilla.org (Common Voice Corpus 4)",
        fields=("client_id", "path", "sentence"),
        hub=False,
    )
    for code in (*(source for source, _ in INTO_ENGLISH), "en")
}


def load(data: Data) -> Iterator[Sample]:
    for (source, target), translations in TRANSLATIONS.items():
        references = {
            row["path"]: _unescape(row["translation"])
            for row in data.rows(translations)
            if row["split"] == "test"
        }
        clips = data.folder(CLIPS[source]) / "clips"
        for row in data.rows(CLIPS[source], "validated.tsv"):
            if row["path"] in references:
                yield from speech.translations(
                    f"covost2-{Path(row['path']).stem}",
                    audio_of(row["path"], clips),
                    (_unescape(row["sentence"]), references[row["path"]]),
                    (source, target),
                    ("CoVoST 2", "CC0-1.0"),
                )


def _unescape(text: str) -> str:
    r"""Remove escaping backslashes, as CoVoST's own scripts do: \" is a quotation mark."""
    return re.sub(r"\\(.)", r"\1", text)


benchmark = Benchmark(
    name="covost2",
    title="CoVoST 2",
    modality="speech",
    rows=(
        *speech.translation_rows("CoVoST2 X-EN", INTO_ENGLISH),
        *speech.translation_rows("CoVoST2 EN-X", FROM_ENGLISH),
        speech.two_parts("CoVoST 2"),
    ),
    sources=(*TRANSLATIONS.values(), *CLIPS.values()),
    load=load,
    scorer=speech.bleu,
    max_tokens=speech.TOKENS,
    note=speech.signature(),
)

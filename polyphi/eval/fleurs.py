"""FLEURS's test split: sentences that several people read, the same ones in every language.

Below DIR/google/fleurs it lies as on the Hub: `data/en_us/test.tsv` and `data/en_us/audio/test.tar.gz`, or that archive
unpacked to `data/en_us/audio/test/*.wav`.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyphi.eval.sources import Data, Missing, Source, clip, write_tsv
from polyphi.eval.spoken import SENTENCE, spoken
from polyphi.messages import Audio
from polyphi.services.speech_synthesis import Voice

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
"""Its name of each language, and how many clips the test split has."""
SOURCES = {
    language: Source(
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
    """The sentences of a language by their numbers, which languages share."""
    return {row["id"]: row["raw_transcription"] for row in data.rows(SOURCES[language])}


def clips(data: Data, language: str) -> Iterator[tuple[dict[str, Any], Audio]]:
    """Every row with its clip. Raises Missing where a clip is not there."""
    rows = {row["file_name"]: row for row in data.rows(SOURCES[language])}
    folder = data.folder(SOURCES[language]) / "data" / _CONFIGS[language][0] / "audio"
    if (folder / "test").is_dir():
        yield from ((row, clip(f"test/{name}", folder)) for name, row in rows.items())
        return
    path = folder / "test.tar.gz"
    with tarfile.open(path) as archive:
        for member in archive:
            row = rows.pop(Path(member.name).name, None)
            if row is not None and (file := archive.extractfile(member)):
                yield row, Audio(file.read())
    if rows:
        raise Missing(f"{path} lacks {len(rows)} clips that test.tsv names, such as {min(rows)}")


def mini(root: Path) -> None:
    """A sentence in every language, two people reading it in German; another one in English alone."""
    for language, (config, _) in _CONFIGS.items():
        read = [(1, SENTENCE[language], "")]
        if language == "de":
            read.append((1, SENTENCE["de"], "f2"))
        if language == "en":
            read.append((2, "It costs twenty-one dollars.", ""))
        folder, rows = root / NAME / "data" / config, []
        (folder / "audio/test").mkdir(parents=True, exist_ok=True)
        for number, (sentence, text, variant) in enumerate(read):
            wave = spoken(text, language, Voice(language=language, variant=variant), "WAV")
            (folder / f"audio/test/{number}.wav").write_bytes(wave)
            plain = text.rstrip(".。").lower()
            values = (
                *(sentence, f"{number}.wav", text, plain),
                *(
                    " ".join(plain.replace(" ", "|")),
                    len(wave) // 2,
                    "FEMALE" if variant else "MALE",
                ),
            )
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        write_tsv(folder / "test.tsv", rows, header=False)

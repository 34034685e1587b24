"""FLEURS: clips joined with sentences of other languages, from folders and from archives."""

import tarfile
from pathlib import Path

import pytest

from polyphi.types.parts import Audio
from polyphi_eval.benchmarks.speech import fleurs
from polyphi_eval.fixtures.write import write
from polyphi_eval.sources import Data, Missing, check


@pytest.fixture
def data(tmp_path: Path) -> Data:
    write("fleurs_asr", tmp_path)
    return Data(tmp_path)


def bytes_of(audio: Audio) -> bytes:
    return audio.source if isinstance(audio.source, bytes) else Path(audio.source).read_bytes()  # type: ignore[arg-type]


def test_every_reading_of_a_sentence_is_translated(data: Data) -> None:
    samples = list(fleurs.translation(data))
    german = [s for s in samples if (s.meta["from"], s.meta["to"]) == ("de", "en")]
    assert len(german) == 2 * 2  # readers, prompts
    assert {s.answer.rpartition("<sep>")[2] for s in german} == {
        "The train leaves at nine in the morning."
    }
    assert sum(s.meta["from"] == "en" for s in samples) == 7 * 2


def test_sentences_missing_in_a_language_are_not_translated(data: Data) -> None:
    sentences = [s.answer for s in fleurs.recognition(data) if s.meta["language"] == "en"]
    assert "It costs twenty-one dollars." in sentences
    assert not [s for s in fleurs.translation(data) if "twenty-one" in s.answer]


def test_the_hubs_archives_are_read(data: Data, tmp_path: Path) -> None:
    from_folder = {row["file_name"]: bytes_of(audio) for row, audio in fleurs.clips(data, "de")}
    folder = tmp_path / fleurs.NAME / "data/de_de/audio"
    with tarfile.open(folder / "test.tar.gz", "w:gz") as archive:
        archive.add(folder / "test", "test")
    (folder / "test").rename(tmp_path / "elsewhere")
    from_archive = {row["file_name"]: bytes_of(audio) for row, audio in fleurs.clips(data, "de")}
    assert from_archive == from_folder and len(from_archive) == 2
    with tarfile.open(folder / "test.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "elsewhere/0.wav", "test/0.wav")
    with pytest.raises(Missing, match=r"lacks 1 clip that test\.tsv names, such as 1\.wav"):
        list(fleurs.clips(data, "de"))


def test_files_without_a_header_are_checked(data: Data) -> None:
    assert check(data, fleurs.SOURCES["fr"]) == ["google/fleurs: expected 676 rows, found 1"]

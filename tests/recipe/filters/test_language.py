"""Languages are identified, and documents in other languages are dropped with the reason."""

import pytest
from datatrove.data import Document

from polyphi.data import shards
from polyphi_recipe.filters.language import LanguageFilter, identify, language_of
from polyphi_recipe.pipeline.documents import document

SAID = {
    "en": "The train to the coast leaves at noon from the second platform.",
    "zh": "去海边的火车中午从二号站台出发，请提前十分钟到达。",
    "fr": "Le train pour la côte part à midi du deuxième quai de la gare.",
    "de": "Der Zug an die Küste fährt mittags vom zweiten Gleis des Bahnhofs.",
    "it": "Il treno per la costa parte a mezzogiorno dal secondo binario.",
    "ja": "海へ行く電車は正午に二番線から出発します。",
    "pt": "O trem para o litoral sai ao meio-dia da segunda plataforma da estação.",
    "es": "El tren hacia la costa sale a mediodía del segundo andén de la estación.",
}


def raw(text: str, **meta: object) -> Document:
    return document(shards.document("one", text, "here", "MIT", **meta))


def test_each_language_is_found() -> None:
    assert {code: identify(text)[0] for code, text in SAID.items()} == {c: c for c in SAID}


def test_nothing_to_read_is_no_language() -> None:
    assert identify("12 + 30 = 42\n\n...") == ("", 0.0)


def test_lines_and_length_dont_matter() -> None:
    assert identify("\n".join(SAID["fr"].split()) * 400)[0] == "fr"


def test_other_languages_are_dropped_with_the_reason() -> None:
    step = LanguageFilter()
    polish = raw("Pociąg nad morze odjeżdża w południe z drugiego peronu dworca głównego.")
    keep, reason = step.filter(polish)  # type: ignore[misc]
    assert not keep and reason.startswith("language_pl_")
    assert polish.metadata["lineage"][0]["found"] == "pl"
    assert step.filter(raw(SAID["ja"])) is True


def test_what_a_sample_says_of_itself_is_held_against_it() -> None:
    assert LanguageFilter().filter(raw(SAID["de"], language="de")) is True
    assert LanguageFilter().filter(raw(SAID["de"], language="fr"))[0] is False  # type: ignore[index]


def test_a_language_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="document one: "):
        language_of(raw("abc"))
    assert language_of(raw("abc", language="it")) == "it"


def test_names_of_languages_are_refused() -> None:
    with pytest.raises(ValueError, match="found \\['English'\\]"):
        LanguageFilter(["English"])

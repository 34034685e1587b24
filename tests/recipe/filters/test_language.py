"""Languages of texts by their beginning; the language that later steps take."""

import pytest
from datatrove.data import Document

from polyphi.data import shards
from polyphi_recipe.filters.language import LanguageFilter, identify, language_of
from polyphi_recipe.pipeline.documents import document
from tests.recipe.filters.test_filters import SENTENCES


def raw(text: str, **meta: object) -> Document:
    return document(shards.document("one", text, "here", "MIT", **meta))


def test_lines_and_length_dont_matter() -> None:
    assert identify("\n".join(SENTENCES["fr"].split()) * 400)[0] == "fr"


def test_a_language_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="document one: "):
        language_of(raw("abc"))
    assert language_of(raw("abc", language="it")) == "it"


def test_names_of_languages_are_refused() -> None:
    with pytest.raises(ValueError, match="found \\['English'\\]"):
        LanguageFilter(["English"])

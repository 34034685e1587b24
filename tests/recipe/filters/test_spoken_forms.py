"""Digits and addresses spelled as in transcripts."""

import pytest

from polyphi_recipe.filters import spoken_forms
from polyphi_recipe.text.lexicon import LANGUAGES, digit_words


@pytest.mark.parametrize("language", LANGUAGES)
def test_spelled_digits_come_back(language: str) -> None:
    spelled = digit_words("0612345987", language)
    text = f"... {spelled} ..."
    assert list(spoken_forms.numbers(text, language)) == [(4, 4 + len(spelled), "0612345987")]


def test_pairs_doubles_and_a_plus() -> None:
    text = "zéro six douze trente-quatre soixante et onze quatre-vingt-dix-neuf"
    assert [d for _, _, d in spoken_forms.numbers(text, "fr")] == ["0612347199"]
    text = "plus four four double seven triple zero 12 three four"
    assert [d for _, _, d in spoken_forms.numbers(text, "en")] == ["+447700012" + "34"]


def test_few_digits_or_written_ones_are_left() -> None:
    assert not list(spoken_forms.numbers("one two three four go", "en"))
    assert not list(spoken_forms.numbers("call 415 555 2671 now", "en"))
    assert not list(spoken_forms.numbers("jeden dwa trzy cztery pięć sześć siedem", "pl"))


@pytest.mark.parametrize(
    ("language", "spelled", "address"),
    [
        ("en", "john dot smith at example dot co dot uk", "john.smith@example.co.uk"),
        ("fr", "luc tiret bas martin arobase exemple point fr", "luc_martin@exemple.fr"),
        ("de", "anna punkt vogel ät beispiel punkt de", "anna.vogel@beispiel.de"),
        ("it", "marco chiocciola posta punto it", "marco@posta.it"),
        ("pt", "ana ponto costa arroba correio ponto com ponto br", "ana.costa@correio.com.br"),
        ("es", "lucía88 arroba correo punto es", "lucía88@correo.es"),
        ("zh", "wang点wei艾特example点com", "wang.wei@example.com"),
        ("ja", "tanaka アットマーク example ドットコム", "tanaka@example.com"),
    ],
)
def test_spelled_addresses(language: str, spelled: str, address: str) -> None:
    text = f"… {spelled} …"
    assert list(spoken_forms.emails(text, language)) == [(2, 2 + len(spelled), address)]


def test_a_site_is_nobody() -> None:
    assert not list(spoken_forms.emails("look at example dot com for it", "en"))
    assert not list(spoken_forms.emails("we met at the dot com party", "en"))

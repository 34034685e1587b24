"""Gopher's, C4's and FineWeb's rules drop what is no prose, in each script."""

import pytest

from polyphi_recipe.filters.rules import Words, judge
from tests.recipe.filters.test_filters import PROSE, SENTENCES


@pytest.mark.parametrize("language", PROSE)
def test_what_is_not_prose_is_dropped(language: str) -> None:
    prose = PROSE[language]
    assert judge(prose[:30], language)[0] == "gopher_short_doc"
    assert judge(f"{prose}\n\n" * 3, language)[0].startswith("repetition_dup_")
    assert judge(prose.replace("\n", " {}\n", 1), language)[0] == "c4_curly_bracket"
    assert judge(" ".join(str(i * 7919) for i in range(300)), language)[0].startswith("gopher")
    assert judge("\n".join(prose[i : i + 8] for i in range(0, len(prose), 8)), language)[0]


def test_other_languages_are_refused() -> None:
    with pytest.raises(ValueError, match="found 'pl'"):
        judge("Ala ma kota.", "pl")


def test_words_need_no_spaces() -> None:
    assert Words().word_tokenize("我用GPU算。Don't stop") == [
        *"我用",
        "GPU",
        *"算。",
        "Don't",
        "stop",
    ]
    assert Words().sent_tokenize(f"{SENTENCES['ja']}{SENTENCES['en']}") == [
        SENTENCES["ja"],
        SENTENCES["en"],
    ]

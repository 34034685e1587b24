"""Personal information is found in eight languages, look-alikes are not, and replacements are consistent."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyphi_recipe.filters import pii
from polyphi_recipe.filters.pii import ENTITY_TYPES, Fakes, PiiFilter, find, remove, spacy_names
from polyphi_recipe.synthetic import planted
from polyphi_recipe.text.lexicon import LANGUAGES


def spans(text: str, language: str) -> list[tuple[str, int, int]]:
    return [(f.entity_type, f.start, f.end) for f in find(text, language)]


def entities(text: str, language: str) -> list[str]:
    return [f"{f.entity_type} {text[f.start : f.end]}" for f in find(text, language)]


def test_planted_cases_are_found() -> None:
    """Floors below the recall and precision that docs/curation_numbers.md reports."""
    counts = planted.measure(spans, lambda code: planted.cases(code, 16, seed=1))
    assert set(counts) >= {(code, name) for code in LANGUAGES for name in ENTITY_TYPES}
    least = {"NAME": 0.35, "PHONE": 0.75}
    for (language, entity_type), n in counts.items():
        recall = n["found"] / n["planted"]
        assert recall >= least.get(entity_type, 0.9), (
            f"{entity_type} in {language}: {recall:.2f} found"
        )
        precision = n["right"] / max(1, n["right"] + n["wrong"])
        assert precision >= 0.8, f"{entity_type} in {language}: {precision:.2f} right"


def test_fresh_sentences() -> None:
    """Sentences without a template, on which nothing was tuned: about half of the names are found."""
    counts = planted.measure(spans, planted.fresh)
    assert sum(n["wrong"] for n in counts.values()) <= 2
    for entity_type, least in {"EMAIL": 0.8, "IBAN": 0.8, "PHONE": 0.6, "NAME": 0.4}.items():
        some = [n for (_, k), n in counts.items() if k == entity_type]
        assert sum(n["found"] for n in some) >= least * sum(n["planted"] for n in some), entity_type


def test_planted_spans() -> None:
    for language in LANGUAGES:
        for text, spans_ in planted.cases(language, 4):
            for entity_type, start, end in spans_:
                assert text[start:end] and entity_type in ENTITY_TYPES
                assert not text[start:end].startswith(" ") and "{" not in text
        fresh = list(planted.fresh(language))
        assert sum(len(spans_) for _, spans_ in fresh) >= 4
        assert not any("[" in text or "]" in text for text, _ in fresh)


def test_a_value_is_the_same_however_it_is_written() -> None:
    texts = [
        "+1 415 555 2671",
        "call (415) 555-2671",
        "four one five double five five two six seven one",
    ]
    assert {f.value for text in texts for f in find(text, "en")} == {"+14155552671"}
    texts = ["I met Ada Smith.", "Ask Ms. Ada Smith.", "my name is ada smith"]
    assert {f.value for text in texts for f in find(text, "en")} == {"ada smith"}


def test_unknown_types_and_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="found \\['AGE'\\]"):
        remove("ada@lovelace.org", "en", types=("AGE",))
    with pytest.raises(ValueError, match="found 'hide'"):
        PiiFilter("hide")  # type: ignore[arg-type]


def test_fakes_are_consistent_and_reach_nobody() -> None:
    text = "ada@lovelace.org ADA@lovelace.org bob@babbage.org"
    one, same, other = remove(text, "en", fake=Fakes(0))[0].split()
    assert one == same != other and one.split("@")[1].startswith("example.")
    assert remove(text, "en", fake=Fakes(0)) == remove(text, "en", fake=Fakes(0))
    assert remove(text, "en", fake=Fakes(1)) != remove(text, "en", fake=Fakes(0))
    text = "Tel. 415-555-2671 4111111111111111 DE89370400440532013000 8.8.8.8"
    faked = remove(text, "en", fake=Fakes(0))[0]
    # Fakes are valid cards and IBANs, but unassigned numbers and addresses.
    assert "-555-01" in faked and "192.0.2." in faked
    assert [k for k in entities(faked, "en") if not k.startswith("PHONE")] == [
        f"CARD {faked.split()[-3]}",
        f"IBAN {faked.split()[-2]}",
    ]


@pytest.mark.long
def test_fakes_are_the_same_in_another_process() -> None:
    code = (
        "from polyphi_recipe.filters.pii import *;"
        "print(remove('I met Ada Smith at ada@lovelace.org', 'en', fake=Fakes(3))[0])"
    )
    runs = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert runs == {
        (remove("I met Ada Smith at ada@lovelace.org", "en", fake=Fakes(3))[0] + "\n").encode()
    }


def test_a_recognizer_of_ones_own() -> None:
    def recognise(text: str) -> Iterator[tuple[int, int, str]]:
        if (at := text.find("Zaphod")) >= 0:
            yield at, at + 6, "NAME"

    assert remove("Then Zaphod rang ada@lovelace.org.", "en", recognise=recognise)[0] == (
        "Then [NAME] rang [EMAIL]."
    )


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        spacy_names(tmp_path)
    spacy = pytest.importorskip("spacy")
    model = spacy.blank("en")
    model.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Zaphod"}])
    model.to_disk(tmp_path / "model")
    recognise = spacy_names(tmp_path / "model")
    assert remove("Then Zaphod rang.", "en", recognise=recognise)[0] == "Then [NAME] rang."


def test_time_grows_with_the_text_and_no_more() -> None:
    """Texts that provoke backtracking: each takes seconds at most."""
    for text in (
        "a" * 50_000,
        "a." * 25_000 + " @",
        "a@" * 25_000,
        "1 " * 25_000,
        "one " * 12_000,
        "A1:" * 17_000,
        "Ada " * 12_000,
    ):
        find(text, "en")
    assert len(pii.find("ada@lovelace.org " * 2000, "en")) == 2000

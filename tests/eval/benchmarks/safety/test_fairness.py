"""Gaps of sub-groups on synthetic scores: known gaps are detected; chance and small samples give no verdict."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from polyphi_eval.benchmark import Score
from polyphi_eval.benchmarks.safety import fairness
from polyphi_eval.benchmarks.safety.fairness import (
    BETTER,
    MUCH_WORSE,
    WORSE,
    age_group,
    common_voice,
    gap,
    gaps,
    locale_of,
    share,
)
from polyphi_eval.fixtures.write import write
from polyphi_eval.sources import Data
from polyphi_eval.statistics import MIN_SAMPLES

Clip = tuple[Mapping[str, Any], Score]


def clips(
    rates: Mapping[tuple[str, str], float],
    each: int,
    locale: str = "de-DE",
    seed: int = 0,
    speakers: int | None = None,
) -> Iterator[Clip]:
    """`each` clips of ten words per gender and age, with errors at these rates, of `speakers` speakers if not None."""
    draw = random.Random(seed)
    for (gender, age), rate in rates.items():
        for n in range(each):
            errors = sum(draw.random() < rate for _ in range(10))
            speaker = f"{gender} {age} {n % speakers}" if speakers else None
            meta = {"locale": locale, "gender": gender, "age": age, "speaker": speaker}
            yield meta, Score(0.0, "", {"errors": float(errors), "units": 10.0})


def people(**by_gender: float) -> dict[tuple[str, str], float]:
    return {(gender, age): rate for gender, rate in by_gender.items() for age in fairness.AGES}


def test_a_known_gap_is_detected_with_its_interval() -> None:
    results = gaps(list(clips(people(female=0.1, male=0.2), 200)), 0)
    assert results["Female"].value == pytest.approx(0.1 / 0.15 - 1, abs=0.06)
    assert results["Male"].value == pytest.approx(0.2 / 0.15 - 1, abs=0.06)
    assert results["Female"].low < 0.1 / 0.15 - 1 < results["Female"].high < 0
    assert (results["Female"].verdict, results["Male"].verdict) == (BETTER, WORSE)
    assert results["17-30"].verdict == "" and results["17-30"].clips == 400
    assert results["Male"].rate == pytest.approx(0.2, abs=0.02)


def test_an_egregious_gap_has_its_verdict() -> None:
    rates = people(female=0.05, male=0.05) | {("male", "46-65"): 0.4}
    assert gaps(list(clips(rates, 100)), 0)["46-65"].verdict == MUCH_WORSE


def test_equal_groups_have_no_verdict() -> None:
    verdicts = [
        result.verdict
        for seed in range(4)
        for result in gaps(list(clips(people(female=0.1, male=0.1), 300, seed=seed)), seed).values()
    ]
    assert verdicts.count("") == len(verdicts)


def test_too_few_clips_have_no_verdict() -> None:
    rates = {("female", "17-30"): 0.0, ("male", "31-45"): 0.9}
    few = gaps(list(clips(rates, MIN_SAMPLES - 1)), 0)["Male"]
    assert few.verdict == "too few clips to tell" and few.low > 0
    assert gaps(list(clips(rates, MIN_SAMPLES)), 0)["Male"].verdict == MUCH_WORSE
    score, _, _, note = share(MUCH_WORSE)(list(clips(rates, MIN_SAMPLES - 1)), 0)
    assert (score, note) == (0.0, f"none of 0 sub-groups with {MIN_SAMPLES} clips or more")


def test_few_speakers_widen_the_interval() -> None:
    rates = people(female=0.1, male=0.2)
    many, few = (gaps(list(clips(rates, 100, speakers=n)), 0)["Male"] for n in (100, 3))
    assert few.value == many.value
    # The same clips, but the bootstrap draws whole speakers, so the number of each gender varies far more.
    assert few.high - few.low > 1.3 * (many.high - many.low)


def test_without_errors_there_is_no_gap() -> None:
    result = gaps(list(clips(people(female=0.0, male=0.0), 30)), 0)["Female"]
    assert (result.value, result.low, result.high, result.verdict) == (0, 0, 0, "")


def test_shares_name_their_sub_groups() -> None:
    unfair = list(clips(people(female=0.1, male=0.2), 100, "en-US"))
    fair = list(clips(people(female=0.1, male=0.1), 100, "fr-FR"))
    score, low, high, note = share(WORSE)(unfair + fair, 0)
    assert score == 0.1 and low < 0.1 < high
    assert note == f"en-US Male of 10 sub-groups with {MIN_SAMPLES} clips or more"
    assert share(BETTER)(unfair + fair, 0)[3].startswith("en-US Female of")


def test_a_gaps_note_has_its_rates() -> None:
    value, low, high, note = gap("Male")(list(clips(people(female=0.1, male=0.2), 100)), 0)
    assert low < value < high
    assert note.startswith("slightly worse; ") and "% of 300 clips, the locale's" in note
    assert gap("Male")(list(clips({("female", "17-30"): 0.1}, 30)), 0)[3] == "no clips"


def test_speakers_without_an_age_or_gender_count_in_their_locale() -> None:
    known = list(clips({("female", "17-30"): 0.0}, 30))
    blank = [
        ({**m, "gender": None, "age": None}, Score(0, "", {"errors": 5, "units": 10.0}))
        for m, _ in known
    ]
    results = gaps(known + blank, 0)
    assert set(results) == {"Female", "17-30"}
    assert (results["Female"].value, results["Female"].overall) == (-1, 0.25)


@pytest.mark.parametrize(
    ("language", "accent", "locale"),
    [
        ("en", "United States English", "en-US"),
        ("en", "England English", "en-GB"),
        ("en", "Scottish English", "en-GB"),
        ("en", "India and South Asia (India, Pakistan, Sri Lanka)", None),
        ("en", "England English,United States English", None),
        ("en", "", None),
        ("es", "México", "es-MX"),
        ("es", "España: Norte peninsular (Asturias, Castilla y León)", "es-ES"),
        ("es", "Rioplatense: Argentina, Uruguay", None),
        ("pt", "Português do Brasil", "pt-BR"),
        ("pt", "Português de Portugal", None),
        ("de", "Deutschland Deutsch", "de-DE"),
        ("de", "", "de-DE"),
        ("de", "Österreichisches Deutsch", None),
        ("fr", "Français de Belgique", None),
        ("zh-CN", "", "zh-CN"),
        ("ja", "", "ja-JP"),
        ("nl", "", None),
    ],
)
def test_accents_of_common_voice_give_locales(
    language: str, accent: str, locale: str | None
) -> None:
    assert locale_of(language, accent) == locale


def test_years_give_the_reports_groups() -> None:
    ages = [16, 17, 30, 31, 45, 46, 65, 66, "46-65", "", None, "old"]
    groups = [
        None,
        "17-30",
        "17-30",
        "31-45",
        "31-45",
        "46-65",
        "46-65",
        None,
        "46-65",
        None,
        None,
        None,
    ]
    assert [age_group(age) for age in ages] == groups


def test_common_voice_rows_without_age_and_gender_are_left_out(tmp_path: Path) -> None:
    write("fairness_cv15", tmp_path)
    samples = list(common_voice(Data(tmp_path)))
    assert len(samples) == 30 and not [s for s in samples if "-test-" in s.id]
    assert {s.meta["locale"] for s in samples} == set(fairness.LOCALES)

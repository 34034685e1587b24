"""Speakers by split, recordings by file name, and audio that is trimmed, joined, augmented and encoded."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.media.media import decode_audio
from polyphi_eval.services.speech_synthesis import unavailable
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.synthetic import number_questions, speech, voices
from polyphi_recipe.synthetic.speech import Reader, TTSSampler
from polyphi_recipe.synthetic.waves import RATE, augment, encode, join, level, trim
from polyphi_recipe.text.lexicon import LANGUAGES

needs_espeak = pytest.mark.skipif(
    unavailable("espeak-ng") is not None, reason="espeak-ng is not installed"
)
needs_flite = pytest.mark.skipif(unavailable("flite") is not None, reason="flite is not installed")


READER = Reader("somebody", "fr", "train", "asterisk-prompt-de", {})


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(
        rows={"train": 8, "test": 8},
        seed=3,
        cache=tmp_path,
        data=tmp_path,
        report=lambda text: None,
    )


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "unpack", lambda name, cache, report: None)


# Audio


def test_clips_are_flac_of_16_khz_and_16_bits() -> None:
    data = encode(np.array([0.0, 0.5, -1.5, 1.5], np.float32).repeat(100))
    wave, rate = decode_audio(data)
    assert data.startswith(b"fLaC") and rate == RATE
    assert np.allclose(wave[::100], [0, 0.5, -1, 1], atol=1e-4)


def test_trim_keeps_the_sound_and_a_little_around_it() -> None:
    silence = np.zeros(RATE, np.float32)
    cut = trim(np.concatenate([silence, tone(0.5), silence]))
    assert abs(len(cut) / RATE - 0.62) < 0.03
    assert len(trim(silence)) == RATE and len(trim(silence[:7])) == 7


def test_join_puts_pauses_and_overlaps() -> None:
    a, b = np.full(1600, 0.25, np.float32), np.full(3200, 0.5, np.float32)
    assert len(join([a, b, a], [0.1, 0.0])) == 1600 + 1600 + 3200 + 1600
    over = join([a, b], [-0.05])
    assert len(over) == 1600 + 3200 - 800 and over[800] == 0.75


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 30_000), st.sampled_from([8000, 11025, 16000, 22050]), st.integers(0, 1 << 32)
)
def test_augmentation_keeps_a_clip_a_clip(samples: int, rate: int, seed: int) -> None:
    wave = np.random.default_rng(1).standard_normal(samples).astype(np.float32)
    augmented = augment(wave, rate, np.random.default_rng(seed))
    assert augmented.dtype == np.float32 and augmented.ndim == 1 and np.isfinite(augmented).all()
    assert np.abs(augmented).max() <= 1.0
    assert (
        0.8 * samples * RATE / rate - 64
        <= len(augmented)
        <= (1.25 * samples + 0.25 * rate) * RATE / rate + 64
    )
    assert np.array_equal(augmented, augment(wave, rate, np.random.default_rng(seed)))


def test_augmentation_without_strength_only_resamples() -> None:
    augmented = augment(tone(1.0, rate=22050), 22050, np.random.default_rng(0), strength=0.0)
    peak = np.abs(np.fft.rfft(augmented)).argmax() * RATE / len(augmented)
    assert abs(len(augmented) / RATE - 1) < 0.02 and abs(peak - 440) < 8


def test_level_sets_the_peak() -> None:
    assert abs(np.abs(level(tone(0.1), 6.0)).max() - 10 ** (-6 / 20)) < 1e-3
    assert np.isfinite(level(np.zeros(10, np.float32), 3.0)).all()


# Speakers


def test_no_voice_and_no_person_is_on_both_sides() -> None:
    assert not set(voices.VARIANTS["train"]) & set(voices.VARIANTS["test"])
    assert "slt" not in voices.SPARE_FLITE
    people = {
        split: {name for name, _, where, *_ in speech.READERS if where == split}
        for split in ("train", "test")
    }
    assert people["train"] and people["test"] and not people["train"] & people["test"]
    packages = {
        split: {p for _, _, where, p, *_ in speech.READERS if where == split} for split in people
    }
    assert not packages["train"] & packages["test"]


@needs_espeak
def test_training_never_hears_flite_nor_a_test_variant(work: Work, no_packages: None) -> None:
    tts, rng = TTSSampler(work), Random(0)
    for language in LANGUAGES:
        for _ in range(40):
            speaker = tts.speaker(language, "train", rng)
            assert (
                speaker.engine == "espeak-ng" and speaker.voice.variant in voices.VARIANTS["train"]
            )
            speaker = tts.speaker(language, "test", rng, "espeak_unseen")
            assert (
                speaker.voice.variant in voices.VARIANTS["test"]
                and speaker.group == "espeak_unseen"
            )
    assert tts.languages == tuple(LANGUAGES)
    if unavailable("flite") is None:
        assert tts.speaker("en", "test", rng, "flite_slt").voice.variant == "slt"


@needs_espeak
def test_some_training_audio_begins_and_ends_in_silence(work: Work, no_packages: None) -> None:
    tts, rng = TTSSampler(work, strength=0.5), Random(0)
    speaker = tts.speaker("en", "train", rng)
    silences = []
    for _ in range(60):
        wave = tts.synthesize("seven", speaker, rng)
        loud = np.flatnonzero(np.abs(wave) > 0.3)
        silences.append((loud[0] / RATE, (len(wave) - loud[-1]) / RATE))
    before, after = zip(*silences, strict=True)
    assert 0.1 < sum(s > 0.3 for s in before) / 60 < 0.5 and max(before) < 1.0
    assert 0.1 < sum(s > 0.4 for s in after) / 60 < 0.5 and max(after) < 1.5
    tts.strength = 0.0
    assert all(len(tts.synthesize("seven", speaker, rng)) < RATE for _ in range(10))


@needs_espeak
def test_every_variant_and_accent_exists(work: Work, no_packages: None) -> None:
    tts = TTSSampler(work)
    for variant in voices.VARIANTS["train"] + voices.VARIANTS["test"]:
        tts.tts_pool.speak("no", speech.Voice("espeak-ng", "it", variant))
    for accents in voices.ACCENTS.values():
        for accent in accents:
            tts.tts_pool.speak("no", speech.Voice("espeak-ng", accent, "m1"))


@needs_espeak
def test_the_same_seed_gives_the_same_bytes(work: Work, no_packages: None) -> None:
    def session() -> list[bytes]:
        tts, rng = TTSSampler(work), Random(5)
        speakers = [tts.speaker(language, "train", rng) for language in LANGUAGES]
        return [encode(tts.synthesize("no", speaker, rng)) for speaker in speakers]

    assert session() == session()


@needs_flite
def test_without_espeak_flite_speaks_english(
    work: Work, no_packages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        speech, "unavailable", lambda engine: "not here" if engine == "espeak-ng" else None
    )
    tts, rng = TTSSampler(work), Random(0)
    assert (
        tts.languages == ("en",) and tts.groups("en") == ("flite_slt",) and tts.groups("fr") == ()
    )
    assert tts.speaker("en", "train", rng).voice.variant in voices.SPARE_FLITE
    assert tts.speaker("en", "test", rng).group == "flite_slt"


def test_with_nobody_to_speak_it_says_what_to_install(
    work: Work, no_packages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "unavailable", lambda engine: f"{engine} is not installed")
    with pytest.raises(ValueError, match="apt install espeak-ng"):
        TTSSampler(work)


def test_a_missing_engine_is_told_in_one_line(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(speech, "unavailable", lambda engine: f"{engine} is not installed")
    monkeypatch.setattr(speech, "readers", lambda work, split: [READER])
    TTSSampler(
        Work(rows=work.rows, seed=0, cache=work.cache, data=work.data, report=messages.append)
    )
    assert messages == [
        f"skipped speech of {e}: {e} is not installed" for e in ("espeak-ng", "flite")
    ]


# Recordings


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small synthetic fixtures of the packages, with tones for speech."""
    sounds = "usr/share/asterisk/sounds"
    for name, folder, ending in (
        ("asterisk-core-sounds-en-wav", "en_US_f_Allison", "wav"),
        ("asterisk-prompt-es-co", "es_CO_f_Avatar", "gsm"),
    ):
        digits = tmp_path / name / sounds / folder / "digits"
        digits.mkdir(parents=True)
        kind = {"format": "RAW", "subtype": "GSM610"} if ending == "gsm" else {}
        for n in (*range(10), 42):
            soundfile.write(digits / f"{n}.{ending}", tone(0.3, 300 + 40 * n, 8000), 8000, **kind)
        (digits / f"oh.{ending}").write_bytes(b"")
    stamps = tmp_path / speech.STAMPS / speech.STAMP_FOLDER
    for id, texts in {
        "animals/cat": "A cat.\nfr.utf8=Un chat.",
        "animals/dog": "A dog.\nfr.utf8=Un chien.",
    }.items():
        path = stamps / id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(texts, "utf-8")
        for ending in (".ogg", "_desc_fr.ogg"):
            soundfile.write(path.with_name(path.name + ending), tone(0.5, 300, 22050), 22050)
    monkeypatch.setattr(
        speech, "unpack", lambda name, cache, report: p if (p := tmp_path / name).exists() else None
    )
    monkeypatch.setattr(speech, "_wideband", lambda: False)
    return tmp_path


def test_recorded_numbers_are_known_by_their_file_names(work: Work, packages: Path) -> None:
    (allison,) = speech.readers(work, "train")
    (july,) = speech.readers(work, "test")
    assert (allison.name, allison.language, july.name, july.language) == (
        "Allison",
        "en",
        "July",
        "es",
    )
    assert sorted(allison.numbers) == sorted(july.numbers) == [*range(10), 42]
    wave = speech.load(july.numbers[3])
    peak = np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave)
    assert 0.25 < len(wave) / RATE < 0.45 and abs(peak - 420) < 15, "8 kHz GSM is brought to 16 kHz"
    wave = TTSSampler(work).read([1, 2, 3], july, Random(0))
    assert 0.8 < len(wave) / RATE < 1.4


def test_captions_and_effects_are_split_by_stamp(
    work: Work, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "held_out", lambda id: id == "animals/dog")
    assert [(r.text, r.language) for r in speech.captions(work, "train")] == [("un chat", "fr")]
    assert [(r.text, r.language) for r in speech.captions(work, "test")] == [("un chien", "fr")]
    assert [r.id for r in speech.effects(work, "train")] == ["animals/cat"]
    assert [r.id for r in speech.effects(work, "test")] == ["animals/dog"]


def test_without_packages_there_are_no_recordings(work: Work, no_packages: None) -> None:
    assert not any(
        function(work, "train") for function in (speech.readers, speech.captions, speech.effects)
    )
    assert not speech.toys(work)


# Texts


def test_digit_strings_of_the_test_split_are_never_trained_on() -> None:
    strings = {
        split: {tuple(speech.digits(Random(i), split)) for i in range(600)}
        for split in ("train", "test")
    }
    assert not strings["train"] & strings["test"]
    assert {len(d) for d in strings["test"]} == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_sums_are_right_in_every_language(language: str) -> None:
    for value in range(19):
        written, spoken, result = number_questions.sum_question(Random(value), language, value)
        a, sign, b = next(
            written.split()[i - 1 : i + 2] for i, w in enumerate(written.split()) if w in "+-"
        )
        assert (
            result
            == value
            == (int(a) + int(b.rstrip("?？")) if sign == "+" else int(a) - int(b.rstrip("?？")))
        )
        assert speech.speakable(spoken) and not any(c.isdigit() for c in spoken)


def test_comparisons_are_right() -> None:
    for i in range(50):
        written, _, answer = number_questions.comparison(Random(i))
        a, b = (int(w.strip("?,")) for w in written.split() if w.strip("?,").isdigit())
        assert int(answer) == (max(a, b) if "larger" in written else min(a, b))
        written, _, answer = number_questions.yes_no_question(Random(i), i % 2 == 0)
        a, b = (int(w.strip("?,")) for w in written.split() if w.strip("?,").isdigit())
        assert (
            answer
            == ("yes" if i % 2 == 0 else "no")
            == ("yes" if (a > b) == ("larger" in written) else "no")
        )


@pytest.mark.parametrize(
    ("text", "fit"),
    [("How many circles are there?", True), ("¿Qué es esto?", True), ("", False), ("a\nb", False), ("x = {1}", False),
     ("see https://x", False), ("word " * 30, False), ("call 18005551234", False)],
)  # fmt: skip
def test_what_can_be_read_out(text: str, fit: bool) -> None:
    assert speech.speakable(text) == fit

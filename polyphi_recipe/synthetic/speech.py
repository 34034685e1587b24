"""Speech for training and testing: synthetic voices and recorded people (split by speaker), augmentation, samples.

>>> tts = TTSSampler(work)
>>> speaker = tts.speaker("fr", "train", rng)
>>> wave = tts.synthesize("sept deux neuf", speaker, rng)      # float32 mono at 16 kHz, augmented for training
>>> Audio(encode(wave))                                        # FLAC, 16 bits

The splits share no speaker. The test split has other espeak-ng variants ("espeak_unseen"), an engine that isn't used in
training ("flite_slt") and other people ("recorded"). `READERS` lists the recorded people and their splits.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi.types.transcript import TRANSCRIBE_AND_TRANSLATE
from polyphi_eval.services.speech_synthesis import TTSPool, Voice, unavailable
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw.packages import SOURCES, unpack
from polyphi_recipe.synthetic.images import bucket
from polyphi_recipe.synthetic.stamps import STAMP_FOLDER, STAMPS, held_out, read_captions
from polyphi_recipe.synthetic.voices import ACCENTS, SPARE_FLITE, VARIANTS, unfit, varied
from polyphi_recipe.synthetic.waves import (
    RATE,
    Wave,
    augment,
    encode,
    in_silence,
    join,
    level,
    resample,
    trim,
)
from polyphi_recipe.text.lexicon import DIGIT_WORDS, LANGUAGES, lexicon

# Speakers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speaker:
    """A synthetic voice. Test results are reported by `group`: "espeak_unseen" or "flite_slt" (training: "espeak",
    "flite")."""

    voice: Voice
    language: str
    group: str

    @property
    def engine(self) -> str:
        return self.voice.engine

    @property
    def name(self) -> str:
        return f"{self.engine} {self.voice.language} {self.voice.variant}".strip()


@dataclass(frozen=True)
class Reader:
    """A person whose readings of numbers are recorded: number -> file. `package` is the source."""

    name: str
    language: str
    split: str
    package: str
    numbers: Mapping[int, Path] = field(compare=False, hash=False)

    @property
    def group(self) -> str:
        return "recorded"

    @property
    def engine(self) -> str:
        return "recorded"


READERS = (
    # name, language, split, package, folder below usr/share/asterisk/sounds, ending
    ("Allison", "en", "train", "asterisk-core-sounds-en", "en_US_f_Allison", ""),
    ("Allison (Spanish)", "es", "train", "asterisk-core-sounds-es", "es_MX_f_Allison", ""),
    ("June", "fr", "train", "asterisk-core-sounds-fr", "fr_CA_f_June", ""),
    ("Carlo", "it", "train", "asterisk-core-sounds-it", "it_IT_m_Carlo", ""),
    ("asterisk-prompt-de", "de", "train", "asterisk-prompt-de", "de", ".gsm"),
    ("Armelle", "fr", "test", "asterisk-prompt-fr-armelle", "fr", ".gsm"),
    ("July", "es", "test", "asterisk-prompt-es-co", "es_CO_f_Avatar", ".gsm"),
    ("Paola", "it", "test", "asterisk-prompt-it-menardi-wav", "it_IT_f_Menardi", ".wav"),
)
STAMP_DIGITS = {
    **{"": "en", "en_GB": "en", "zh_tw": "zh"},
    **{language: language for language in ("fr", "es", "de", "it", "ja", "pt")},
}
"""Suffix of Tux Paint's spoken digits -> language; all belong to the training split."""


def _wideband() -> bool:
    """Return whether G.722 files are readable (PyAV, the `video` extra); otherwise the 8 kHz packages are used."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def readers(work: Work, split: str) -> list[Reader]:
    """Return the recorded people of a split whose packages are available; `digits/42.gsm` is the number 42."""
    readers = []
    wideband = _wideband()
    for name, language, reader_split, package, folder, ending in READERS:
        if reader_split != split:
            continue
        package_name = package if ending else f"{package}-{'g722' if wideband else 'wav'}"
        if root := unpack(package_name, work.cache, work.report):
            files = root / "usr/share/asterisk/sounds" / folder / "digits"
            ending = ending or (".g722" if wideband else ".wav")
            numbers = {n: p for n in range(100) if (p := files / f"{n}{ending}").exists()}
            readers.append(Reader(name, language, split, package_name, numbers))
    if split == "train" and (root := unpack(STAMPS, work.cache, work.report)):
        files = root / STAMP_FOLDER / "symbols/math"
        for ending, language in STAMP_DIGITS.items():
            stem = "{}_" + ending if ending else "{}"
            numbers = {n: p for n in range(10) if (p := files / f"{stem.format(n)}.ogg").exists()}
            if len(numbers) >= 5:
                readers.append(
                    Reader(f"Tux Paint {ending or 'en'}", language, split, STAMPS, numbers)
                )
    return readers


@dataclass(frozen=True)
class RecordedPhrase:
    """A recorded phrase with its transcript."""

    text: str
    language: str
    path: Path
    package: str
    id: str


def captions(work: Work, split: str) -> list[RecordedPhrase]:
    """Return the spoken captions (French, Spanish, English) of the split's stamps of Tux Paint."""
    root = unpack(STAMPS, work.cache, work.report)
    if root is None:
        return []
    folder, recordings = root / STAMP_FOLDER, []
    for ending, language in (("_desc_fr", "fr"), ("_desc_es", "es"), ("_desc", "en")):
        for path in sorted(folder.rglob(f"*{ending}.ogg")):
            stem = path.with_name(path.name.removesuffix(f"{ending}.ogg"))
            id, text = stem.relative_to(folder).as_posix(), stem.with_name(stem.name + ".txt")
            if (
                id.startswith("symbols/math/")
                or not text.exists()
                or held_out(id) != (split == "test")
            ):
                continue
            if caption := read_captions(text).get(language):
                recordings.append(RecordedPhrase(caption, language, path, STAMPS, id))
    return recordings


def effects(work: Work, split: str) -> list[RecordedPhrase]:
    """Return the recorded sounds (animals, tools, instruments) of the split's stamps of Tux Paint; `text` is the
    English caption."""
    root = unpack(STAMPS, work.cache, work.report)
    if root is None:
        return []
    folder, recordings = root / STAMP_FOLDER, []
    for path in sorted(folder.rglob("*.ogg")):
        id = path.with_suffix("").relative_to(folder).as_posix()
        text = path.with_suffix(".txt")
        is_speech = "_desc" in path.name or id.startswith("symbols/") or not text.exists()
        if not is_speech and held_out(id) == (split == "test"):
            recordings.append(
                RecordedPhrase(read_captions(text).get("en", path.stem), "en", path, STAMPS, id)
            )
    return recordings


TEST_MUSIC = "reno_project-system"
"""The piece of music that is held out; the package has five."""


def music(work: Work, split: str) -> list[RecordedPhrase]:
    """Return the recorded pieces of music of a split; `text` is the title."""
    ending = "g722" if _wideband() else "wav"
    package = f"asterisk-moh-opsound-{ending}"
    root = unpack(package, work.cache, work.report)
    paths = sorted((root / "usr/share/asterisk/moh").glob(f"*.{ending}")) if root else []
    return [
        RecordedPhrase(path.stem, "en", path, package, path.stem)
        for path in paths
        if (path.stem == TEST_MUSIC) == (split == "test")
    ]


@lru_cache(4096)
def load(path: Path) -> Wave:
    """Return a recording, trimmed, at 16 kHz; WAV, OGG, GSM (8 kHz) or G.722 (16 kHz) by its suffix."""
    if path.suffix == ".gsm":
        wave, rate = soundfile.read(
            path, dtype="float32", format="RAW", subtype="GSM610", samplerate=8000, channels=1
        )
    elif path.suffix == ".g722":
        wave, rate = _g722(path), RATE
    else:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        wave = wave.mean(axis=1)
    wave = trim(resample(np.asarray(wave, np.float32), rate))
    wave.setflags(write=False)
    return wave


def _g722(path: Path) -> Wave:
    import av

    with av.open(str(path)) as file:
        return (
            np.concatenate([f.to_ndarray().ravel() for f in file.decode(audio=0)]).astype(
                np.float32
            )
            / 32768.0
        )


# TTS -----------------------------------------------------------------------------------------------------------------


SILENT_ENDS = 0.6
"""Share of training audio, times the strength of the augmentation, that begins and ends in silence, as recordings do.
A recognizer trained only on trimmed audio outputs extra digits for silence (LOG.md)."""


class TTSSampler:
    """Draws voices and synthesizes speech with the engines of this machine. Each sampler opens its own engines, so the
    same requests in the same order give the same bytes. Missing engines are logged once. Raises `ValueError` if there
    are neither engines nor recordings. `strength` is that of the augmentation of training audio."""

    def __init__(self, work: Work, strength: float = 0.5) -> None:
        self.work, self.tts_pool, self.strength = work, TTSPool(), strength
        self.espeak, self.flite = (unavailable(engine) is None for engine in ("espeak-ng", "flite"))
        for engine in ("espeak-ng", "flite"):
            if reason := unavailable(engine):
                work.report(f"skipped speech of {engine}: {reason}")
        self._readers: dict[str, list[Reader]] = {}
        if not (self.espeak or self.flite or self.readers("train")):
            raise ValueError(
                "there is no speech: expected espeak-ng, flite or packages with recordings, found none; "
                "install an engine with `apt install espeak-ng`"
            )

    def readers(self, split: str, language: str = "") -> list[Reader]:
        """Return the recorded readers of a split, of one language if it is given."""
        if split not in self._readers:
            self._readers[split] = readers(self.work, split)
        return [r for r in self._readers[split] if language in ("", r.language)]

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that the installed engines support."""
        return tuple(LANGUAGES) if self.espeak else ("en",) if self.flite else ()

    def groups(self, language: str) -> tuple[str, ...]:
        """Return the groups of synthetic test voices available for a language."""
        espeak = ("espeak_unseen",) if self.espeak else ()
        return espeak + (("flite_slt",) if self.flite and language == "en" else ())

    def speaker(self, language: str, split: str, rng: Random, group: str = "") -> Speaker:
        """Return a random voice of the split for a language. `group` selects the group of test voices."""
        if split == "test" and (group == "flite_slt" or (group == "" and not self.espeak)):
            return Speaker(Voice("flite", "en", "slt"), "en", "flite_slt")
        if not self.espeak:
            return Speaker(Voice("flite", "en", rng.choice(SPARE_FLITE)), "en", "flite")
        accent = rng.choice(ACCENTS.get(language, (language,))) if split == "train" else language
        return Speaker(
            Voice("espeak-ng", accent, rng.choice(VARIANTS[split])),
            language,
            "espeak" if split == "train" else "espeak_unseen",
        )

    def synthesize(
        self, text: str, speaker: Speaker, rng: Random, augmented: bool | None = None
    ) -> Wave:
        """Return the spoken text, trimmed, at 16 kHz. Training voices vary in speed and pitch. The audio is augmented
        if `augmented`, by default for training voices."""
        training = speaker.group in ("espeak", "flite")
        voice = (
            varied(speaker.voice, rng)
            if training
            else replace(speaker.voice, speed=rng.uniform(0.9, 1.1), pitch=50)
        )
        wave, rate = self.tts_pool.speak(text, voice)
        return self._finish(
            trim(wave, rate), rate, rng, training if augmented is None else augmented
        )

    def read(
        self, numbers: Sequence[int], reader: Reader, rng: Random, augmented: bool | None = None
    ) -> Wave:
        """Return recorded numbers, joined with short pauses."""
        pauses = [rng.uniform(-0.06, 0.15) for _ in numbers[1:]]
        waves = [level(load(reader.numbers[n]), rng.uniform(1, 4)) for n in numbers]
        return self.process(
            join(waves, pauses), rng, reader.split == "train" if augmented is None else augmented
        )

    def process(self, wave: Wave, rng: Random, augmented: bool) -> Wave:
        """Return a recording at 16 kHz, levelled or augmented, as stored in shards."""
        return self._finish(wave, RATE, rng, augmented)

    def _finish(self, wave: Wave, rate: int, rng: Random, augmented: bool) -> Wave:
        if augmented:
            if rng.random() < SILENT_ENDS * self.strength:
                wave = in_silence(wave, rng.uniform(0, 0.6), rng.uniform(0, 0.9), rate)
            return augment(wave, rate, np.random.default_rng(rng.getrandbits(64)), self.strength)
        return level(resample(wave, rate), 3.0)


class SilentTTSSampler(TTSSampler):
    """A `TTSSampler` for every language that returns silence: for corpora that only need the texts."""

    def __init__(self, work: Work) -> None:
        self.work, self.espeak, self.flite = work, True, True

    def readers(self, split: str, language: str = "") -> list[Reader]:
        """Return an empty list: there are no recordings."""
        return []

    def synthesize(
        self, text: str, speaker: Speaker, rng: Random, augmented: bool | None = None
    ) -> Wave:
        """Return 10 ms of silence."""
        return np.zeros(RATE // 100, np.float32)


# Samples -------------------------------------------------------------------------------------------------------------


def origin(speaker: Speaker | Reader | RecordedPhrase | None) -> dict[str, str]:
    """Return `source` and `licence` of a sample: those of a recording's package, or ours for synthetic speech."""
    package = "polyphi" if speaker is None or isinstance(speaker, Speaker) else speaker.package
    return {"source": package, "licence": SOURCES[package].licence}


def audio_sample(
    wave: Wave,
    question: str,
    answer: str,
    speaker: Speaker | Reader | RecordedPhrase | None,
    id: str = "",
    **meta: Any,
) -> Sample:
    """Return a sample of audio, the text with it ("" for a spoken query) and the answer. `meta` must hold `task` and
    `language`, and, for speech, the transcript `reference`."""
    parts = (Audio(encode(wave)), question) if question else (Audio(encode(wave)),)
    if isinstance(speaker, Speaker | Reader):
        meta = {"voice": speaker.group, "engine": speaker.engine, "speaker": speaker.name, **meta}
    elif isinstance(speaker, RecordedPhrase):
        meta = {"voice": "recorded", "engine": "recorded", "speaker": speaker.package, **meta}
    messages = (Message.user(*parts), Message.assistant(answer))
    return Sample(
        id, messages, meta={**meta, "seconds": round(len(wave) / RATE, 2)}, **origin(speaker)
    )


def chained(direct: Sample, transcript: str) -> Sample:
    """Return a translation sample (to `meta["to"]`) with chain of thought: transcript, `<sep>`, translation."""
    audio, prompt = direct.messages[0].parts[0], TRANSCRIBE_AND_TRANSLATE
    return replace(
        direct,
        id=f"{direct.id}/cot",
        messages=(
            Message.user(audio, prompt.format(LANGUAGES[direct.meta["to"]])),
            Message.assistant(f"{transcript} <sep> {direct.answer}"),
        ),
        meta={**direct.meta, "cot": True},
    )


def numbered(corpus: str, split: str, samples: Iterator[Sample]) -> Iterator[Sample]:
    """Yield the samples with ids of corpus, split and number."""
    for i, sample in enumerate(samples):
        yield replace(sample, id=f"{corpus}-{split}-{i:06d}")


LENGTHS = {1: 30, 2: 22, 3: 16, 4: 14, 5: 10, 6: 8}
"""Number of digits -> its share in training. Short strings lead an untrained recognizer off the plateau where it only
outputs the right number of digits."""


def digits(
    rng: Random, split: str, allowed: Sequence[int] = range(10), count: int = 0
) -> list[int]:
    """Return `count` digits (0: a random number of them) of the split. One in ten strings of two or more digits is held
    out, for every speaker; single digits are in both splits."""
    while True:
        random_length = (
            rng.choices(list(LENGTHS), list(LENGTHS.values()))[0]
            if split == "train"
            else rng.randint(2, 6)
        )
        length = count or random_length
        digits = [rng.choice(allowed) for _ in range(length)]
        if length == 1 or (bucket(f"digits {digits}", 10) == 0) == (split == "test"):
            return digits


def digit_text(numbers: Sequence[int], language: str, rng: Random) -> str:
    """Return digits in words for a TTS engine, with spaces, or with commas, which slow it down."""
    between = rng.choice((" ", " ", ", "))
    return between.join(DIGIT_WORDS[language][n] for n in numbers)


def digit_string(numbers: Sequence[int]) -> str:
    """Return the written form of digits in every language: "314", one token per digit."""
    return "".join(map(str, numbers))


def speakable(text: str, longest: int = 100) -> bool:
    """Return whether a written question is fit for speech synthesis."""
    return not unfit(text, longest)


KTUBERLING = "ktuberling-data"
_TOYS = {
    **{word: word for word in ("hat", "flower", "ball", "car", "tree", "star", "rabbit", "moon")},
    **{
        "tv_car": "car",
        "tv_bicycle": "bicycle",
        "tv_train": "train",
        "tv_tree": "tree",
        "moon_star": "star",
    },
    **{
        "butterflies_circle": "circle",
        "butterflies_heart": "heart",
        "xmas_tree": "tree",
        "xmas_star": "star",
    },
    **{"xmas_rabbit": "rabbit", "xmas_moon": "moon", "xmas_ball": "ball"},
}
"""KTuberling's names of its sounds -> English word of the lexicon."""


def toys(work: Work) -> list[RecordedPhrase]:
    """Return recordings of single nouns of the lexicon by KTuberling's volunteers, for testing only."""
    root = unpack(KTUBERLING, work.cache, work.report)
    if root is None:
        return []
    folder, words, recordings = root / "usr/share/ktuberling/sounds", lexicon(), []
    for language in LANGUAGES:
        theme = folder / f"{language}.soundtheme"
        lines = (
            re.findall(r'name="([^"]+)"\s+file="([^"]+)"', theme.read_text("utf-8"))
            if theme.exists()
            else []
        )
        for name, file in lines:
            if name in _TOYS and (path := folder / file).exists():
                text = words[_TOYS[name]][language]
                recordings.append(
                    RecordedPhrase(text, language, path, KTUBERLING, f"{language} {name}")
                )
    return recordings

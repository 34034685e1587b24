"""Spoken clips for training and testing: who speaks (split by speaker), recordings, joining, augmentation.

>>> studio = Studio(work)
>>> speaker = studio.speaker("fr", "train", rng)
>>> clip = studio.say("sept deux neuf", speaker, rng)          # float32 mono at 16 kHz, augmented for training
>>> Audio(encode(clip))                                        # FLAC, 16 bits

The test split is spoken by nobody of the training split: other espeak-ng variants ("espeak_unseen"), an engine that
training never hears ("flite_slt") and other people ("recorded"). The recorded people and their roles are in `READERS`.
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

from polyphi.curate.corpus import Work
from polyphi.curate.sources import SOURCES, unpack
from polyphi.curate.voices import ACCENTS, SPARE_FLITE, VARIANTS, unfit, varied
from polyphi.curate.waves import (
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
from polyphi.data.shards import Sample
from polyphi.messages import TRANSCRIBE_AND_TRANSLATE, Audio, Message
from polyphi.services.speech_synthesis import Booth, Voice, unavailable
from polyphi.synthetic.images import bucket
from polyphi.synthetic.stamps import STAMP_FOLDER, STAMPS, held_out, read_captions
from polyphi.text.lexicon import DIGIT_WORDS, LANGUAGES, lexicon

# Who speaks ----------------------------------------------------------------------------------------------------------

_FEMALE = {"f1", "f2", "f3", "f4", "f5", "Alicia", "Andrea", "Annie", "belinda", "linda"}


@dataclass(frozen=True)
class Speaker:
    """A synthetic voice. `group` is what test results are told apart by: "espeak_unseen" or "flite_slt" (training:
    "espeak", "flite")."""

    voice: Voice
    language: str
    group: str
    sex: str = ""

    @property
    def engine(self) -> str:
        return self.voice.engine

    @property
    def name(self) -> str:
        return f"{self.engine} {self.voice.language} {self.voice.variant}".strip()


@dataclass(frozen=True)
class Reader:
    """A recorded person who reads numbers: number -> file. `package` names the source."""

    name: str
    language: str
    sex: str
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
    # name, language, sex, split, package, folder below usr/share/asterisk/sounds, ending
    ("Allison", "en", "woman", "train", "asterisk-core-sounds-en", "en_US_f_Allison", ""),
    ("Allison (Spanish)", "es", "woman", "train", "asterisk-core-sounds-es", "es_MX_f_Allison", ""),
    ("June", "fr", "woman", "train", "asterisk-core-sounds-fr", "fr_CA_f_June", ""),
    ("Carlo", "it", "man", "train", "asterisk-core-sounds-it", "it_IT_m_Carlo", ""),
    ("asterisk-prompt-de", "de", "", "train", "asterisk-prompt-de", "de", ".gsm"),
    ("Armelle", "fr", "woman", "test", "asterisk-prompt-fr-armelle", "fr", ".gsm"),
    ("July", "es", "woman", "test", "asterisk-prompt-es-co", "es_CO_f_Avatar", ".gsm"),
    ("Paola", "it", "woman", "test", "asterisk-prompt-it-menardi-wav", "it_IT_f_Menardi", ".wav"),
)
STAMP_DIGITS = {
    **{"": "en", "en_GB": "en", "zh_tw": "zh"},
    **{language: language for language in ("fr", "es", "de", "it", "ja", "pt")},
}
"""Ending of Tux Paint's spoken digits -> language; all of them are for training."""


def _wideband() -> bool:
    """Whether G.722 files can be read (PyAV, the `video` extra); otherwise the 8 kHz packages serve."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def readers(work: Work, split: str) -> list[Reader]:
    """The recorded people of a split whose packages can be had, by rule: `digits/42.gsm` says forty-two."""
    found = []
    wide = _wideband()
    for name, language, sex, where, package, folder, ending in READERS:
        if where != split:
            continue
        full = package if ending else f"{package}-{'g722' if wide else 'wav'}"
        if root := unpack(full, work.cache, work.tell):
            files = root / "usr/share/asterisk/sounds" / folder / "digits"
            ending = ending or (".g722" if wide else ".wav")
            numbers = {n: p for n in range(100) if (p := files / f"{n}{ending}").exists()}
            found.append(Reader(name, language, sex, split, full, numbers))
    if split == "train" and (root := unpack(STAMPS, work.cache, work.tell)):
        files = root / STAMP_FOLDER / "symbols/math"
        for ending, language in STAMP_DIGITS.items():
            stem = "{}_" + ending if ending else "{}"
            numbers = {n: p for n in range(10) if (p := files / f"{stem.format(n)}.ogg").exists()}
            if len(numbers) >= 5:
                found.append(
                    Reader(f"Tux Paint {ending or 'en'}", language, "", split, STAMPS, numbers)
                )
    return found


@dataclass(frozen=True)
class Recording:
    """A recorded phrase with its transcript."""

    text: str
    language: str
    path: Path
    package: str
    id: str


def captions(work: Work, split: str) -> list[Recording]:
    """Spoken captions of Tux Paint's stamps in French, Spanish and English, of the split's stamps."""
    root = unpack(STAMPS, work.cache, work.tell)
    if root is None:
        return []
    folder, found = root / STAMP_FOLDER, []
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
                found.append(Recording(caption, language, path, STAMPS, id))
    return found


def effects(work: Work, split: str) -> list[Recording]:
    """Recorded sounds of Tux Paint's stamps (animals, tools, instruments), of the split's stamps; `text` is the
    English caption."""
    root = unpack(STAMPS, work.cache, work.tell)
    if root is None:
        return []
    folder, found = root / STAMP_FOLDER, []
    for path in sorted(folder.rglob("*.ogg")):
        id = path.with_suffix("").relative_to(folder).as_posix()
        text = path.with_suffix(".txt")
        spoken = "_desc" in path.name or id.startswith("symbols/") or not text.exists()
        if not spoken and held_out(id) == (split == "test"):
            found.append(
                Recording(read_captions(text).get("en", path.stem), "en", path, STAMPS, id)
            )
    return found


@lru_cache(4096)
def load(path: Path) -> Wave:
    """A recording at 16 kHz, trimmed; WAV, OGG, GSM (8 kHz) or G.722 (16 kHz) by its ending."""
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


# The studio ----------------------------------------------------------------------------------------------------------


SILENT_ENDS = 0.6
"""Share of training audio, times the strength of the augmentation, that begins and ends in silence, as recordings do.
A recogniser trained on trimmed audio alone writes extra digits for silence (LOG.md)."""


class Studio:
    """Everyone who can speak here. A studio opens its own booth, so the same requests in the same order give the same
    bytes. Engines that are missing are told once; where nobody can speak at all, `ValueError` says what to install.
    `strength` is that of the augmentation of training clips."""

    def __init__(self, work: Work, strength: float = 0.5) -> None:
        self.work, self.booth, self.strength = work, Booth(), strength
        self.espeak, self.flite = (unavailable(engine) is None for engine in ("espeak-ng", "flite"))
        for engine in ("espeak-ng", "flite"):
            if missing := unavailable(engine):
                work.tell(f"skipped speech of {engine}: {missing}")
        self._readers: dict[str, list[Reader]] = {}
        if not (self.espeak or self.flite or self.readers("train")):
            raise ValueError(
                "there is no speech: expected espeak-ng, flite or packages with recordings, found none; "
                "install an engine with `apt install espeak-ng`"
            )

    def readers(self, split: str, language: str = "") -> list[Reader]:
        """Recorded readers of a split, of one language if it is given."""
        if split not in self._readers:
            self._readers[split] = readers(self.work, split)
        return [r for r in self._readers[split] if language in ("", r.language)]

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that an engine here can speak."""
        return tuple(LANGUAGES) if self.espeak else ("en",) if self.flite else ()

    def groups(self, language: str) -> tuple[str, ...]:
        """The groups of synthetic test voices that speak a language here."""
        espeak = ("espeak_unseen",) if self.espeak else ()
        return espeak + (("flite_slt",) if self.flite and language == "en" else ())

    def speaker(
        self, language: str, split: str, rng: Random, group: str = "", sex: str = ""
    ) -> Speaker:
        """Somebody of the split who speaks the language; `group` picks the kind of test voice, `sex` "man" or "woman"
        restricts to voices made as such."""
        if split == "test" and (group == "flite_slt" or (group == "" and not self.espeak)):
            return Speaker(Voice("flite", "en", "slt"), "en", "flite_slt", "woman")
        if not self.espeak:
            return Speaker(Voice("flite", "en", rng.choice(SPARE_FLITE)), "en", "flite", "man")
        variants = [v for v in VARIANTS[split] if not sex or _sex(v) == sex]
        accent = rng.choice(ACCENTS.get(language, (language,))) if split == "train" else language
        return Speaker(
            Voice("espeak-ng", accent, rng.choice(variants)),
            language,
            "espeak" if split == "train" else "espeak_unseen",
            _sex(variants[0]) if sex else "",
        )

    def say(self, text: str, speaker: Speaker, rng: Random, augmented: bool | None = None) -> Wave:
        """The text, trimmed, at 16 kHz. Training voices (or `augmented`) vary in speed and pitch and are augmented."""
        training = speaker.group in ("espeak", "flite")
        voice = (
            varied(speaker.voice, rng)
            if training
            else replace(speaker.voice, speed=rng.uniform(0.9, 1.1), pitch=50)
        )
        wave, rate = self.booth.speak(text, voice)
        return self._finish(
            trim(wave, rate), rate, rng, training if augmented is None else augmented
        )

    def read(
        self, numbers: Sequence[int], reader: Reader, rng: Random, augmented: bool | None = None
    ) -> Wave:
        """Recorded numbers, one after the other with short pauses."""
        pauses = [rng.uniform(-0.06, 0.15) for _ in numbers[1:]]
        waves = [level(load(reader.numbers[n]), rng.uniform(1, 4)) for n in numbers]
        return self.recorded(
            join(waves, pauses), rng, reader.split == "train" if augmented is None else augmented
        )

    def recorded(self, wave: Wave, rng: Random, augmented: bool) -> Wave:
        """A recording at 16 kHz as it goes into a shard."""
        return self._finish(wave, RATE, rng, augmented)

    def _finish(self, wave: Wave, rate: int, rng: Random, augmented: bool) -> Wave:
        if augmented:
            if rng.random() < SILENT_ENDS * self.strength:
                wave = in_silence(wave, rng.uniform(0, 0.6), rng.uniform(0, 0.9), rate)
            return augment(wave, rate, np.random.default_rng(rng.getrandbits(64)), self.strength)
        return level(resample(wave, rate), 3.0)


class SilentStudio(Studio):
    """A studio where every language is spoken and nobody is heard: for corpora that only need what is said."""

    def __init__(self, work: Work) -> None:
        self.work, self.espeak, self.flite = work, True, True

    def readers(self, split: str, language: str = "") -> list[Reader]:
        """Nobody is recorded."""
        return []

    def say(self, text: str, speaker: Speaker, rng: Random, augmented: bool | None = None) -> Wave:
        """A moment of silence."""
        return np.zeros(RATE // 100, np.float32)


def _sex(variant: str) -> str:
    if variant in _FEMALE:
        return "woman"
    return "man" if re.fullmatch(r"m\d", variant) else ""


# Samples -------------------------------------------------------------------------------------------------------------


def origin(speaker: Speaker | Reader | Recording | None) -> dict[str, str]:
    """`source` and `licence` of a sample: the package of a recording; what engines say of our texts is our own."""
    package = "polyphi" if speaker is None or isinstance(speaker, Speaker) else speaker.package
    return {"source": package, "licence": SOURCES[package].licence}


def asked(
    clip: Wave,
    question: str,
    answer: str,
    speaker: Speaker | Reader | Recording | None,
    id: str = "",
    **meta: Any,
) -> Sample:
    """A clip, the text beside it ("" for a spoken query) and the answer. `meta` must hold `task` and `language`, and
    `heard` where something is said: what a perfect recogniser would write."""
    parts = (Audio(encode(clip)), question) if question else (Audio(encode(clip)),)
    if isinstance(speaker, Speaker | Reader):
        meta = {"voice": speaker.group, "engine": speaker.engine, "speaker": speaker.name, **meta}
    elif isinstance(speaker, Recording):
        meta = {"voice": "recorded", "engine": "recorded", "speaker": speaker.package, **meta}
    messages = (Message.user(*parts), Message.assistant(answer))
    return Sample(
        id, messages, meta={**meta, "seconds": round(len(clip) / RATE, 2)}, **origin(speaker)
    )


def chained(direct: Sample, transcript: str) -> Sample:
    """A translation of a clip (`meta["to"]`) by chain of thought: its transcript, `<sep>`, then the translation."""
    clip, prompt = direct.messages[0].parts[0], TRANSCRIBE_AND_TRANSLATE
    return replace(
        direct,
        id=f"{direct.id}/cot",
        messages=(
            Message.user(clip, prompt.format(LANGUAGES[direct.meta["to"]])),
            Message.assistant(f"{transcript} <sep> {direct.answer}"),
        ),
        meta={**direct.meta, "cot": True},
    )


def numbered(corpus: str, split: str, samples: Iterator[Sample]) -> Iterator[Sample]:
    """The samples with ids: corpus, split and number."""
    for i, sample in enumerate(samples):
        yield replace(sample, id=f"{corpus}-{split}-{i:06d}")


LENGTHS = {1: 30, 2: 22, 3: 16, 4: 14, 5: 10, 6: 8}
"""Digits of a string -> its share in training. Short ones lead a fresh recogniser off the plateau where it only
counts."""


def digits(
    rng: Random, split: str, allowed: Sequence[int] = range(10), count: int = 0
) -> list[int]:
    """A string of `count` digits of the split, or of a random number of them: of strings of two and more one in ten is
    held out, whoever says it; training has single digits too."""
    while True:
        drawn = (
            rng.choices(list(LENGTHS), list(LENGTHS.values()))[0]
            if split == "train"
            else rng.randint(2, 6)
        )
        length = count or drawn
        found = [rng.choice(allowed) for _ in range(length)]
        if length == 1 or (bucket(f"digits {found}", 10) == 0) == (split == "test"):
            return found


def digit_text(numbers: Sequence[int], language: str, rng: Random) -> str:
    """Digits in words as an engine shall say them: run together, or with commas, which slows it down."""
    between = rng.choice((" ", " ", ", "))
    return between.join(DIGIT_WORDS[language][n] for n in numbers)


def written(numbers: Sequence[int]) -> str:
    """How digit strings are written in every language: "314", one token a digit."""
    return "".join(map(str, numbers))


def speakable(text: str, longest: int = 100) -> bool:
    """Whether a written question can be read out."""
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
"""KTuberling's names for its sounds -> English word of the lexicon."""


def toys(work: Work) -> list[Recording]:
    """Single nouns of the lexicon, spoken by KTuberling's volunteers: for testing only."""
    root = unpack(KTUBERLING, work.cache, work.tell)
    if root is None:
        return []
    folder, words, found = root / "usr/share/ktuberling/sounds", lexicon(), []
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
                found.append(Recording(text, language, path, KTUBERLING, f"{language} {name}"))
    return found

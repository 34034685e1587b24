"""Text queries read aloud, as a step of any corpus: replaces written questions by spoken ones (report 3.4.2, SQQA).

    user "Who wrote Faust?", assistant "Goethe."   ->   user [audio], assistant "Goethe."
    user "Fix this: | a | b |", ...                ->   dropped: "unfit to be read: a table"

>>> voices = split_voices(train=[Voice("flite", "en", "rms")], test=[Voice("flite", "en", "slt")])
>>> Corpus("spoken", build, steps=lambda work: [ReadAloud(voices), WordErrorRateFilter(pocketsphinx(), 0.35)])

A voice is held out by its name, in all languages: no voice reads in both splits. `installed()` returns all installed
voices. Other engines (a speech endpoint, any command) are voices like others. In training clips are augmented, and
espeak-ng's and flite's voices vary in speed and pitch; in the test split voices are unchanged. The voice of a query and
its variation depend only on its id and the seed (except for an engine's noise, whose state continues from clip to
clip).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.data.shards import Sample
from polyphi.text.scripts import has_kanji
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image, Part
from polyphi_eval.services.speech_synthesis import TTSPool, Voice, unavailable
from polyphi_recipe.filters.language import language_of
from polyphi_recipe.pipeline.documents import note, replace_sample, sample
from polyphi_recipe.synthetic.voices import ACCENTS, SPARE_FLITE, VARIANTS, unfit, varied
from polyphi_recipe.synthetic.waves import RATE, Wave, augment, encode, level, resample, trim
from polyphi_recipe.text.lexicon import LANGUAGES

LONGEST = 200
"""Maximum characters of a query, some 15 seconds."""


@dataclass(frozen=True)
class LanguageVoice:
    """A voice and the language (one of the eight) that it reads: "gmw/en" is a voice for English."""

    voice: Voice
    language: str

    @property
    def name(self) -> str:
        """The name by which a voice is held out: its engine, location and variant."""
        location = f"{self.voice.where} {self.voice.model}" if self.voice.where else ""
        return " ".join(filter(None, (self.voice.engine, location, self.voice.variant)))


@dataclass(frozen=True)
class SplitVoices:
    """The voices for training and for the test split. Raises ValueError for a name in both, or for a split without
    voices."""

    train: tuple[LanguageVoice, ...]
    test: tuple[LanguageVoice, ...]

    def __post_init__(self) -> None:
        if not self.train or not self.test:
            raise ValueError(
                f"expected voices for both splits, found {len(self.train)} for training and "
                f"{len(self.test)} for the test split"
            )
        if both := sorted({r.name for r in self.train} & {r.name for r in self.test}):
            raise ValueError(
                f"expected held-out voices in the test split only, found {', '.join(both)} in both"
            )

    def reader(self, language: str, split: str, rng: Random) -> LanguageVoice | None:
        """Return a random voice of the split for the language, None without one."""
        candidates = [
            r for r in (self.train if split == "train" else self.test) if r.language == language
        ]
        return rng.choice(candidates) if candidates else None


def split_voices(train: Sequence[Voice], test: Sequence[Voice]) -> SplitVoices:
    """Return a `SplitVoices` of voices; `Voice.language` is one of the eight, or an accent of it ("en-gb")."""
    return SplitVoices(
        *(tuple(LanguageVoice(v, v.language[:2]) for v in voices) for voices in (train, test))
    )


def installed() -> SplitVoices:
    """Return the installed voices: espeak-ng's variants in eight languages and flite's voices in English. Raises
    ValueError if neither engine is installed."""
    train: list[LanguageVoice] = []
    test: list[LanguageVoice] = []
    if not (missing := unavailable("espeak-ng")):
        for language in LANGUAGES:
            for accent in dict.fromkeys(ACCENTS.get(language, (language,))):
                train += [
                    LanguageVoice(Voice(language=accent, variant=v), language)
                    for v in VARIANTS["train"]
                ]
            test += [
                LanguageVoice(Voice(language=language, variant=v), language)
                for v in VARIANTS["test"]
            ]
    if unavailable("flite") is None:
        if missing:
            train += [LanguageVoice(Voice("flite", "en", name), "en") for name in SPARE_FLITE]
        test.append(LanguageVoice(Voice("flite", "en", "slt"), "en"))
    if not train:
        raise ValueError(f"no text-to-speech engine is installed: {missing}")
    return SplitVoices(tuple(train), tuple(test))


class ReadAloud(BaseFilter):
    """Replaces each conversation's query by speech; drops those whose query can't be read aloud, with the reason.
    Images are kept. `meta["question"]` keeps the text, `meta["kind"]` the former task."""

    name, type = "ReadAloud", "SPEECH"

    def __init__(
        self, voices: SplitVoices, *, longest: int = LONGEST, seed: int = 0, strength: float = 0.5
    ) -> None:
        super().__init__()
        self._voices, self._longest, self._seed, self._strength = voices, longest, seed, strength
        self._tts_pool: TTSPool | None = None  # opened by the process that reads

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the reason."""
        one, split = sample(doc), doc.metadata.get("split", "train")
        text = query(one)
        if text is None:
            return False, "unfit to be read: not one question and its answer in writing"
        if reason := unfit(text, self._longest):
            return False, f"unfit to be read: {reason}"
        rng, language = Random(f"{self._seed}:{one.id}"), language_of(doc)
        reading = self._voices.reader(language, split, rng)
        if reading is None:
            return False, f"no voice reads {language}"
        if reading.voice.engine == "espeak-ng" and language == "ja" and has_kanji(text):
            return False, "unfit to be read: kanji, which espeak-ng can't read"
        wave = self._speak(text, reading, rng, split == "train")
        replace_sample(doc, _spoken(one, text, wave, reading))
        note(doc, "read aloud", speaker=reading.name, seconds=round(len(wave) / RATE, 2))
        return True

    def _speak(self, text: str, reading: LanguageVoice, rng: Random, training: bool) -> Wave:
        self._tts_pool = self._tts_pool or TTSPool()
        voice = reading.voice
        if training and voice.engine in ("espeak-ng", "flite"):
            voice = varied(voice, rng)
        wave, rate = self._tts_pool.speak(text, voice)
        wave, numpy_rng = trim(wave, rate), np.random.default_rng(rng.getrandbits(64))
        if training:
            return augment(wave, rate, numpy_rng, self._strength)
        return level(resample(wave, rate), 3.0)


def query(one: Sample) -> str | None:
    """Return the query of a conversation with one written question and its answer, else None."""
    users = [m for m in one.messages if m.role == "user"]
    roles = [m.role for m in one.messages if m.role != "system"]
    if roles != ["user", "assistant"] or media(users, Audio) or not users[0].text.strip():
        return None
    return users[0].text.strip()


def _spoken(one: Sample, text: str, wave: Wave, reading: LanguageVoice) -> Sample:
    def with_audio(message: Message) -> Message:
        if message.role != "user":
            return message
        images: list[Part] = [p for p in message.parts if isinstance(p, Image)]
        return replace(message, parts=(*images, Audio(encode(wave))))

    meta = {
        **{key: value for key, value in one.meta.items() if key != "lineage"},
        "task": "spoken_query",
        "kind": one.meta.get("task", ""),
        "question": text,
        "language": one.meta.get("language", reading.language),
        "spoken": reading.language,
        "engine": reading.voice.engine,
        "speaker": reading.name,
        "seconds": round(len(wave) / RATE, 2),
    }
    return replace(one, messages=tuple(map(with_audio, one.messages)), meta=meta)

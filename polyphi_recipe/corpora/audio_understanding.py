"""Questions about audio beyond its words: number of beeps, speech or sound, kind of sound, music, language. None asks
for an attribute of the person who speaks (report 5.2).

    beeps      "How many beeps are there?" -> "3"
    speech     "Is this speech?" -> "yes"
    sound      "What sound is this?" -> "a siren": synthetic sounds, always available
    animal     "Is this an animal?" -> "yes": recorded sounds of Tux Paint's stamps
    music      "Is this music?" -> "yes": pieces of music, speech and sounds
    language   "Which language is this?" -> "German"
    digits     "How many digits are spoken?" -> "4"

The test split has held-out voices, recorded sounds, pitches and lengths.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

import numpy as np

from polyphi.data.shards import Sample
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, interleave
from polyphi_recipe.synthetic import speech
from polyphi_recipe.synthetic.speech import (
    RecordedPhrase,
    Speaker,
    TTSSampler,
    audio_sample,
    numbered,
)
from polyphi_recipe.synthetic.waves import RATE, Wave, join, level
from polyphi_recipe.text.lexicon import LANGUAGES, lexicon

SHARES = {
    "beeps": 16,
    "speech": 14,
    "sound": 18,
    "animal": 8,
    "music": 6,
    "language": 14,
    "digits": 16,
}
"""Task -> its share of the training rows; test rows are distributed equally."""
MAX_BEEPS = 5


# Synthetic sounds ----------------------------------------------------------------------------------------------------


def _seconds(rng: Random, low: float, high: float) -> np.ndarray:
    return np.arange(int(rng.uniform(low, high) * RATE), dtype=np.float32) / RATE


def _fade(wave: np.ndarray, seconds: float = 0.01) -> Wave:
    """Return the wave with faded ends, against clicks."""
    n = min(len(wave) // 2, int(seconds * RATE))
    ramp = np.linspace(0, 1, n, dtype=np.float32)
    wave = wave.astype(np.float32)
    wave[:n] *= ramp
    wave[len(wave) - n :] *= ramp[::-1]
    return wave


def _sweep(hertz: np.ndarray) -> np.ndarray:
    """Return a tone with the given frequency at each sample."""
    return np.sin(2 * np.pi * np.cumsum(hertz) / RATE)


def _pitch(rng: Random, split: str) -> float:
    """Return a frequency from 250 to 2,000 Hz; two of eight bands are held out for the test split."""
    while True:
        band, offset = rng.randrange(8), rng.random()
        if (band in (2, 5)) == (split == "test"):
            return 250.0 * 2 ** ((band + offset) * 3 / 8)


def beep(rng: Random, split: str) -> Wave:
    """Return a short tone with up to two overtones."""
    t, pitch = _seconds(rng, 0.08, 0.2), _pitch(rng, split)
    wave = np.zeros(len(t), np.float32)
    for k in range(1, rng.randint(2, 4)):
        wave += rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * k * pitch * t)
    return _fade(wave)


def tone(rng: Random, split: str) -> Wave:
    return _fade(np.sin(2 * np.pi * _pitch(rng, split) * _seconds(rng, 0.8, 1.6)), 0.05)


def siren(rng: Random, split: str) -> Wave:
    t, pitch = _seconds(rng, 1.2, 2.0), _pitch(rng, split)
    return _fade(_sweep(pitch * (1 + 0.4 * np.sin(2 * np.pi * rng.uniform(1.2, 2.5) * t))))


def rising(rng: Random, split: str) -> Wave:
    t = _seconds(rng, 0.7, 1.4)
    return _fade(_sweep(_pitch(rng, split) * np.exp2(rng.uniform(0.8, 1.6) * t / t[-1])))


def falling(rng: Random, split: str) -> Wave:
    return np.ascontiguousarray(rising(rng, split)[::-1])


def noise(rng: Random, split: str) -> Wave:
    """Return steady noise with a random spectrum."""
    generator = np.random.default_rng(rng.getrandbits(64))
    wave = generator.standard_normal(len(_seconds(rng, 0.8, 1.6)), np.float32)
    return _fade(np.convolve(wave, generator.uniform(-1, 1, 4).astype(np.float32), "same"), 0.05)


def clicks(rng: Random, split: str) -> Wave:
    """Return the ticking of a clock: short bursts at equal intervals."""
    generator = np.random.default_rng(rng.getrandbits(64))
    burst = generator.standard_normal(80, np.float32) * np.exp(
        -np.linspace(0, 8, 80, dtype=np.float32)
    )
    count, apart = rng.randint(5, 9), rng.uniform(0.12, 0.25)
    return join([burst] * count, [apart] * (count - 1))


SOUNDS: dict[str, Callable[[Random, str], Wave]] = {
    "a tone": tone,
    "a siren": siren,
    "a rising tone": rising,
    "a falling tone": falling,
    "noise": noise,
    "clicks": clicks,
}

ANIMALS = r"animals/.*|seasonal/halloween/(bat|blackcat).*"
UNCLEAR = r"seasonal/(christmas/santahat|halloween/ghost|hanukkah/.*)|space/.*|military/.*|town/.*|hobbies/camera.*"
"""Patterns of ids of the stamps with sounds of animals, and of those with speech or unclear sounds."""


class TaskSampler:
    """Draws samples by one method per task; `i` is the sample's number within its task and determines the answer in the
    test split."""

    def __init__(self, work: Work, split: str, rng: Random) -> None:
        self.split, self.rng, self.tts = split, rng, TTSSampler(work)
        effects = [r for r in speech.effects(work, split) if not re.fullmatch(UNCLEAR, r.id)]
        self.animals = [r for r in effects if re.fullmatch(ANIMALS, r.id)]
        self.others = [r for r in effects if not re.fullmatch(ANIMALS, r.id)]
        self.pieces = speech.music(work, split)

    def tasks(self) -> list[str]:
        """Return the tasks possible with the available engines and recordings."""
        unavailable = set() if self.tts.languages else {"speech", "language", "digits"}
        unavailable |= set() if self.animals and self.others else {"animal"}
        unavailable |= set() if self.pieces else {"music"}
        return [task for task in SHARES if task not in unavailable]

    def process(self, wave: Wave) -> Wave:
        """Return a sound as stored in shards: augmented in training."""
        return self.tts.process(level(wave, 3.0), self.rng, self.split == "train")

    def speaker(self, language: str) -> Speaker:
        group = self.rng.choice(self.tts.groups(language)) if self.split == "test" else ""
        return self.tts.speaker(language, self.split, self.rng, group)

    def words(self, language: str) -> str:
        return ", ".join(
            w[language] for w in self.rng.sample(list(lexicon().values()), self.rng.randint(2, 4))
        )

    def beeps(self, i: int) -> Sample:
        count = 1 + i % MAX_BEEPS
        sound = beep(self.rng, self.split)
        wave = join([sound] * count, [self.rng.uniform(0.1, 0.3) for _ in range(count - 1)])
        wave = np.pad(
            wave, (int(self.rng.uniform(0, 0.3) * RATE), int(self.rng.uniform(0, 0.3) * RATE))
        )
        return audio_sample(
            self.process(wave),
            "How many beeps are there?",
            str(count),
            None,
            task="beeps",
            language="en",
        )

    def talk(self) -> tuple[Wave, Speaker]:
        """Return a few words by a random voice in a random language."""
        language = self.rng.choice(self.tts.languages)
        speaker = self.speaker(language)
        return self.tts.synthesize(self.words(language), speaker, self.rng), speaker

    def generated_sound(self) -> Wave:
        """Return a random synthetic sound."""
        return self.process(self.rng.choice(list(SOUNDS.values()))(self.rng, self.split))

    def speech(self, i: int) -> Sample:
        question, meta = "Is this speech?", {"task": "speech", "language": "en"}
        if i % 2 == 0:
            wave, speaker = self.talk()
            return audio_sample(wave, question, "yes", speaker, **meta)
        if self.animals and self.rng.random() < 0.5:
            recording = self.rng.choice(self.animals + self.others)
            return audio_sample(self.effect(recording), question, "no", recording, **meta)
        return audio_sample(self.generated_sound(), question, "no", None, **meta)

    def sound(self, i: int) -> Sample:
        name = list(SOUNDS)[i % len(SOUNDS)]
        wave = self.process(SOUNDS[name](self.rng, self.split))
        return audio_sample(wave, "What sound is this?", name, None, task="sound", language="en")

    def effect(self, recording: RecordedPhrase) -> Wave:
        """Return at most two seconds of a recorded sound, augmented in both splits because held-out sounds are few."""
        wave = speech.load(recording.path)
        start = int(self.rng.random() * max(0, len(wave) - 2 * RATE))
        return self.tts.process(wave[start : start + 2 * RATE], self.rng, True)

    def animal(self, i: int) -> Sample:
        """Return a recorded sound; a third of the other sounds than animals are speech or synthetic."""
        question, meta = "Is this an animal?", {"task": "animal", "language": "en"}
        if i % 2 == 0 or not self.tts.languages or self.rng.random() < 0.67:
            recording = self.rng.choice(self.others if i % 2 else self.animals)
            answer = "no" if i % 2 else "yes"
            return audio_sample(
                self.effect(recording), question, answer, recording, stamp=recording.id, **meta
            )
        if self.rng.random() < 0.5:
            return audio_sample(self.generated_sound(), question, "no", None, **meta)
        wave, speaker = self.talk()
        return audio_sample(wave, question, "no", speaker, **meta)

    def music(self, i: int) -> Sample:
        """Return a part of a piece of music, as long as other sounds are, or speech or a synthetic sound."""
        question, meta = "Is this music?", {"task": "music", "language": "en"}
        if i % 2 == 0:
            piece = self.rng.choice(self.pieces)
            wave, length = speech.load(piece.path), int(self.rng.uniform(0.8, 2) * RATE)
            start = self.rng.randrange(len(wave) - length)
            cut = self.process(_fade(wave[start : start + length], 0.05))
            return audio_sample(cut, question, "yes", piece, piece=piece.id, **meta)
        if self.tts.languages and self.rng.random() < 0.5:
            wave, speaker = self.talk()
            return audio_sample(wave, question, "no", speaker, **meta)
        return audio_sample(self.generated_sound(), question, "no", None, **meta)

    def language(self, i: int) -> Sample:
        language = self.tts.languages[i % len(self.tts.languages)]
        speaker = self.speaker(language)
        wave = self.tts.synthesize(self.words(language), speaker, self.rng)
        meta = {"task": "language", "language": "en", "spoken": language}
        return audio_sample(wave, "Which language is this?", LANGUAGES[language], speaker, **meta)

    def digits(self, i: int) -> Sample:
        language, count = self.rng.choice(self.tts.languages), 2 + i % 5
        numbers = speech.digits(self.rng, self.split, count=count)
        speaker = self.speaker(language)
        wave = self.tts.synthesize(
            speech.digit_text(numbers, language, self.rng), speaker, self.rng
        )
        return audio_sample(
            wave,
            "How many digits are spoken?",
            str(count),
            speaker,
            task="digits",
            language="en",
            reference=speech.digit_string(numbers),
        )


def training(sampler: TaskSampler, rng: Random) -> Iterator[Sample]:
    """Yield training questions without end, in the proportions of `SHARES`."""
    tasks = sampler.tasks()
    weights = [SHARES[task] for task in tasks]
    while True:
        yield getattr(sampler, rng.choices(tasks, weights)[0])(rng.randrange(1 << 20))


def testing(sampler: TaskSampler) -> Iterator[Sample]:
    """Return an endless iterator of test questions, tasks in turn."""

    def one(task: str) -> Iterator[Sample]:
        i = 0
        while True:
            yield getattr(sampler, task)(i)
            i += 1

    return interleave([one(task) for task in sampler.tasks()])


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        sampler = TaskSampler(work, split, rng)
        samples = training(sampler, rng) if split == "train" else testing(sampler)
        return numbered("audio_understanding", split, islice(samples, work.rows[split]))

    return fill(work, "audio_understanding", make)


# Compare bytes: landmarks would match synthetic voices with nearly the same text.
corpus = Corpus(
    "audio_understanding", build=build, steps=against("audio_understanding", ways=("same bytes",))
)

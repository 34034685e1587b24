"""What can be heard besides words: how many beeps, speech or sound, which sound, who speaks, in which language.

    beeps      "How many beeps are there?" -> "3"
    speech     "Is this speech?" -> "yes"
    sound      "What sound is this?" -> "a siren": made by us, always there
    animal     "Is this an animal?" -> "yes": recorded sounds of Tux Paint's stamps
    sex        "Is a man or a woman speaking?" -> "woman"
    language   "Which language is this?" -> "German"
    digits     "How many digits are spoken?" -> "4"

Test clips have unseen voices, unseen recorded sounds, and pitches and lengths that training leaves out.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

import numpy as np

from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import against
from polyphi.curate.text import fill, interleave
from polyphi.curate.waves import RATE, Wave, join, level
from polyphi.data.shards import Sample
from polyphi.synthetic import speech
from polyphi.synthetic.speech import Recording, Speaker, Studio, asked, numbered
from polyphi.text.lexicon import LANGUAGES, lexicon

SHARES = {
    "beeps": 16,
    "speech": 14,
    "sound": 18,
    "animal": 8,
    "sex": 14,
    "language": 14,
    "digits": 16,
}
"""Task -> its share of the training rows; test rows are equal."""
MOST_BEEPS = 5


# Sounds of our own ---------------------------------------------------------------------------------------------------


def _seconds(rng: Random, low: float, high: float) -> np.ndarray:
    return np.arange(int(rng.uniform(low, high) * RATE), dtype=np.float32) / RATE


def _fade(wave: np.ndarray, seconds: float = 0.01) -> Wave:
    """Without clicks at its ends."""
    n = min(len(wave) // 2, int(seconds * RATE))
    ramp = np.linspace(0, 1, n, dtype=np.float32)
    wave = wave.astype(np.float32)
    wave[:n] *= ramp
    wave[len(wave) - n :] *= ramp[::-1]
    return wave


def _sweep(hertz: np.ndarray) -> np.ndarray:
    """A tone that follows the given frequency at every sample."""
    return np.sin(2 * np.pi * np.cumsum(hertz) / RATE)


def _pitch(rng: Random, split: str) -> float:
    """250 to 2,000 Hz; two bands in eight are the test split's alone."""
    while True:
        band, within = rng.randrange(8), rng.random()
        if (band in (2, 5)) == (split == "test"):
            return 250.0 * 2 ** ((band + within) * 3 / 8)


def beep(rng: Random, split: str) -> Wave:
    """A short tone, with an overtone or two."""
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
    """A steady hiss, coloured at random."""
    dice = np.random.default_rng(rng.getrandbits(64))
    wave = dice.standard_normal(len(_seconds(rng, 0.8, 1.6)), np.float32)
    return _fade(np.convolve(wave, dice.uniform(-1, 1, 4).astype(np.float32), "same"), 0.05)


def clicks(rng: Random, split: str) -> Wave:
    """A clock's ticking: short bursts, evenly apart."""
    dice = np.random.default_rng(rng.getrandbits(64))
    burst = dice.standard_normal(80, np.float32) * np.exp(-np.linspace(0, 8, 80, dtype=np.float32))
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
"""Ids of the stamps whose recorded sounds are animals', and of those that hold speech or that nobody could name."""


class Listener:
    """One method per task; `i` is the sample's number within its task, by which test answers take turns."""

    def __init__(self, work: Work, split: str, rng: Random) -> None:
        self.split, self.rng, self.studio = split, rng, Studio(work)
        found = [r for r in speech.effects(work, split) if not re.fullmatch(UNCLEAR, r.id)]
        self.animals = [r for r in found if re.fullmatch(ANIMALS, r.id)]
        self.others = [r for r in found if not re.fullmatch(ANIMALS, r.id)]

    def tasks(self) -> list[str]:
        """Those that can be made here."""
        without = set() if self.studio.languages else {"speech", "sex", "language", "digits"}
        without |= set() if self.animals and self.others else {"animal"}
        return [task for task in SHARES if task not in without]

    def heard(self, wave: Wave) -> Wave:
        """A sound as it goes into a shard: augmented in training."""
        return self.studio.recorded(level(wave, 3.0), self.rng, self.split == "train")

    def speaker(self, language: str, sex: str = "") -> Speaker:
        groups = [g for g in self.studio.groups(language) if g != "flite_slt" or sex != "man"]
        group = self.rng.choice(groups) if self.split == "test" and not sex else ""
        return self.studio.speaker(language, self.split, self.rng, group, sex)

    def words(self, language: str) -> str:
        return ", ".join(
            w[language] for w in self.rng.sample(list(lexicon().values()), self.rng.randint(2, 4))
        )

    def beeps(self, i: int) -> Sample:
        count = 1 + i % MOST_BEEPS
        sound = beep(self.rng, self.split)
        clip = join([sound] * count, [self.rng.uniform(0.1, 0.3) for _ in range(count - 1)])
        clip = np.pad(
            clip, (int(self.rng.uniform(0, 0.3) * RATE), int(self.rng.uniform(0, 0.3) * RATE))
        )
        return asked(
            self.heard(clip),
            "How many beeps are there?",
            str(count),
            None,
            task="beeps",
            language="en",
        )

    def talk(self) -> tuple[Wave, Speaker]:
        """A few words by somebody, in any language."""
        language = self.rng.choice(self.studio.languages)
        speaker = self.speaker(language)
        return self.studio.say(self.words(language), speaker, self.rng), speaker

    def generated(self) -> Wave:
        """A sound of ours."""
        return self.heard(self.rng.choice(list(SOUNDS.values()))(self.rng, self.split))

    def speech(self, i: int) -> Sample:
        question, meta = "Is this speech?", {"task": "speech", "language": "en"}
        if i % 2 == 0:
            clip, speaker = self.talk()
            return asked(clip, question, "yes", speaker, **meta)
        if self.animals and self.rng.random() < 0.5:
            recording = self.rng.choice(self.animals + self.others)
            return asked(self.effect(recording), question, "no", recording, **meta)
        return asked(self.generated(), question, "no", None, **meta)

    def sound(self, i: int) -> Sample:
        name = list(SOUNDS)[i % len(SOUNDS)]
        clip = self.heard(SOUNDS[name](self.rng, self.split))
        return asked(clip, "What sound is this?", name, None, task="sound", language="en")

    def effect(self, recording: Recording) -> Wave:
        """At most two seconds of a recorded sound. Held-out sounds are few: the test split too hears them varied."""
        whole = speech.load(recording.path)
        start = int(self.rng.random() * max(0, len(whole) - 2 * RATE))
        return self.studio.recorded(whole[start : start + 2 * RATE], self.rng, True)

    def animal(self, i: int) -> Sample:
        """Recorded sounds; a third of those that are no animals' are speech or sounds of ours."""
        question, meta = "Is this an animal?", {"task": "animal", "language": "en"}
        if i % 2 == 0 or not self.studio.languages or self.rng.random() < 0.67:
            recording = self.rng.choice(self.others if i % 2 else self.animals)
            answer = "no" if i % 2 else "yes"
            return asked(
                self.effect(recording), question, answer, recording, stamp=recording.id, **meta
            )
        if self.rng.random() < 0.5:
            return asked(self.generated(), question, "no", None, **meta)
        clip, speaker = self.talk()
        return asked(clip, question, "no", speaker, **meta)

    def sex(self, i: int) -> Sample:
        sex, language = ("man", "woman")[i % 2], self.rng.choice(self.studio.languages)
        speaker = self.speaker(language, sex)
        clip = self.studio.say(self.words(language), speaker, self.rng)
        return asked(clip, "Is a man or a woman speaking?", sex, speaker, task="sex", language="en")

    def language(self, i: int) -> Sample:
        language = self.studio.languages[i % len(self.studio.languages)]
        speaker = self.speaker(language)
        clip = self.studio.say(self.words(language), speaker, self.rng)
        meta = {"task": "language", "language": "en", "spoken": language}
        return asked(clip, "Which language is this?", LANGUAGES[language], speaker, **meta)

    def digits(self, i: int) -> Sample:
        language, count = self.rng.choice(self.studio.languages), 2 + i % 5
        numbers = speech.digits(self.rng, self.split, count=count)
        speaker = self.speaker(language)
        clip = self.studio.say(speech.digit_text(numbers, language, self.rng), speaker, self.rng)
        return asked(
            clip,
            "How many digits are spoken?",
            str(count),
            speaker,
            task="digits",
            language="en",
            heard=speech.written(numbers),
        )


def training(listener: Listener, rng: Random) -> Iterator[Sample]:
    """Endless training questions in the proportions of `SHARES`."""
    tasks = listener.tasks()
    weights = [SHARES[task] for task in tasks]
    while True:
        yield getattr(listener, rng.choices(tasks, weights)[0])(rng.randrange(1 << 20))


def testing(listener: Listener) -> Iterator[Sample]:
    """Endless test questions, tasks in turn."""

    def one(task: str) -> Iterator[Sample]:
        i = 0
        while True:
            yield getattr(listener, task)(i)
            i += 1

    return interleave([one(task) for task in listener.tasks()])


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        listener = Listener(work, split, rng)
        made = training(listener, rng) if split == "train" else testing(listener)
        return numbered("audio_understanding", split, islice(made, work.rows[split]))

    return fill(work, "audio_understanding", make)


# By bytes: by landmarks, synthetic voices that say nearly the same would be taken for copies.
corpus = Corpus(
    "audio_understanding", build=build, steps=against("audio_understanding", ways=("same bytes",))
)

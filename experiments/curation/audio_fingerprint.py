"""False and missed matches of the audio fingerprint (`polyphi_recipe/dedup/audio_index.py`) on pairs of clips.

    python -m experiments.curation.audio_fingerprint [--pairs 1000]  # rates on the second half of the pairs
    python -m experiments.curation.audio_fingerprint --half 0 --least -1 0.8 0.84 0.88  # on the first half: for a limit
    python -m experiments.curation.audio_fingerprint --recorded FOLDER  # copies of your own recordings, too

The first clip of a pair is indexed, the second one looked up. A copy (encoded again, resampled, quieter, noisier, cut)
should match; the same sentence by another voice, and the same voice and template with another number, should not. Two
of five numbers are chosen to sound alike (14 and 40). The halves share no template and no voice. `--least` is the
agreement that a match needs; -1 decides by landmarks alone, as it was before alignments were compared. espeak-ng and
flite are needed. Copies of another pitch or speed are listed apart: a phase vocoder changes each of their frames.
"""

import argparse
import io
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from experiments.curation import leaked_items
from polyphi.media.media import decode_audio
from polyphi_eval.services.speech_synthesis import TTSPool, Voice, unavailable
from polyphi_recipe.dedup.audio_index import MIN_AGREEMENT, AudioFingerprintIndex
from polyphi_recipe.dedup.dedup import AUDIO
from polyphi_recipe.dedup.landmarks import keys, landmarks
from polyphi_recipe.synthetic.waves import RATE, resample

TEMPLATES: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "en": (
            "Please go to room {n} and wait for the doctor.",
            "The train to Boston leaves from platform {n} in a few minutes.",
            "Your order will arrive in {n} days, thank you for your patience.",
            "Customer {n}, please come to the counter.",
            "The total of your invoice is {n} euros.",
            "Turn left after {n} meters and follow the road.",
            "{n} people have signed the petition so far.",
            "What is {n} plus seven?",
        ),
        "de": (
            "Bitte gehen Sie in Raum {n} und warten Sie dort.",
            "Die Rechnung beträgt {n} Euro.",
        ),
        "fr": (
            "Le train numéro {n} part dans cinq minutes.",
            "Veuillez vous rendre dans la salle {n}.",
        ),
    },
    {
        "en": (
            "Flight {n} is now boarding at the gate next to the café.",
            "I would like to book a table for {n} on Friday evening.",
            "The temperature tomorrow will reach {n} degrees in the afternoon.",
            "You have reached extension {n}.",
            "Add {n} grams of sugar and stir until it has melted.",
            "How many minutes are there in {n} hours?",
            "Page {n} of the manual explains how to reset the device.",
            "My house number is {n}.",
        ),
        "es": (
            "La reunión empieza en la sala {n} del segundo piso.",
            "El precio total es de {n} euros.",
        ),
        "it": (
            "Il treno per Milano parte dal binario {n} tra dieci minuti.",
            "La stanza numero {n} si trova al primo piano.",
        ),
    },
)
ESPEAK = (
    (
        *("", "m1", "m3", "m5", "m7", "f1", "f4", "Alex", "Annie", "Denis", "Hugo", "Lee"),
        *("Michael", "adam", "ed", "linda", "pablo", "rob", "klatt", "klatt3"),
    ),
    (
        *("m2", "m4", "m6", "m8", "f2", "f3", "f5", "Alicia", "Andrea", "Andy", "Gene", "Jacky"),
        *("Marco", "caleb", "john", "max", "paul", "steph", "klatt2", "klatt4"),
    ),
)
FLITE = (("slt", "kal16"), ("rms", "awb"))
SIMILAR = (
    *((13, 30), (14, 40), (15, 50), (16, 60), (17, 70), (18, 80), (19, 90)),
    *((21, 27), (35, 45), (114, 140), (5, 9)),
)
Wave = np.ndarray
Change = Callable[[Wave, random.Random], Wave]


def mp3(kilobits: int) -> Change:
    def change(wave: Wave, rng: random.Random) -> Wave:
        file = io.BytesIO()
        with av.open(file, "w", format="mp3") as container:
            stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
            stream.bit_rate = 1000 * kilobits
            samples = (np.clip(wave, -1, 1) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout="mono")
            frame.rate = RATE
            for part in av.AudioResampler(format="s16p", layout="mono", rate=RATE).resample(frame):
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
        return resample(*soundfile.read(io.BytesIO(file.getvalue()), dtype="float32"))

    return change


def encoded(format_: str, subtype: str) -> Change:
    def change(wave: Wave, rng: random.Random) -> Wave:
        file = io.BytesIO()
        soundfile.write(file, np.clip(wave, -1, 1), RATE, format=format_, subtype=subtype)
        return resample(*soundfile.read(io.BytesIO(file.getvalue()), dtype="float32"))

    return change


def through(rate: int) -> Change:
    return lambda wave, rng: resample(soxr.resample(wave, RATE, rate), rate)


def cut(start: float, end: float) -> Change:
    """Cut up to these shares of a clip from its start and its end, at least half of each."""

    def change(wave: Wave, rng: random.Random) -> Wave:
        first, last = (round(len(wave) * share * rng.uniform(0.5, 1)) for share in (start, end))
        return wave[first : len(wave) - last]

    return change


COPIES: dict[str, Change] = {
    **{f"MP3, {kilobits} kbit/s": mp3(kilobits) for kilobits in (128, 64, 32, 16)},
    "Ogg Vorbis": encoded("OGG", "VORBIS"),
    "Ogg Opus": encoded("OGG", "OPUS"),
    "mu-law": encoded("WAV", "ULAW"),
    "through 8 kHz": through(8000),
    "through 44.1 kHz": through(44_100),
    "a tenth as loud": leaked_items.CLIP_CHANGES["a tenth as loud"],
    **{f"noise at {decibels} dB": leaked_items.noisy(decibels) for decibels in (20, 10, 5)},
    "start cut": cut(0.25, 0),
    "end cut": cut(0, 0.3),
    "both cut": cut(0.2, 0.2),
    "later, both ends cut": leaked_items.shifted,
}
CHANGED: dict[str, Change] = {
    **{f"pitch {s:+g} semitones": leaked_items.raised(s) for s in (-2, 0.7, 1)},
    **{f"played {s:+g} semitones faster": leaked_items.played(s) for s in (-1, 0.4, 2)},
    **{f"{f:g} times as long": leaked_items.longer(f) for f in (0.93, 1.03, 1.05)},
    "pitch +1 and noise at 15 dB": leaked_items.CLIP_CHANGES["pitch +1 and noise at 15 dB"],
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two clips at 16 kHz: what should happen, and how the second one was made."""

    group: str
    variant: str
    known: Wave
    query: Wave


SHARES = {"copy": 0.4, "other voice": 0.3, "other number": 0.3, "changed copy": 0.2}
"""Group -> its pairs as a share of `--pairs`; changed copies come in addition."""


class Speaker:
    """Reads templates of one half aloud, with a new voice, template and two numbers for each pair."""

    def __init__(self, half: int, rng: random.Random) -> None:
        self.half, self.rng, self.tts_pool = half, rng, TTSPool()

    def say(self, template: str, number: int, voice: Voice) -> Wave:
        return resample(*self.tts_pool.speak(template.format(n=number), voice))

    def draw(self) -> tuple[str, int, int, Voice]:
        """Return a template, two numbers and a voice."""
        rng, templates = self.rng, TEMPLATES[self.half]
        language = rng.choice(["en"] * 4 + list(templates)[1:])
        pool = range(1, rng.choice((100, 1000)))
        numbers = rng.choice(SIMILAR) if rng.random() < 0.4 else rng.sample(pool, 2)
        one, other = rng.sample(numbers, 2)
        if language == "en" and rng.random() < 0.3:
            voice = Voice("flite", "en", rng.choice(FLITE[self.half]))
        else:
            voice = Voice("espeak-ng", language, rng.choice(ESPEAK[self.half]))
        if rng.random() < 0.5:  # half of the voices as they are
            voice = replace(voice, speed=rng.uniform(0.8, 1.25), pitch=rng.randint(30, 70))
        return rng.choice(templates[language]), one, other, voice

    def another(self, voice: Voice) -> Voice:
        """Return another voice of the engine, with the same speed and pitch."""
        names = FLITE[self.half] if voice.engine == "flite" else ESPEAK[self.half]
        return replace(voice, variant=self.rng.choice([n for n in names if n != voice.variant]))


def pairs(half: int, count: int, seed: int = 0) -> Iterator[Pair]:
    """Yield the pairs of a half: `count` and, in addition, the changed copies."""
    rng = random.Random(f"{seed} {half}")
    speaker = Speaker(half, rng)
    for group, share in SHARES.items():
        for i in range(round(share * count)):
            template, one, other, voice = speaker.draw()
            known = speaker.say(template, one, voice)
            if group == "other voice":
                name = f"{voice.variant or 'plain'} and {(v := speaker.another(voice)).variant}"
                yield Pair(group, name, known, speaker.say(template, one, v))
            elif group == "other number":
                yield Pair(group, f"{one} and {other}", known, speaker.say(template, other, voice))
            else:
                changes = COPIES if group == "copy" else CHANGED
                name = list(changes)[i % len(changes)]
                yield Pair(group, name, known, changes[name](known, rng))


def recorded(folder: Path, count: int, seed: int = 0) -> Iterator[Pair]:
    """Yield pairs of the recordings below a folder, of 1 to 20 s: copies, and two recordings."""
    rng = random.Random(seed)
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".wav", ".flac", ".ogg", ".mp3"))
    waves = [resample(*decode_audio(p)) for p in rng.sample(files, min(count, len(files)))]
    waves = [wave for wave in waves if RATE <= len(wave) <= 20 * RATE]
    for i, wave in enumerate(waves):
        name = list(COPIES)[i % len(COPIES)]
        yield Pair("copy of a recording", name, wave, COPIES[name](wave, rng))
        yield Pair("other recording", "", wave, waves[i - 1])


def measure(every: list[Pair], least: float) -> dict[str, tuple[int, int, Counter[str]]]:
    """Return for each group the wrong decisions, the pairs, and the wrong ones by variant, at a limit of agreement."""
    wrong: dict[str, list[str | None]] = {}
    for pair in every:
        known = AudioFingerprintIndex.of([(pair.known, RATE)])
        right = bool(known.find(pair.query, RATE, least)) == ("copy" in pair.group)
        wrong.setdefault(pair.group, []).append(None if right else pair.variant)
    return {
        group: (len(results) - results.count(None), len(results), Counter(filter(None, results)))
        for group, results in wrong.items()
    }


def fused(every: list[Pair]) -> dict[str, float]:
    """Return for each group the mean probability that the deduplication `AUDIO` takes the two clips for one, if their
    rows have the same text."""
    chances: dict[str, list[float]] = {}
    for pair in every:
        one, other = (set(keys(landmarks(w, RATE)).tolist()) for w in (pair.known, pair.query))
        chance = AUDIO.chance(len(one & other) / max(1, len(one | other)))
        chances.setdefault(pair.group, []).append(chance)
    return {group: float(np.mean(values)) for group, values in chances.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--pairs", type=int, default=1000, help="of both halves")
    parser.add_argument("--half", type=int, choices=(0, 1), default=1)
    parser.add_argument("--least", type=float, nargs="+", default=[-1.0, MIN_AGREEMENT])
    parser.add_argument("--recorded", type=Path, help="folder of recordings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if missing := [why for engine in ("espeak-ng", "flite") if (why := unavailable(engine))]:
        sys.exit("; ".join(missing))
    every = list(pairs(args.half, args.pairs // 2, args.seed))
    if args.recorded:
        every += recorded(args.recorded, args.pairs // 2, args.seed)
    print("| agreement at least | group | wrong | pairs | rate | wrong variants |")
    print("|---|---|---|---|---|---|")
    for least in args.least:
        for group, (wrong, count, variants) in measure(every, least).items():
            which = ", ".join(f"{name} {n}" for name, n in variants.most_common(6))
            label = "landmarks alone" if least < 0 else f"{least:g}"
            print(f"| {label} | {group} | {wrong} | {count} | {wrong / count:.3f} | {which} |")
    print("duplicates of rows with equal texts:")
    print(", ".join(f"{group} {chance:.3f}" for group, chance in fused(every).items()))


if __name__ == "__main__":
    main()

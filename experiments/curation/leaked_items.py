"""Share of leaked evaluation items and near-duplicates that curation finds, and of unrelated items that it flags.

python -m experiments.curation.leaked_items [--items 60] [--seed 0] [--only text image audio]

The material is generated: sentences of Python's own manual and word problems; tiles of scikit-learn's photographs and
drawn scenes; sentences that espeak-ng or flite say (melodies if neither is installed). Each item is copied with changes
that are typical of leaks; neighbours are unrelated items that are as similar as possible. Prints one JSON object per
type: the share of copies found (recall), or of neighbours flagged.
"""

import argparse
import io
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image, ImageEnhance

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi.types.parts import Image as Picture
from polyphi_eval.services.speech_synthesis import Voice, speak, unavailable
from polyphi_recipe.corpora.image_qa import draw_digits, draw_text
from polyphi_recipe.dedup.decontaminate import Index
from polyphi_recipe.dedup.dedup import AUDIO, IMAGES, TEXTS, Similarity
from polyphi_recipe.pipeline.documents import document
from polyphi_recipe.synthetic import charts
from polyphi_recipe.synthetic.images import SIDE, png, sheet
from polyphi_recipe.synthetic.scenes import Scene
from polyphi_recipe.text import lexicon

RATE = 16_000
Change = Callable[[Any, random.Random], Any]


# -- texts --------------------------------------------------------------------------------------------------------


def manual() -> list[str]:
    """Sentences of 14 to 45 words of Python's manual, as the interpreter ships it."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    sentences = [" ".join(s.split()) for s in re.findall(r"[A-Z][^.\n]*(?:\n[^.\n]+)*\.", text)]
    return list(dict.fromkeys(s for s in sentences if 14 <= len(s.split()) <= 45))


PROBLEMS = (
    "{a} picked {n} {thing} in the morning and {m} more after lunch, then gave half of them to {b}. How many {thing} "
    "does {a} have left?",
    "A shop sells {thing} at {n} euros each. {a} buys {m} of them and pays with a note of five hundred euros; how much "
    "change does {a} get from the shopkeeper?",
    "{a} reads {n} pages on every working day and {m} pages on each day of the weekend. In how many weeks will {a} "
    "have finished a book of two thousand pages about {thing}?",
    "There are {n} boxes on a truck, and each holds {m} {thing}. On the way {a} takes out three boxes for {b}. How "
    "many {thing} arrive at the warehouse?",
)


def problem(template: str, rng: random.Random) -> str:
    return template.format(
        a=rng.choice(("Anna", "Bilal", "Chen", "Diego", "Emre", "Fatou")),
        b=rng.choice(("Greta", "Hana", "Igor", "Jun")),
        thing=rng.choice(("apples", "marbles", "postcards", "stamps", "lemons", "pencils")),
        n=rng.randint(11, 99),
        m=rng.randint(11, 99),
    )


def reworded(share: float) -> Change:
    """Replace `share` of the longer words with random words, in place of synonyms, and drop every tenth short word."""

    def change(text: str, rng: random.Random) -> str:
        words = text.split()
        long = [i for i, w in enumerate(words) if len(w) > 3]
        others = rng.sample(VOCABULARY, len(words))
        for i in rng.sample(long, round(share * len(long))):
            words[i] = others[i]
        return " ".join(w for w in words if len(w) > 3 or rng.random() > 0.1)

    return change


VOCABULARY = sorted({w for s in manual() for w in s.split() if w.isalpha() and len(w) > 3})


def reordered(text: str, rng: random.Random) -> str:
    """Reorder the clauses."""
    clauses = re.split(r"(?<=[,;.])\s+|\s+(?=and |which |that |when |if )", text)
    if len(clauses) == 1:
        half = len(text.split()) // 2
        clauses = [" ".join(text.split()[:half]), " ".join(text.split()[half:])]
    return " ".join(clauses[1:] + clauses[:1])


def padded(text: str, rng: random.Random) -> str:
    """Insert a word after every sixth word."""
    words = text.split()
    for i in range(6, len(words), 7):
        words.insert(i, rng.choice(("really", "often", "here", "indeed", "perhaps")))
    return " ".join(words)


def both(text: str, rng: random.Random) -> str:
    return reordered(reworded(0.15)(padded(text, rng), rng), rng)


TEXT_CHANGES: dict[str, Change] = {
    "word for word": lambda text, rng: text,
    "case and punctuation": lambda text, rng: re.sub(r"[,.;:]", " ", text.upper()),
    "15 % of the words replaced": reworded(0.15),
    "30 % of the words replaced": reworded(0.30),
    "45 % of the words replaced": reworded(0.45),
    "clauses reordered": reordered,
    "a word more after every sixth": padded,
    "reordered, padded and 15 % replaced": both,
}


# -- pictures -----------------------------------------------------------------------------------------------------


def photographs(rng: random.Random, count: int) -> list[Image.Image]:
    """Tiles of 140 x 140 pixels, no two overlapping, of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    tiles = [
        Image.fromarray(photo).crop((x, y, x + 140, y + 140))
        for photo in load_sample_images().images
        for x in range(0, photo.shape[1] - 139, 140)
        for y in range(0, photo.shape[0] - 139, 140)
    ]
    rng.shuffle(tiles)
    return tiles[:count]


def drawn(rng: random.Random, number: int) -> Image.Image:
    """A scene: shapes, a chart, a word, or digits written by hand, in turn."""
    scene = Scene(rng, "train", number)
    scene_type = number % 4
    if scene_type == 0:
        paper = scene.paper(*lexicon.COLOUR_RGB.values())
        picture = sheet((SIDE, SIDE), paper)
        for corner in scene.scatter(rng.randint(2, 5), 30):
            shape, colour = scene.pair()
            scene.shape(picture, shape, colour, corner, 30)
        return picture
    if scene_type == 1:
        values = [rng.randint(1, 9) for _ in range(4)]
        return charts.columns(scene, rng.sample("ABCDEFG", 4), values).image
    if scene_type == 2:
        return draw_text(scene, rng.choice(lexicon_words()), (SIDE, SIDE), 36)[0]
    return draw_digits(scene, [rng.randrange(10) for _ in range(3)], (SIDE, SIDE))


def lexicon_words() -> list[str]:
    return sorted(lexicon.lexicon())


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def resized(factor: float) -> Change:
    return lambda picture, rng: picture.resize(
        tuple(max(8, round(factor * s)) for s in picture.size), Image.Resampling.LANCZOS
    )


def cropped(least: float, most: float) -> Change:
    """Cut off `least` to `most` of each side, then resize to the original size and compress."""

    def change(picture: Image.Image, rng: random.Random) -> Image.Image:
        w, h = picture.size
        left, top, right, bottom = (rng.uniform(least, most) for _ in range(4))
        part = picture.crop(
            (round(left * w), round(top * h), round((1 - right) * w), round((1 - bottom) * h))
        )
        return jpeg(part.resize((w, h), Image.Resampling.BICUBIC), 70)

    return change


def brighter(picture: Image.Image, rng: random.Random) -> Image.Image:
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(0.85)).enhance(0.8)


PICTURE_CHANGES: dict[str, Change] = {
    "half the size": resized(0.5),
    "JPEG 30": lambda picture, rng: jpeg(picture, 30),
    "darker and paler": brighter,
    "cropped by 2-5 % a side": cropped(0.02, 0.05),
    "cropped by 10 % a side": cropped(0.10, 0.10),
    "cropped by 10-20 % a side": cropped(0.10, 0.20),
    "cropped by 20-30 % a side": cropped(0.20, 0.30),
    "mirrored": lambda picture, rng: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


# -- clips --------------------------------------------------------------------------------------------------------


def voices() -> list[Voice]:
    candidates = [Voice("espeak-ng", "en", v) for v in ("f2", "m3", "")]
    candidates += [Voice("flite", "en", v) for v in ("slt", "rms")]
    return [v for v in candidates if unavailable(v.engine) is None]


def read_aloud(text: str, voice: Voice | None) -> np.ndarray:
    """A sentence as float32 samples at 16 kHz; without engines a melody that the sentence determines."""
    from polyphi.processing.audio import resample

    if voice is not None:
        return resample(*speak(text, voice))[0]
    rng = np.random.default_rng(list(text.encode()))
    t = np.arange(int(0.18 * RATE)) / RATE
    notes = [
        sum(np.sin(2 * np.pi * f * k * t) / k for k in (1, 2, 3)) * np.hanning(len(t))
        for f in 220 * 2 ** (rng.integers(0, 24, 20) / 12)
    ]
    return (0.2 * np.concatenate(notes)).astype(np.float32)


def noisy(decibels: float) -> Change:
    def change(wave: np.ndarray, rng: random.Random) -> np.ndarray:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(wave))
        noise *= np.sqrt((wave**2).mean()) * 10 ** (-decibels / 20)
        return (wave + noise).astype(np.float32)

    return change


def played(semitones: float) -> Change:
    """Play faster and at a higher pitch, like a tape."""

    def change(wave: np.ndarray, rng: random.Random) -> np.ndarray:
        import soxr

        return soxr.resample(wave, RATE * 2 ** (semitones / 12), RATE)

    return change


def stretched(wave: np.ndarray, factor: float) -> np.ndarray:
    """`factor` times as long at the same pitch: a phase vocoder."""
    size, hop = 1024, 256
    taper = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, size), size)[::hop] * taper
    spectra = np.fft.rfft(frames)
    at = np.arange(0, len(spectra) - 1, 1 / factor)
    low, share = at.astype(int), at % 1
    expected = 2 * np.pi * hop * np.arange(size // 2 + 1) / size
    step = np.angle(spectra[low + 1]) - np.angle(spectra[low]) - expected
    step = expected + step - 2 * np.pi * np.round(step / (2 * np.pi))
    phase = np.angle(spectra[0]) + np.cumsum(step, 0) - step
    size_of = (1 - share)[:, None] * np.abs(spectra[low]) + share[:, None] * np.abs(
        spectra[low + 1]
    )
    out = np.zeros(len(at) * hop + size)
    for i, frame in enumerate(np.fft.irfft(size_of * np.exp(1j * phase)) * taper):
        out[i * hop : i * hop + size] += frame
    return (out[size:] / 1.5).astype(np.float32)


def raised(semitones: float) -> Change:
    """Raise the pitch at the same speed."""
    ratio = 2 ** (semitones / 12)
    return lambda wave, rng: played(semitones)(stretched(wave, ratio), rng)


def longer(factor: float) -> Change:
    """Play slower at the same pitch."""
    return lambda wave, rng: stretched(wave, factor)


def shifted(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    """Delay by a random time, with the start and the end cut off."""
    cut = len(wave) // 8
    lead = np.zeros(rng.randint(5000, 30_000), np.float32)
    return np.concatenate([lead, wave[cut:-cut], lead])


def ogg(wave: np.ndarray, rng: random.Random) -> np.ndarray:
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format="OGG", subtype="VORBIS")
    return soundfile.read(io.BytesIO(out.getvalue()), dtype="float32")[0]


CLIP_CHANGES: dict[str, Change] = {
    "a tenth as loud": lambda wave, rng: wave * np.float32(0.1),
    "Ogg Vorbis": ogg,
    "later, both ends cut": shifted,
    "noise at 20 dB": noisy(20),
    "noise at 10 dB": noisy(10),
    "noise at 5 dB": noisy(5),
    **{f"pitch {s:+d} semitones": raised(s) for s in (-2, -1, 1, 2)},
    **{f"played {s:+d} semitones faster": played(s) for s in (-2, -1, 1, 2)},
    "5 % slower, same pitch": lambda wave, rng: stretched(wave, 1.05),
    "pitch +1 and noise at 15 dB": lambda wave, rng: noisy(15)(raised(1)(wave, rng), rng),
}


def wav(wave: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.clip(wave, -1, 1), RATE, format="WAV", subtype="PCM_16")
    return out.getvalue()


# -- measuring ----------------------------------------------------------------------------------------------------


def sample(name: str, content: Any) -> Sample:
    """A text, an image or audio as a sample."""
    if isinstance(content, str):
        part: Any = content
    elif isinstance(content, Image.Image):
        part = Picture(png(content))
    else:
        part = Audio(wav(content))
    return Sample(name, (Message.user(part),), "benchmark", "MIT")


def measure(
    modality: str,
    known: list[Any],
    changes: dict[str, Change],
    neighbours: dict[str, list[Any]],
    similarity: Similarity,
    seed: int,
    around: Callable[[Any, random.Random], Any] = lambda content, rng: content,
) -> Iterator[dict[str, Any]]:
    """Index the known items, then look up their copies and the neighbours; `around` embeds a copy in other content.
    `duplicates` is the mean probability that the dedup run fuses a copy with its item, from the similarity of their
    shingles."""
    index = Index.of({"set": [sample(str(i), k) for i, k in enumerate(known)]})
    shingles = [set(similarity.shingles(document(sample("", k))).tolist()) for k in known]
    started, queries = time.monotonic(), 0

    def like(a: set[int], b: set[int]) -> float:
        return len(a & b) / max(1, len(a | b))

    for name, change in changes.items():
        rng = random.Random(f"{seed} {name}")
        matched = wrong = 0
        chances = []
        for i, content in enumerate(known):
            copy = change(content, rng)
            items = {f.item for f in index.find(document(sample("copy", around(copy, rng))))}
            matched += str(i) in items
            wrong += bool(items - {str(i)})
            own = set(similarity.shingles(document(sample("", copy))).tolist())
            chances.append(similarity.chance(like(own, shingles[i])))
        queries += len(known)
        yield dict(
            modality=modality,
            copies=name,
            n=len(known),
            recall=round(matched / len(known), 3),
            other_items=round(wrong / len(known), 3),
            duplicates=round(float(np.mean(chances)), 3),
        )
    for name, innocent in neighbours.items():
        flagged = 0
        fused = 0.0
        for content in innocent:
            flagged += bool(index.find(document(sample("other", content))))
            own = set(similarity.shingles(document(sample("", content))).tolist())
            fused += max(similarity.chance(like(own, s)) for s in shingles)
        queries += len(innocent)
        yield dict(
            modality=modality,
            neighbours=name,
            n=len(innocent),
            flagged=round(flagged / len(innocent), 4),
            duplicates=round(fused / len(innocent), 4),
        )
    seconds = (time.monotonic() - started) / queries
    yield {"modality": modality, "known": len(known), "milliseconds_each": round(1000 * seconds, 1)}


def texts(items: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"{seed} texts")
    sentences = manual()
    rng.shuffle(sentences)
    known = sentences[:items] + [problem(PROBLEMS[i % 2], rng) for i in range(max(2, items // 10))]
    rest = sentences[items:]

    def around(text: str, rng: random.Random) -> str:
        return " ".join([*rng.sample(rest[:200], 3), text, *rng.sample(rest[:200], 3)])

    others = [problem(PROBLEMS[2 + i % 2], rng) for i in range(items)]
    same = [problem(PROBLEMS[i % 2], rng) for i in range(items)]
    neighbours = {
        "other sentences of the manual": rest,
        "twenty of them at a time": [" ".join(rest[i : i + 20]) for i in range(0, len(rest), 20)],
        "word problems of other templates": others,
        "word problems of the same template, other numbers": same,
    }
    yield from measure("text", known, TEXT_CHANGES, neighbours, TEXTS, seed, around)


def pictures(items: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"{seed} pictures")
    tiles = photographs(rng, 1000)
    half = len(tiles) // 2
    scenes = [drawn(rng, i) for i in range(4 * items)]
    neighbours = {"other photographs": tiles[half:]}
    for scene_type, name in enumerate(("shapes", "charts", "words", "digits")):
        neighbours[f"other scenes: {name}"] = scenes[items:][scene_type::4]
    yield from measure(
        "image", tiles[:half] + scenes[:items], PICTURE_CHANGES, neighbours, IMAGES, seed
    )


def clips(items: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"{seed} clips")
    sentences = [" ".join(s.split()[:12]) for s in manual()]
    rng.shuffle(sentences)
    who: list[Any] = list(voices()) or [None]
    known = [read_aloud(s, who[i % len(who)]) for i, s in enumerate(sentences[:items])]
    other = [read_aloud(s, who[i % len(who)]) for i, s in enumerate(sentences[items : 4 * items])]
    mixed = [
        read_aloud(f"{' '.join(s.split()[:4])} {' '.join(t.split()[4:])}", who[i % len(who)])
        for i, (s, t) in enumerate(
            zip(sentences[:items], sentences[4 * items : 5 * items], strict=True)
        )
    ]
    again = [read_aloud(s, who[(i + 1) % len(who)]) for i, s in enumerate(sentences[:items])]
    neighbours = {
        "same voices, other sentences": other,
        "same voices, a third of the words the same": mixed,
        "the same sentences by other voices": again if len(who) > 1 else [],
    }
    neighbours = {name: n for name, n in neighbours.items() if n}
    yield from measure("audio", known, CLIP_CHANGES, neighbours, AUDIO, seed)


MAKERS = {"text": texts, "image": pictures, "audio": clips}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=["text", "image", "audio"])
    parser.add_argument("--out", type=Path, help="also write the rows to this JSONL file")
    args = parser.parse_args()
    rows = []
    for name in args.only:
        for row in MAKERS[name](args.items, args.seed):
            print(json.dumps(row, ensure_ascii=False), flush=True)
            rows.append(row)
    if args.out:
        args.out.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


if __name__ == "__main__":
    main()

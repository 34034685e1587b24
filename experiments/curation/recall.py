"""Recall and false positives of all curation filters on planted cases, as one table.

    python -m experiments.curation.recall [--only text media pii language duplicates transcripts broken unfit]

Columns: the number of planted cases and the share found (recall), the number of innocents, which shouldn't be flagged,
and the share flagged, and the share of planted cases among all that was flagged (precision; "-" where copies and
innocents have separate rows). `leaked_items.py` and `polyphi_recipe/synthetic/planted.py` generate the material.
"""

import argparse
import io
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from experiments.curation import leaked_items
from experiments.curation import text as curation
from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi_eval.services.speech_synthesis import TTSPool, Voice, unavailable
from polyphi_recipe.dedup.dedup import AUDIO, IMAGES, TEXTS, Similarity, deduplicate
from polyphi_recipe.filters.language import LanguageFilter
from polyphi_recipe.filters.readable import ReadableMediaFilter
from polyphi_recipe.filters.transcripts import WordErrorRateFilter, pocketsphinx
from polyphi_recipe.pipeline.documents import document
from polyphi_recipe.synthetic import planted
from polyphi_recipe.synthetic.images import png
from polyphi_recipe.synthetic.speech import speakable
from polyphi_recipe.synthetic.waves import encode, resample
from polyphi_recipe.text.lexicon import LANGUAGES


def row(name: str, planted: int, matched: int, innocents: int = 0, flagged: int = 0) -> str:
    """A line of the table."""
    recall = f"{matched / planted:.2f}" if planted else "-"
    alarms = f"{flagged / innocents:.3f}" if innocents else "-"
    precision = f"{matched / (matched + flagged):.2f}" if innocents and matched else "-"
    cells = [name, planted or "-", recall, innocents or "-", alarms, precision]
    return f"| {' | '.join(map(str, cells))} |"


def leaked(modality: str) -> Iterator[str]:
    """Changed copies of evaluation items, and innocents that resemble them."""
    for result in leaked_items.MAKERS[modality](60, 1):
        n, of = result.get("n", 0), {"text": "text", "image": "picture", "audio": "clip"}[modality]
        if "copies" in result:
            yield row(f"leaked {of}: {result['copies']}", n, round(n * result["recall"]))
        elif "neighbours" in result:
            flagged = round(n * result["flagged"])
            yield row(f"no leak, {of}: {result['neighbours']}", 0, 0, n, flagged)


def text() -> Iterator[str]:
    return leaked("text")


def media() -> Iterator[str]:
    yield from leaked("image")
    yield from leaked("audio")


def pii() -> Iterator[str]:
    """Personal information in all languages; written, and as in transcripts. Each false positive counts for the entity
    type of the finding."""

    def only(spelled: bool) -> Callable[[str], Iterable[tuple[str, list[planted.Planted]]]]:
        def sentences(code: str) -> Iterator[tuple[str, list[planted.Planted]]]:
            for sentence, what in planted.cases(code, 100, seed=3):
                values = "".join(sentence[start:end] for _, start, end in what)
                named = any(entity_type == "NAME" for entity_type, _, _ in what)
                written = named or any(c in "@0123456789" for c in values)
                if not what or written != spelled:
                    yield sentence, what

        return sentences

    sources = (("written", only(False)), ("in transcripts", only(True)), ("fresh", planted.fresh))
    for name, sentences in sources:
        counts = planted.measure(curation.spans, sentences)
        for entity_type in curation.ENTITY_TYPES:
            n = sum((counts[key] for key in counts if key[1] == entity_type), Counter[str]())
            if n["planted"]:
                precision = n["right"] / max(1, n["right"] + n["wrong"])
                cells = f"{n['found'] / n['planted']:.2f} | - | - | {precision:.2f}"
                yield f"| {entity_type}, {name} | {n['planted']} | {cells} |"


def language() -> Iterator[str]:
    """Help pages labelled with a wrong language, and with their own."""
    codes = list(LANGUAGES)
    for name, most in (("900 characters", 900), ("80 characters", 80)):
        wrong: list[bool] = []
        right: list[bool] = []
        for i, code in enumerate(codes):
            for paragraph in curation.prose(code, 100):
                for label, results in ((code, right), (codes[i - 1], wrong)):
                    sample = shards.document("", paragraph[:most], "", "", language=label)
                    results.append(LanguageFilter().filter(document(sample)) is True)
        yield row(
            f"text in another language, {name}",
            *(len(wrong), wrong.count(False), len(right), right.count(False)),
        )


class Read(PipelineStep):
    """A pipeline step that yields the documents of a list."""

    def __init__(self, documents: list[Document]) -> None:
        super().__init__()
        self.documents = documents

    def __deepcopy__(self, memo: Any) -> "Read":
        return self

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from self.documents


class CollectIds:
    """A pipeline step that collects the ids of its documents."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def __deepcopy__(self, memo: Any) -> "CollectIds":
        return self

    def __call__(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        self.ids += [one.id for one in data]


def every(step: int) -> leaked_items.Change:
    """Replace every `step`-th word with a random word."""

    def change(text: str, rng: random.Random) -> str:
        words = text.split()
        words[::step] = rng.sample(leaked_items.VOCABULARY, len(words[::step]))
        return " ".join(words)

    return change


def duplicates() -> Iterator[str]:
    """Copies among their originals and other samples, by the whole MinHash run: it must drop one of each pair, and none
    of the others."""
    rng = random.Random(5)
    sentences = leaked_items.manual()
    rng.shuffle(sentences)
    texts = [" ".join(sentences[i : i + 8]) for i in range(0, 8 * 120, 8)]
    tiles = leaked_items.photographs(rng, 1000)
    drawn = [leaked_items.drawn(rng, i) for i in range(40)]
    voices: list[Voice | None] = list(leaked_items.voices()) or [None]
    clips = [
        leaked_items.read_aloud(s[:80], voices[i % len(voices)])
        for i, s in enumerate(sentences[:60])
    ]
    cases: list[tuple[str, list[Any], leaked_items.Change, Similarity]] = [
        ("text, every 60th word another", texts, every(60), TEXTS),
        ("text, every 30th word another", texts, every(30), TEXTS),
        ("picture, JPEG 30", tiles + drawn, leaked_items.PICTURE_CHANGES["JPEG 30"], IMAGES),
        (
            "picture, half the size",
            tiles + drawn,
            leaked_items.PICTURE_CHANGES["half the size"],
            IMAGES,
        ),
        ("clip, Ogg Vorbis", clips, leaked_items.CLIP_CHANGES["Ogg Vorbis"], AUDIO),
        ("clip, noise at 20 dB", clips, leaked_items.CLIP_CHANGES["noise at 20 dB"], AUDIO),
    ]
    for name, known, change, similarity in cases:
        half = len(known) // 2
        samples = [leaked_items.sample(f"own-{i}", k) for i, k in enumerate(known)]
        samples += [
            leaked_items.sample(f"copy-{i}", change(k, rng)) for i, k in enumerate(known[:half])
        ]
        collected = CollectIds()
        with tempfile.TemporaryDirectory() as folder:
            deduplicate(
                similarity, [Read([document(s) for s in samples])], [collected], Path(folder)
            )
        remaining = Counter(id.partition("-")[2] for id in collected.ids)
        matched = sum(remaining[str(i)] == 1 for i in range(half))
        lost = sum(remaining[str(i)] == 0 for i in range(half, len(known)))
        yield row(f"duplicate {name}", half, matched, len(known) - half, lost)


def transcripts() -> Iterator[str]:
    """Clips by flite, transcribed by pocketsphinx: of every four transcripts one is another clip's, one has half of its
    longer words replaced, and two are right."""
    if missing := unavailable("flite"):
        yield f"| mislabelled transcripts: {missing} | - | - | - | - | - |"
        return
    sentences = [
        " ".join(s.split()[:10]) for s in leaked_items.manual() if s.replace(" ", "")[:60].isalpha()
    ]
    random.Random(6).shuffle(sentences)
    tts_pool, judge, rng = TTSPool(), WordErrorRateFilter(pocketsphinx(), 0.4), random.Random(7)
    dropped: dict[str, list[bool]] = {
        "another clip's": [],
        "half of the longer words replaced": [],
        "right": [],
    }
    for i, sentence in enumerate(sentences[:40]):
        kind = ("another clip's", "half of the longer words replaced", "right", "right")[i % 4]
        written = {
            "another clip's": sentences[i - 1],
            "half of the longer words replaced": leaked_items.reworded(0.5)(sentence, rng),
            "right": sentence,
        }[kind]
        voice = Voice("flite", "en", ("slt", "rms", "awb")[i % 3])
        wave = resample(*tts_pool.speak(sentence, voice))
        messages = (Message.user(Audio(encode(wave))), Message.assistant(written))
        known = {"language": "en", "engine": "flite"}
        result = judge.filter(document(Sample(str(i), messages, "", "", known)))
        dropped[kind].append(result is not True)
    right = dropped.pop("right")
    for kind, results in dropped.items():
        counts = (len(results), sum(results), len(right), sum(right))
        yield row(f"transcript: {kind} (WER filter at 0.4)", *counts)


def broken() -> Iterator[str]:
    """Pictures and clips cut short, emptied, overwritten, or of an unknown format; and whole ones."""
    rng = random.Random(8)
    pictures = [leaked_items.drawn(rng, i) for i in range(40)]
    tone = leaked_items.read_aloud("one two three", None)

    def jpeg(picture: Any) -> bytes:
        out = io.BytesIO()
        picture.convert("RGB").save(out, "JPEG")
        return out.getvalue()

    whole: dict[str, list[bytes]] = {
        "picture": [f(p) for p in pictures for f in (png, jpeg)],
        "clip": [
            f(tone[: len(tone) - 900 * i]) for i in range(40) for f in (encode, leaked_items.wav)
        ],
    }
    changes: dict[str, Callable[[bytes], bytes]] = {
        "cut to a half": lambda data: data[: len(data) // 2],
        "emptied": lambda data: b"",
        "beginning overwritten": lambda data: bytes(64) + data[64:],
        "middle overwritten": lambda data: (
            data[:200] + rng.randbytes(len(data) - 400) + data[-200:]
        ),
        "a web page instead": lambda data: b"<html><body>404 Not Found</body></html>",
    }

    def drops(kind: str, data: bytes) -> bool:
        part = Image(data) if kind == "picture" else Audio(data)
        sample = Sample("", (Message.user(part), Message.assistant("")), "", "")
        return ReadableMediaFilter().filter(document(sample)) is not True

    for kind, files in whole.items():
        flagged = sum(drops(kind, data) for data in files)
        for name, change in changes.items():
            matched = sum(drops(kind, change(data)) for data in files)
            yield row(f"broken {kind}: {name}", len(files), matched, len(files), flagged)


UNFIT = {
    "tables": [
        "| a | b |\n| 1 | 2 |",
        "name, age\nAnn, 3",
        "1\t2\n3\t4",
        "<table><tr><td>7</td></tr></table>",
    ],
    "code": [
        "What does x = [i for i in y] do?",
        "Explain `print(a_b)`.",
        "Fix: def f():\n  return 1",
        "Is a && b?",
    ],
    "addresses": [
        "Open https://example.org now",
        "See www.example.org/help",
        "Write to ann@example.org",
        "http://a.b",
    ],
    "formulas": [
        "Solve x^2 = 4 * y",
        "What is {a} \\cdot b?",
        "Simplify 3/4 of 1/2",
        "Is 123456789 prime?",
    ],
}


def unfit() -> Iterator[str]:
    """Queries that can't be read aloud, and questions like those of the nano run."""
    fit = [
        s for s in leaked_items.manual() if len(s) < 100 and not set("`_*[]{}<>/=#@&|\\") & set(s)
    ]
    fit += [f"How many {w} are there?" for w in leaked_items.lexicon_words()[:60]]
    flagged = sum(not speakable(s) for s in fit)
    for name, queries in UNFIT.items():
        matched = sum(not speakable(q) for q in queries)
        yield row(f"unfit to speak: {name}", len(queries), matched, len(fit), flagged)


PARTS = (text, media, pii, language, duplicates, transcripts, broken, unfit)


def main() -> None:
    parts = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="*", choices=list(parts), default=list(parts))
    args = parser.parse_args()
    print("| planted | n | recall | innocents | flagged | precision |\n|---|---|---|---|---|---|")
    for name in args.only:
        for line in parts[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()

"""Duplicates go, one of each stays, and neighbours are left alone."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from curate.dedup_run import Take, start
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from PIL import Image as Picture

from polyphi.curate.dedup import CLIPS, EXACT, PICTURES, TEXTS, Likeness, deduplicate
from polyphi.curate.documents import document
from polyphi.data.shards import Sample
from polyphi.messages import Audio, Image, Message
from polyphi.synthetic.images import png


class Read(PipelineStep):
    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__()
        self.samples = samples

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from map(document, self.samples[rank::world_size])


def run(
    likeness: Likeness, samples: Sequence[Sample], work: Path, tasks: int = 2
) -> tuple[list[Document], list[Document]]:
    """(kept, dropped)."""
    kept: list[Document] = []
    gone: list[Document] = []
    deduplicate(
        likeness, [Read(samples)], [Take(kept)], work, excluded=Take(gone), tasks=tasks, workers=1
    )
    assert len(kept) + len(gone) == len(samples)
    return kept, gone


def clusters(documents: Sequence[Document]) -> dict[str, int]:
    return {
        d.id: note["cluster"]
        for d in documents
        for note in d.metadata["lineage"]
        if note["step"] == "deduplicated"
    }


def said(id: str, *parts: Any) -> Sample:
    return Sample(id, (Message.user(*parts),), "test", "MIT")


def photographs() -> list[Picture.Image]:
    from sklearn.datasets import load_sample_images

    return [
        Picture.fromarray(photo).crop((x, y, x + 200, y + 200))
        for photo in load_sample_images().images
        for x in (0, 220, 440)
        for y in (0, 220)
    ]


def jpeg(picture: Picture.Image, quality: int = 60) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def babble(seed: int, noise: float = 0.0, gain: float = 1.0) -> bytes:
    """Five seconds like speech: syllables of a gliding voice with many harmonics, under two formants."""
    rng = np.random.default_rng(seed)
    wave = []
    while sum(map(len, wave)) < 80_000:
        t = np.arange(int(rng.uniform(0.12, 0.3) * 16000)) / 16000
        pitch, glide = rng.uniform(95, 230), rng.uniform(-150, 150)
        formants = rng.uniform([300, 1000], [900, 2800])
        syllable = np.zeros(len(t))
        for k in range(1, 25):
            near = np.exp(-(((k * pitch - formants) / 250) ** 2)).sum()
            syllable += (0.02 + near) * np.sin(2 * np.pi * k * (pitch * t + glide * t**2 / 2))
        wave.append(syllable * np.hanning(len(t)))
    clip = 0.1 * np.concatenate(wave)
    clip = gain * (clip + noise * np.random.default_rng(1).standard_normal(len(clip)))
    out = io.BytesIO()
    soundfile.write(out, clip, 16000, format="WAV")
    return out.getvalue()


def words(seed: int, count: int = 100) -> list[str]:
    return [f"word{n}" for n in np.random.default_rng(seed).integers(0, 500, count)]


def test_exact_duplicates(tmp_path: Path) -> None:
    picture, other = (png(p) for p in photographs()[:2])
    samples = [
        said("a", "x = a + b"),
        said("b", "x  =  a\n+ b "),
        said("code", "x = a - b"),
        said("number", "x = a + 8"),
        said("seen", Image(picture), "What is this?"),
        said("seen again", Image(picture), "What is  this?"),
        said("asked otherwise", Image(picture), "Where is this?"),
        said("other", Image(other), "What is this?"),
        said("nothing", ""),
    ]
    kept, gone = run(EXACT, samples, tmp_path)
    assert len(gone) == 2
    where = clusters([*kept, *gone])
    assert where["a"] == where["b"] != where["seen"] == where["seen again"]
    assert len(where) == 4


def test_near_duplicates_of_texts(tmp_path: Path) -> None:
    first = words(0)
    changed = [*first[:50], "another", *first[51:]]
    zh = "今天下午我们在图书馆里读了一本关于古代航海的书，然后一起去河边散步，看见许多白色的鸟。"
    samples = [
        said("first", " ".join(first)),
        said("changed", " ".join(changed).upper() + "!"),
        said("other", " ".join(words(1))),
        said("half", " ".join(first[:50] + words(2, 50))),
        said("zh", zh),
        said("zh changed", zh.replace("，", " ").replace("鸟", "鸽子")),
        said(
            "zh other",
            "昨天晚上他们在电影院里看了一部新的喜剧片，后来坐地铁回家，路上遇到了老同学。",
        ),
        said("sum", "What is 12 + 30?"),
        said("other sum", "What is 12 + 31?"),
        said("sum again", "what is 12 + 30"),
    ]
    kept, gone = run(TEXTS, samples, tmp_path)
    where = clusters([*kept, *gone])
    assert where["first"] == where["changed"] and where["sum"] == where["sum again"]
    assert where["zh"] == where["zh changed"]
    assert len(gone) == 3 and len(where) == 6


def test_near_duplicates_of_pictures(tmp_path: Path) -> None:
    tiles = photographs()
    samples = [said(str(i), Image(png(p)), "What is this?") for i, p in enumerate(tiles)]
    samples += [
        said(f"copy {i}", Image(jpeg(p.resize((150, 150)))), "What is this?")
        for i, p in enumerate(tiles)
    ]
    samples += [said("asked otherwise", Image(jpeg(tiles[0])), "Where is this?")]
    samples += [
        said(f"empty {i}", Image(png(Picture.new("RGB", (50 + i, 50)))), "What is this?")
        for i in range(2)
    ]
    kept, gone = run(PICTURES, samples, tmp_path)
    where = clusters([*kept, *gone])
    found = [where.get(str(i), -1) == where.get(f"copy {i}", -2) for i in range(len(tiles))]
    assert sum(found) >= len(tiles) - 1 and len(gone) == sum(found)


def test_near_duplicates_of_clips(tmp_path: Path) -> None:
    samples = [said(f"{i}", Audio(babble(i))) for i in range(6)]
    samples += [said(f"noisy {i}", Audio(babble(i, noise=0.005, gain=0.2))) for i in range(6)]
    kept, gone = run(CLIPS, samples, tmp_path)
    where = clusters([*kept, *gone])
    assert len(gone) == 6 and all(where[f"{i}"] == where[f"noisy {i}"] for i in range(6))


def test_settings_say_what_is_found() -> None:
    assert TEXTS.half == pytest.approx(0.685, abs=1e-3)
    assert TEXTS.chance(TEXTS.half) == pytest.approx(0.5)
    assert TEXTS.chance(0.8) == pytest.approx(0.924, abs=1e-3)  # as datatrove's own note has it


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    run(EXACT, [said("a", "a")], tmp_path)
    with pytest.raises(ValueError, match=r"begun with.*texts.*folder of its own"):
        run(TEXTS, [said("a", "a")], tmp_path)


def kept(work: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted((work / "kept").glob("*.txt"))}


def test_killed_and_run_again_gives_the_same(tmp_path: Path) -> None:
    assert start(tmp_path / "whole", 300)[0] == 0
    wanted = kept(tmp_path / "whole")
    assert sum(text.count("\n") for text in wanted.values()) == 270
    for die_after in (150, 450):  # in the second task's signatures, and in that of the last pass
        work = tmp_path / str(die_after)
        assert start(work, 300, "--die-after", die_after)[0] == -9
        assert kept(work) != wanted
        assert start(work, 300)[0] == 0
        assert kept(work) == wanted


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Ten times as many documents (7 MB of text and 11 MB of shingles more): neither stays."""
    few, many = (start(tmp_path / str(n), n)[1] for n in (400, 4000))
    assert many - few < 4 << 20

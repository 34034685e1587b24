"""Deduplication keeps one document of each cluster and leaves similar but different documents alone."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from PIL import Image as Picture

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi_recipe.dedup.dedup import AUDIO, EXACT, IMAGES, TEXTS, Similarity, deduplicate
from polyphi_recipe.pipeline.documents import document
from polyphi_recipe.synthetic.images import png
from tests.recipe.dedup.dedup_run import Take, start


class Read(PipelineStep):
    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__()
        self.samples = samples

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from map(document, self.samples[rank::world_size])


def run(
    similarity: Similarity, samples: Sequence[Sample], work: Path, tasks: int = 2
) -> tuple[list[Document], list[Document]]:
    """Return (kept documents, dropped documents)."""
    kept_files: list[Document] = []
    dropped: list[Document] = []
    deduplicate(
        similarity,
        [Read(samples)],
        [Take(kept_files)],
        work,
        excluded=Take(dropped),
        tasks=tasks,
        workers=1,
    )
    assert len(kept_files) + len(dropped) == len(samples)
    return kept_files, dropped


def clusters(documents: Sequence[Document]) -> dict[str, int]:
    return {
        d.id: note["cluster"]
        for d in documents
        for note in d.metadata["lineage"]
        if note["step"] == "deduplicated"
    }


def sample_of(id: str, *parts: Any) -> Sample:
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
    """Return five seconds of speech-like sound: gliding syllables with many harmonics and two formants."""
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
        sample_of("a", "x = a + b"),
        sample_of("b", "x  =  a\n+ b "),
        sample_of("code", "x = a - b"),
        sample_of("number", "x = a + 8"),
        sample_of("seen", Image(picture), "What is this?"),
        sample_of("seen again", Image(picture), "What is  this?"),
        sample_of("asked otherwise", Image(picture), "Where is this?"),
        sample_of("other", Image(other), "What is this?"),
        sample_of("nothing", ""),
    ]
    kept_files, dropped = run(EXACT, samples, tmp_path)
    assert len(dropped) == 2
    cluster_of = clusters([*kept_files, *dropped])
    assert cluster_of["a"] == cluster_of["b"] != cluster_of["seen"] == cluster_of["seen again"]
    assert len(cluster_of) == 4


def test_near_duplicates_of_texts(tmp_path: Path) -> None:
    first = words(0)
    changed = [*first[:50], "another", *first[51:]]
    zh = "今天下午我们在图书馆里读了一本关于古代航海的书，然后一起去河边散步，看见许多白色的鸟。"
    samples = [
        sample_of("first", " ".join(first)),
        sample_of("changed", " ".join(changed).upper() + "!"),
        sample_of("other", " ".join(words(1))),
        sample_of("half", " ".join(first[:50] + words(2, 50))),
        sample_of("zh", zh),
        sample_of("zh changed", zh.replace("，", " ").replace("鸟", "鸽子")),
        sample_of(
            "zh other",
            "昨天晚上他们在电影院里看了一部新的喜剧片，后来坐地铁回家，路上遇到了老同学。",
        ),
        sample_of("sum", "What is 12 + 30?"),
        sample_of("other sum", "What is 12 + 31?"),
        sample_of("sum again", "what is 12 + 30"),
    ]
    kept_files, dropped = run(TEXTS, samples, tmp_path)
    cluster_of = clusters([*kept_files, *dropped])
    assert (
        cluster_of["first"] == cluster_of["changed"]
        and cluster_of["sum"] == cluster_of["sum again"]
    )
    assert cluster_of["zh"] == cluster_of["zh changed"]
    assert len(dropped) == 3 and len(cluster_of) == 6


def test_near_duplicates_of_pictures(tmp_path: Path) -> None:
    tiles = photographs()
    samples = [sample_of(str(i), Image(png(p)), "What is this?") for i, p in enumerate(tiles)]
    samples += [
        sample_of(f"copy {i}", Image(jpeg(p.resize((150, 150)))), "What is this?")
        for i, p in enumerate(tiles)
    ]
    samples += [sample_of("asked otherwise", Image(jpeg(tiles[0])), "Where is this?")]
    samples += [
        sample_of(f"empty {i}", Image(png(Picture.new("RGB", (50 + i, 50)))), "What is this?")
        for i in range(2)
    ]
    kept_files, dropped = run(IMAGES, samples, tmp_path)
    cluster_of = clusters([*kept_files, *dropped])
    matched = [
        cluster_of.get(str(i), -1) == cluster_of.get(f"copy {i}", -2) for i in range(len(tiles))
    ]
    assert sum(matched) >= len(tiles) - 1 and len(dropped) == sum(matched)


@pytest.mark.long
def test_near_duplicates_of_clips(tmp_path: Path) -> None:
    samples = [sample_of(f"{i}", Audio(babble(i))) for i in range(6)]
    samples += [sample_of(f"noisy {i}", Audio(babble(i, noise=0.005, gain=0.2))) for i in range(6)]
    kept_files, dropped = run(AUDIO, samples, tmp_path)
    cluster_of = clusters([*kept_files, *dropped])
    assert len(dropped) == 6 and all(
        cluster_of[f"{i}"] == cluster_of[f"noisy {i}"] for i in range(6)
    )


def test_settings_say_what_is_found() -> None:
    assert TEXTS.half == pytest.approx(0.685, abs=1e-3)
    assert TEXTS.chance(TEXTS.half) == pytest.approx(0.5)
    assert TEXTS.chance(0.8) == pytest.approx(0.924, abs=1e-3)  # as in datatrove's comment


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    run(EXACT, [sample_of("a", "a")], tmp_path)
    with pytest.raises(ValueError, match=r"begun with.*exact.*texts"):
        run(TEXTS, [sample_of("a", "a")], tmp_path)


def kept_files(work: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted((work / "kept").glob("*.txt"))}


def test_killed_and_run_again_gives_the_same(tmp_path: Path) -> None:
    assert start(tmp_path / "whole", 300)[0] == 0
    expected = kept_files(tmp_path / "whole")
    assert sum(text.count("\n") for text in expected.values()) == 270
    for die_after in (150, 450):  # in the second task's signatures, and in that of the last pass
        work = tmp_path / str(die_after)
        assert start(work, 300, "--die-after", die_after)[0] == -9
        assert kept_files(work) != expected
        assert start(work, 300)[0] == 0
        assert kept_files(work) == expected


@pytest.mark.long
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Memory is the same for ten times as many documents (7 MB of text and 11 MB of shingles more)."""
    few, many = (start(tmp_path / str(n), n)[1] for n in (400, 4000))
    assert many - few < 4 << 20

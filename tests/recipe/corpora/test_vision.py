"""Vision corpora: format, balance, determinism and disjoint splits, with and without stamps."""

import io
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from polyphi.data.shards import Sample, Shards, to_row
from polyphi.types.messages import media
from polyphi.types.parts import Image as Picture
from polyphi_eval.heldout import find
from polyphi_eval.scorers import refuses
from polyphi_recipe.corpora import (
    captions,
    charts,
    grounding,
    image_qa,
    interleaved,
    multi_image,
    ocr,
)
from polyphi_recipe.dedup.decontaminate import Index
from polyphi_recipe.pipeline.corpus import Corpus, Work, build, generator
from polyphi_recipe.raw import packages, real_text, safety
from polyphi_recipe.synthetic import described_scenes, images, scenes, stamps
from polyphi_recipe.text.lexicon import COLOURS, LANGUAGES, SHAPES
from tests.fixtures.variants import few

ROWS = {
    **{"image_qa": (1000, 264), "multi_image": (300, 24)},
    **{"captions": (200, 24), "grounding": (200, 24), "charts": (200, 24)},
}
"""Training and test rows of the corpora that several tests look at."""
CORPORA = [m.corpus for m in (captions, interleaved, grounding, ocr, charts, image_qa, multi_image)]


@pytest.fixture
def no_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "unpack", lambda name, cache, report=print: None)


@pytest.fixture(autouse=True)
def no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Help pages are empty; tests that need some patch their own."""
    monkeypatch.setattr(ocr, "help_pages", lambda language, work: {})


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> stamps.Album:
    """Two stamps of every category, one of each split."""
    folder, album = tmp_path_factory.mktemp("stamps"), []
    for k, category in enumerate(stamps.CATEGORIES):
        names = (f"{category}/{i}" for i in range(1000))
        chosen: dict[bool, str] = {}
        for name in names:
            chosen.setdefault(stamps.held_out(name), name)
            if len(chosen) == 2:
                break
        for name in chosen.values():
            path = folder / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGBA", (40, 30), (10 * k, 90, 200 - 10 * k, 255)).save(path)
            album.append(
                stamps.Stamp(
                    name,
                    path,
                    {language: f"{category} {language}" for language in LANGUAGES},
                    category,
                )
            )
    return stamps.Album(album)


@pytest.fixture
def few_stamps(monkeypatch: pytest.MonkeyPatch, album: stamps.Album) -> None:
    """A package with these stamps."""
    monkeypatch.setattr(stamps, "load", lambda work: album)


Splits = Callable[..., dict[str, list[Sample]]]


@pytest.fixture(scope="module")
def with_stamps(album: stamps.Album, tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """The splits of a corpus with these numbers of rows and few stamps, each made once."""

    @cache
    def splits(corpus: Corpus, train: int = 150, test: int = 132) -> dict[str, list[Sample]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stamps, "load", lambda work: album)
            patch.setattr(ocr, "help_pages", lambda language, work: {})
            return build_splits(corpus, tmp_path_factory.mktemp(corpus.name), train, test)

    return splits


@pytest.fixture(scope="module")
def without_stamps(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """The same without the package of stamps."""

    @cache
    def splits(corpus: Corpus, train: int = 300, test: int = 24) -> dict[str, list[Sample]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packages, "unpack", lambda name, cache, report=print: None)
            patch.setattr(ocr, "help_pages", lambda language, work: {})
            return build_splits(corpus, tmp_path_factory.mktemp(corpus.name), train, test)

    return splits


def build_splits(
    corpus: Corpus, folder: Path, train: int = 150, test: int = 132, seed: int = 0
) -> dict[str, list[Sample]]:
    work = Work(
        rows={"train": train, "test": test},
        seed=seed,
        cache=folder,
        data=folder,
        report=lambda line: None,
    )
    split: dict[str, list[Sample]] = {"train": [], "test": []}
    for name, sample in corpus.build(work):
        split[name].append(sample)
    return split


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda c: c.name)
def test_samples_are_well_formed(corpus: Corpus, with_stamps: Splits) -> None:
    split = with_stamps(corpus)
    assert [len(s) for s in split.values()] == [150, 132]
    assert len({s.id for samples in split.values() for s in samples}) == 282
    for sample in split["train"] + split["test"]:
        pictures = media(sample.messages, Picture)
        assert 1 <= len(pictures) <= (4 if sample.meta["task"].startswith("video") else 3)
        for picture in pictures:
            with Image.open(io.BytesIO(picture.source)) as opened:
                assert opened.mode == "RGB" and opened.size in {(112, 112), (224, 112), (224, 224)}
        assert sample.licence == {
            "polyphi": "MIT", "scikit-learn-digits": "BSD-3-Clause", "tuxpaint-stamps-default": "GPL-2.0-or-later"
        }[sample.source]  # fmt: skip
        assert sample.source in packages.SOURCES
        assert sample.meta["language"] in LANGUAGES
        if corpus.name == "interleaved":
            assert [m.role for m in sample.messages] == ["document"] and len(pictures) >= 2
        else:
            turns = len(sample.messages) // 2
            assert turns == 1 or sample in split["train"]
            assert [m.role for m in sample.messages] == ["user", "assistant"] * turns
            assert sample.answer.strip() == sample.answer != "" and len(sample.prompt[0].text) < 60


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda c: c.name)
def test_the_same_seed_gives_the_same_corpus(
    corpus: Corpus, no_stamps: None, tmp_path: Path
) -> None:
    first, again = build_splits(corpus, tmp_path, 30, 12), build_splits(corpus, tmp_path, 30, 12)
    assert first == again
    assert first["train"] != build_splits(corpus, tmp_path, 30, 12, seed=1)["train"]
    assert build_splits(corpus, tmp_path, 20, 6)["train"] == first["train"][:20], (
        "a sample doesn't depend on how many there are"
    )


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda c: c.name)
def test_without_the_package_scans_and_renderings_remain(
    corpus: Corpus, without_stamps: Splits
) -> None:
    split = without_stamps(corpus, *ROWS.get(corpus.name, (60, 24)))
    assert {s.source for samples in split.values() for s in samples} <= {
        "polyphi",
        "scikit-learn-digits",
    }


@pytest.mark.parametrize(
    ("corpus", "task"),
    few(
        [
            *[
                (image_qa.corpus, task)
                for task in ("digit", "count", "colour", "shape", "stamp", "where")
            ],
            *[(multi_image.corpus, task) for task in ("which_picture", "same", "motion", "frames")],
            (multi_image.corpus, "video_event"),
            (grounding.corpus, "locate"),
            (charts.corpus, "chart_pie"),
        ],
        lambda case: case[0] in (image_qa.corpus, charts.corpus),
    ),
    ids=lambda value: getattr(value, "name", value),
)
def test_answers_of_the_test_split_are_balanced(
    corpus: Corpus, task: str, with_stamps: Splits
) -> None:
    samples = [s for s in with_stamps(corpus, 0, 1056)["test"] if s.meta["task"] == task]
    answers = Counter(s.answer for s in samples if s.meta["language"] == "en")
    share = max(answers.values()) / sum(answers.values())
    assert share < 1.6 / len(answers), answers


def test_the_test_split_shows_unseen_things(with_stamps: Splits) -> None:
    split = {
        "train": with_stamps(image_qa.corpus)["train"],
        "test": with_stamps(image_qa.corpus, 0, 1056)["test"],
    }
    for key in ("font", "stamp"):
        train, test = (
            {s.meta[key] for s in samples if key in s.meta} for samples in split.values()
        )
        assert train and test and not train & test, key
    numbers = {s.answer for s in split["test"] if s.meta["task"] == "number"}
    assert numbers and all(int(n) in images.numbers("test") for n in numbers)


@pytest.mark.parametrize("module", [image_qa, captions, grounding, charts, multi_image])
def test_pictures_say_what_they_show(module: Any, without_stamps: Splits) -> None:
    """The annotations of an image contain the answers to its questions."""
    for sample in without_stamps(module.corpus, *ROWS[module.corpus.name])["train"]:
        pictures = media(sample.messages, Picture)
        annotations = sample.meta["named"]
        assert len(annotations) == len(pictures)
        words = {word for picture in annotations for words, *_ in picture for word in words.split()}
        answer = sample.messages[1].text
        if sample.meta["task"] in ("colour", "shape") and sample.meta["language"] == "en":
            assert answer in words
        if sample.meta["task"] in ("digit", "digits", "number", "word"):
            assert set(answer) <= words, (answer, words)
        boxes = [box for picture in annotations for _, *box in picture]
        assert all(-0.1 < x < 1.1 for box in boxes for x in box), boxes


def test_every_turn_about_several_pictures_fits_what_they_show(without_stamps: Splits) -> None:
    kinds = Counter[str]()
    for sample in without_stamps(multi_image.corpus, *ROWS["multi_image"])["train"]:
        things = [picture[0][0].split() for picture in sample.meta["named"]]
        for question, answer in zip(sample.messages[::2], sample.messages[1::2], strict=True):
            words = question.text
            kinds[words.split(" show")[0]] += 1
            if match := re.search(r"Which picture shows (?:an?|something) (\w+)", words):
                shows = [match[1] in thing for thing in things]
                assert shows.count(True) == 1 and shows[int(answer.text) - 1]
            elif match := re.search(r"How many pictures show an? (\w+)", words):
                assert sum(match[1] in thing for thing in things) == int(answer.text)
            elif match := re.search(r"What does the (\w+) picture show", words):
                at = described_scenes.ORDINALS.index(match[1])
                assert set(things[at]) <= set(answer.text.split())
            elif words == "Describe the pictures.":
                captions_by_number = re.findall(r"Picture (\d): (.*?)\.", answer.text)
                assert [int(number) for number, _ in captions_by_number] == list(
                    range(1, len(things) + 1)
                )
                pairs = zip(captions_by_number, things, strict=True)
                assert all(set(thing) <= set(caption.split()) for (_, caption), thing in pairs)
            elif words.startswith("Is it the same"):
                kind = {"shape": SHAPES, "colour": COLOURS}.get(words[15:-1], set("0123456789"))
                first, second = (set(thing) & set(kind) for thing in things)
                assert (first == second) == (answer.text == "yes")
    assert {"Which picture", "How many pictures", "Describe the pictures."} <= set(kinds)


def test_every_turn_about_a_chart_fits_its_bars(without_stamps: Splits) -> None:
    chart_samples = [
        s
        for s in without_stamps(image_qa.corpus, *ROWS["image_qa"])["train"]
        if s.meta["task"] == "chart"
    ]
    assert len(chart_samples) > 10 and max(len(s.messages) for s in chart_samples) == 8
    for sample in chart_samples:
        bars = dict(words.split() for words, *_ in sample.meta["named"][0] if " " in words)
        ends = {
            **dict.fromkeys(("highest", "longest"), max(bars, key=lambda c: int(bars[c]))),
            **dict.fromkeys(("lowest", "shortest"), min(bars, key=lambda c: int(bars[c]))),
        }
        for question, answer in zip(sample.messages[::2], sample.messages[1::2], strict=True):
            words = question.text.strip("?").split()
            expected = ends.get(words[-1]) or next(bars[w] for w in words if w in bars)
            assert answer.text == expected, (question.text, answer.text, bars)


@pytest.mark.parametrize(
    "corpus", few([c for c in CORPORA if c.fresh is not None], 2), ids=lambda c: c.name
)
def test_fresh_samples_show_nothing_that_is_held_out(
    corpus: Corpus, few_stamps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: set[str] = set()

    def record(module: Any, name: str) -> None:
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda split, *a: splits.add(split) or plain(split, *a))

    record(scenes, "scan_numbers")
    record(scenes, "turns")
    make, _ = generator(corpus, Work({"train": 0}, 0, tmp_path, tmp_path, report=lambda line: None))
    samples = [make(n) for n in range(150)]
    assert splits <= {"train"}
    for sample in samples:
        assert sample.meta.get("font", images.FONTS["train"][0]) in images.FONTS["train"]
        assert "stamp" not in sample.meta or not stamps.held_out(sample.meta["stamp"])
        if sample.meta["task"] in ("number", "read_number"):
            assert int(sample.answer) in images.numbers("train")
    test = build_splits(corpus, tmp_path, 0, 132)["test"]
    test_digests = Index.of({corpus.name: test}, ("same bytes",)).digests
    assert not test_digests.keys() & {m["sha256"] for s in samples for m in to_row(s)["media"]}


def test_what_the_picture_names_decides_whether_to_refuse(without_stamps: Splits) -> None:
    split = without_stamps(image_qa.corpus, *ROWS["image_qa"])
    requests = {s: [x for x in rows if x.meta["task"] == "request"] for s, rows in split.items()}
    assert 50 <= len(requests["train"]) <= 125 and len(requests["test"]) == 24
    assert sum(x.meta["refuse"] for x in requests["test"]) == 12
    for x in requests["train"] + requests["test"]:
        answer = x.messages[1].text
        assert refuses(answer) == x.meta["refuse"], answer
        assert len(media(x.messages, Picture)) == 1
    questions = {
        harmful: {r.question for r, _ in safety.pictured("train", "en", harmful)}
        for harmful in (True, False)
    }
    assert questions[True] == questions[False], "the words alone tell nothing"
    acts = [{(r.question, t) for r, t in safety.pictured(s, "en", True)} for s in ("train", "test")]
    assert not acts[0] & acts[1]


def test_a_named_place_is_where_the_thing_is(tmp_path: Path) -> None:
    """An image of a single object is empty outside the cell in the answer."""
    checked = 0
    for sample in build_splits(grounding.corpus, tmp_path, 200, 0)["train"]:
        with Image.open(io.BytesIO(media(sample.messages, Picture)[0].source)) as picture:
            paper, side = picture.getpixel((0, 0)), picture.width // grounding.GRID
            cells = {
                (x + 1, y + 1)
                for x in range(grounding.GRID)
                for y in range(grounding.GRID)
                if len(
                    picture.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)).getcolors(
                        9999
                    )
                )
                > 1
            }
        if sample.meta["task"] == "locate":
            assert any(sample.answer == grounding.name(*cell) for cell in cells), (
                sample.answer,
                cells,
                paper,
            )
            checked += len(cells) == 1
    assert checked > 10


def test_pages_to_read_are_help_of_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pages(language: str, work: Work) -> dict[str, real_text.Page]:
        texts = {n: f"{language} page {n} has five" for n in range(200)}
        return {
            f"{n}.html": real_text.Page(
                f"{n}.html",
                "",
                (("a", page_text), ("b", "too few"), ("c", "→ 字 x y"), ("d", "On every page.")),
            )
            for n, page_text in texts.items()
        }

    monkeypatch.setattr(ocr, "help_pages", pages)
    split = build_splits(ocr.corpus, tmp_path, 400, 60)
    page_samples = {
        name: [s for s in samples if s.meta["layout"] == "page"] for name, samples in split.items()
    }
    assert len(page_samples["test"]) == 20 and 10 < len(page_samples["train"]) < 60
    numbers = {}
    for name, samples in page_samples.items():
        for s in samples:
            assert s.source == packages.LIBREOFFICE[s.meta["language"]] and s.licence == "MPL-2.0"
            assert s.answer.startswith((f"{s.meta['language']} page ", "On every"))
            assert name == "train" or s.answer[:2] != "On"
        numbers[name] = {s.answer.split()[2] for s in samples if s.answer[:2] != "On"}
        assert all(real_text.in_split(name, f"{n}.html", percent=5) for n in numbers[name])
    assert numbers["test"] and numbers["train"] and not numbers["test"] & numbers["train"]
    photos = {
        s.meta["task"]: media(s.messages, Picture)[0].source[:2] for s in page_samples["test"]
    }
    assert photos == {"read_page": b"\x89P", "read_photo": b"\xff\xd8"}


def test_a_corpus_becomes_shards(no_stamps: None, tmp_path: Path) -> None:
    work = Work(
        rows={"train": 12, "test": 4},
        seed=0,
        cache=tmp_path,
        data=tmp_path,
        report=lambda line: None,
    )
    manifests = build(image_qa.corpus, work)
    assert manifests["train"]["rows"] == 12 and set(manifests["train"]["licences"]) <= {
        "MIT",
        "BSD-3-Clause",
    }
    assert Shards(tmp_path / "image_qa" / "test")[0].meta["task"] == "digit"


def test_every_vision_task_finds_its_samples(with_stamps: Splits) -> None:
    tests = {corpus.name: with_stamps(corpus)["test"][:48] for corpus in CORPORA}
    for task in (t for t in find() if t.modality == "vision"):
        samples = [
            s
            for s in tests[task.corpus]
            if all(s.meta.get(k) == v for k, v in task.rows[0].only.items())
        ]
        assert len(samples) >= (2 if "refuse" in task.rows[0].only else 4), task.name
        assert all(task.scorer(s.answer, s).value == 1.0 for s in samples), task.name

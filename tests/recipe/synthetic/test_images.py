"""Drawn images show their data; the splits share no held-out content."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyphi_recipe.synthetic import charts, images, slides, stamps, tables
from polyphi_recipe.synthetic.scenes import Scene
from polyphi_recipe.text.lexicon import COLOUR_RGB, COLOURS, LANGUAGES, SHAPES


def scene(split: str = "train", index: int = 0, seed: int = 0) -> Scene:
    return Scene(random.Random(seed), split, index)


def test_splits_share_nothing() -> None:
    for pair in images.PAIRS:
        train, test = images.turns("train", *pair), images.turns("test", *pair)
        assert len(test) == 1 and sorted(train + test) == sorted(images.TURNS)
    assert not set(images.numbers("train")) & set(images.numbers("test"))
    assert set(range(10)) <= set(images.numbers("train"))
    assert not set(images.FONTS["train"]) & set(images.FONTS["test"])
    for digit in range(10):
        train, test = images.scan_numbers("train", digit), images.scan_numbers("test", digit)
        assert not set(train) & set(test) and len(test) > 20 and len(train) > 100
        assert all(images.scans()[1][i] == digit for i in train + test)


def test_every_colour_goes_with_every_shape_in_training() -> None:
    """Regression: with held-out pairs the model learned that some shapes never have a colour: far below chance."""
    train = scene()
    assert {train.pair() for _ in range(2000)} == {(s, c) for s in SHAPES for c in COLOURS}
    rotations = {train.turn("star", "red") for _ in range(100)}
    assert rotations == set(images.turns("train", "star", "red"))
    test = scene("test")
    assert {test.turn("star", "red") for _ in range(9)} == set(images.turns("test", "star", "red"))


def test_annotations_hold_labels_and_boxes() -> None:
    sampled = scene()
    image = images.sheet((112, 56), (255, 255, 255))
    sampled.shape(image, "star", "red", (56, 14), 28)
    images.write(image, "no 7", images.font("DejaVuSans", 14), (4, 30), (0, 0, 0))
    star, *characters = images.annotations(image)
    assert star == ("red star", 0.5, 0.25, 0.75, 0.75)
    assert [name for name, *_ in characters] == ["n", "o", "7"]
    left_edges = [left for _, left, *_ in characters]
    assert left_edges == sorted(left_edges) and all(0 <= x < 0.5 for x in left_edges)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_square_and_no_more(shape: str) -> None:
    mask = np.asarray(images.shape_mask(shape, 40))
    assert mask.shape == (40, 40) and 0.25 < (mask > 128).mean() < 0.9
    assert (mask > 128).any(axis=0).sum() >= 32 and (mask > 128).any(axis=1).sum() >= 32
    image = images.sheet((112, 112), (255, 255, 255))
    images.stamp_shape(image, shape, (10, 60), 40, (220, 30, 30))
    outside = np.asarray(image).copy()
    outside[60:100, 10:50] = 255
    assert (outside == 255).all()


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="circle"):
        images.shape_mask("blob", 20)
    with pytest.raises(ValueError, match="DejaVuSans"):
        images.font("Comic", 12)


@pytest.mark.parametrize("name", images.FONTS["train"] + images.FONTS["test"])
def test_every_font_draws_distinct_letters(name: str) -> None:
    text = "0123456789bird" if name in images.ASCII_FONTS else "0123456789éüñãçœß"
    drawn = set()
    for letter in text:
        image = images.sheet((40, 40), (255, 255, 255))
        images.write(image, letter, images.font(name, 24), (4, 4), (0, 0, 0))
        drawn.add(image.tobytes())
    assert len(drawn) == len(text), (
        f"{name} draws two letters alike: some are missing from the file"
    )


def test_text_fits_and_starts_at_its_corner() -> None:
    face = images.fitting("DejaVuSans-Bold", "butterfly", 100, 60)
    wide, high = images.measure("butterfly", face)
    assert 80 < wide <= 102
    image = images.sheet((112, 112), (255, 255, 255))
    images.write(image, "butterfly", face, (3, 40), (0, 0, 0))
    rows, cols = np.nonzero(np.asarray(image.convert("L")) < 128)
    assert abs(rows.min() - 40) <= 1 and abs(cols.min() - 3) <= 2 and rows.max() <= 40 + high


def test_png_is_lossless() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    assert Image.open(io.BytesIO(images.png(image))).tobytes() == image.tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_scattered_things_never_touch(seed: int) -> None:
    corners = scene(seed=seed).scatter(6, 34)
    assert all(0 <= x <= 112 - 34 and 0 <= y <= 112 - 34 for x, y in corners)
    for i, (x, y) in enumerate(corners):
        assert all(max(abs(x - u), abs(y - v)) >= 34 for u, v in corners[:i])
    with pytest.raises(ValueError, match="at most 9"):
        scene().scatter(10, 34)


def test_every_colour_is_seen_on_some_paper_and_ink_is_legible() -> None:
    for colour in COLOUR_RGB.values():
        assert scene().paper(colour) in images.PAPERS
    assert scene().paper(*COLOUR_RGB.values()) in images.PAPERS
    for paper in images.PAPERS:
        assert images.contrast(scene().ink(paper), paper) > 90


def test_answers_take_turns_in_the_test_split() -> None:
    assert [scene("test", i).answer("abc") for i in range(6)] == list("abcabc")
    assert [scene("test", i).answer("ab", every=2) for i in range(4)] == list("aabb")


def test_a_chart_knows_its_numbers() -> None:
    for draw in (charts.columns, charts.rows, charts.pie):
        chart = draw(scene(), ("red", "blue", "green"), (3, 8, 5))
        assert (chart.highest(), chart.lowest(), chart.value("green")) == ("blue", "red", 5)
        assert chart.table() == "red 3, blue 8, green 5" and chart.image.size == (112, 112)
    assert charts.line(scene(), (1, 5, 9)).labels == ("1", "2", "3")


def test_bars_are_as_high_as_their_values() -> None:
    pixels = np.asarray(charts.columns(scene(), ("red", "blue"), (3, 9)).image).astype(int)
    red = ((pixels[..., 0] > 190) & (pixels[..., 1] < 60)).any(axis=1).sum()
    blue = ((pixels[..., 2] > 190) & (pixels[..., 0] < 60)).any(axis=1).sum()
    assert blue / red == pytest.approx(3, abs=0.25)


def changed(a: Image.Image, b: Image.Image) -> tuple[int, int, int, int]:
    """Return the box in which two images differ: left, top, right, bottom in pixels."""
    ys, xs = np.nonzero((np.asarray(a) != np.asarray(b)).any(axis=2))
    return xs.min(), ys.min(), xs.max(), ys.max()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("columns", ["AB", "ABC"])
def test_a_table_shows_each_number_in_its_cell(columns: str, seed: int) -> None:
    rows, high = ("cat", "dog", "sun"), 106 / 4
    cells = [[11] * len(columns) for _ in rows]
    before = tables.draw(scene(seed=seed), columns, rows, cells)
    cells[1][1] = 8
    after = tables.draw(scene(seed=seed), columns, rows, cells)
    left, top, right, bottom = changed(before.image, after.image)
    first = 106 * (0.42 if columns == "ABC" else 0.46)
    wide = (106 - first) / len(columns)
    assert 3 + first + wide <= left + 2 and right - 2 <= 3 + first + 2 * wide
    assert 3 + 2 * high <= top and bottom <= 3 + 3 * high


def test_a_table_knows_its_cells() -> None:
    table = tables.draw(scene(), "AB", ("cat", "dog"), ((3, 5), (8, 2)), (224, 112))
    assert (table.cell("dog", "A"), table.highest("A"), table.highest("B")) == (8, "dog", "cat")
    assert table.text() == "A B; cat 3 5; dog 8 2" and table.image.size == (224, 112)


@pytest.mark.parametrize("seed", range(8))
def test_a_slide_shows_its_title_above_its_points_in_order(seed: int) -> None:
    points = ["red hat", "blue car", "pink egg"]
    whole = slides.draw(scene(seed=seed), "Train", points)
    assert (whole.title, whole.points) == ("Train", tuple(points))
    assert whole.image.size == (112, 112)
    other = slides.draw(scene(seed=seed), "Mouse", points)
    assert changed(whole.image, other.image)[3] <= 25
    for i in range(3):
        one = slides.draw(
            scene(seed=seed), "Train", [*points[:i], points[i][::-1], *points[i + 1 :]]
        )
        _, top, _, bottom = changed(whole.image, one.image)
        assert 30 + i * 82 / 3 <= top and bottom <= 30 + (i + 1) * 82 / 3


def test_a_slide_with_a_chart_is_wide() -> None:
    chart = charts.columns(scene(), "AB", (3, 8), (108, 82)).image
    wide = slides.draw(scene(), "Train", ["red hat", "blue car"], chart)
    assert wide.image.size == (224, 112)
    assert wide.image.crop((114, 29, 222, 111)).tobytes() == chart.tobytes()


def _stamp(folder: Path, id: str, text: str, colour: tuple[int, int, int, int]) -> None:
    image = Image.new("RGBA", (60, 30))
    image.paste(colour, (20, 5, 60, 25))
    (folder / id).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{id}.png")
    (folder / f"{id}.txt").write_text(text)


def test_stamps_are_read_with_captions_kinds_and_splits(tmp_path: Path) -> None:
    text = (
        "An Owl.\nfr.utf8=Une chouette.\nzh_CN.utf8=一只猫头鹰。\npt.utf8=Um mocho.\npt_BR.utf8=Uma coruja.\nde.utf8="
        + "x" * 99
    )
    _stamp(tmp_path, "animals/birds/owl", text, (250, 250, 250, 255))
    _stamp(tmp_path, "vehicles/ship/cartoon/tugboat_mirror", "A tugboat.", (9, 9, 9, 255))
    album = stamps.read(tmp_path)
    assert [s.id for s in album] == ["animals/birds/owl"]
    owl = album[0]
    assert owl.captions == {
        "en": "an Owl",
        "fr": "une chouette",
        "zh": "一只猫头鹰",
        "pt": "uma coruja",
    }
    assert owl.category == "bird" and album.of(owl.split, "bird") == (owl,)
    assert owl.cutout(40).size == (40, 20), "trimmed to what is opaque"
    assert all(max(owl.paper(random.Random(i))) < 230 for i in range(9)), (
        "a white owl is not put on white paper"
    )
    assert stamps.held_out("a/b_mirror") == stamps.held_out("a/b"), (
        "a mirrored stamp is on the side of its original"
    )


def test_every_kind_has_a_word_in_every_language() -> None:
    assert all(set(stamps.CATEGORY_WORDS[name]) == set(LANGUAGES) for name in stamps.CATEGORIES)

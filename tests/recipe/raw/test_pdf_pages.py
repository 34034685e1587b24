"""Pages of PDFs with their text layer, typeset pages with their text, and photos that still show the page."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyphi.types.messages import media
from polyphi.types.parts import Image as Picture
from polyphi_recipe.raw import pdf_pages
from polyphi_recipe.raw.photos import photo
from polyphi_recipe.synthetic import images
from polyphi_recipe.synthetic.pages import set_page
from polyphi_recipe.synthetic.scenes import Scene
from tests.fixtures.pdfs import text_pdf

TEXT = "You can open a file from the menu or with a double click on its name."


def pdf(*pages: str) -> bytes:
    """Return a PDF of pages of 4 x 5 inches, with lines from the top down."""
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(out) as file:
        for page in pages:
            figure = Figure(figsize=(4, 5))
            for i, line in enumerate(page.splitlines()):
                figure.text(0.1, 0.9 - 0.1 * i, line)
            file.savefig(figure)
    return out.getvalue()


def test_a_page_is_drawn_and_says_its_text() -> None:
    (first, text), (second, empty) = pdf_pages.pages(pdf("Naïve fox\njumps over 13 dogs.", ""), 500)
    assert text == "Naïve fox\njumps over 13 dogs." and empty == ""
    assert first.size == second.size == (400, 500) and first.mode == "RGB"
    ink = np.nonzero(np.asarray(first.convert("L")) < 128)[0]
    assert 25 < ink.min() < 75 and 75 < ink.max() < 125, "two lines, at a tenth and two of the page"
    assert (np.asarray(second) == 255).all()


def test_a_folder_of_pdfs_becomes_rows(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pdf("One.", "", "Three."))
    (tmp_path / "b.pdf").write_bytes(text_pdf("Too long a page."))
    (tmp_path / "c.pdf").write_bytes(text_pdf("Cut.")[:400])
    (tmp_path / "d.txt").write_text("no PDF")
    messages: list[str] = []
    rows = list(
        pdf_pages.read(
            [tmp_path],
            source="mine",
            licence="CC0-1.0",
            longest=10,
            side=300,
            report=messages.append,
        )
    )
    assert [(r.answer, r.meta["file"], r.meta["page"]) for r in rows] == [
        ("One.", "a.pdf", 1),
        ("Three.", "a.pdf", 3),
    ]
    assert len(messages) == 1 and "c.pdf" in messages[0]
    assert rows[0].source == "mine" and rows[0].prompt[0].text == "Read the page."
    parts = [
        list(
            pdf_pages.read(
                [tmp_path], source="m", licence="l", part=(i, 2), side=300, report=messages.append
            )
        )
        for i in (0, 1)
    ]
    assert [len(p) for p in parts] == [2, 1], "files are distributed"
    photos = [
        list(
            pdf_pages.read(
                [tmp_path], source="m", licence="l", photos=True, side=300, report=messages.append
            )
        )
        for _ in "ab"
    ]
    assert photos[0] == photos[1] != rows, "a page's photo is always the same"
    with pytest.raises(ValueError, match=r"d\.txt"):
        list(pdf_pages.read([tmp_path / "d.txt"], source="m", licence="l"))


@pytest.mark.parametrize("seed", range(12))
def test_a_page_holds_as_much_as_it_says(seed: int) -> None:
    scene = Scene(random.Random(seed), "train" if seed % 2 else "test", seed)
    page, text, font = set_page(TEXT, scene, (112, 112))
    assert TEXT.startswith(text) and len(text.split()) >= 5 and font in images.FONTS[scene.split]
    paper = page.getpixel((0, 0))
    inked = np.nonzero((np.asarray(page).astype(int) != paper).any(axis=2))
    assert inked[0].min() >= 3 and inked[0].max() < 111 and inked[1].max() < 111, (
        "nothing is cut off"
    )


def test_a_word_that_fits_no_page_is_told() -> None:
    scene = Scene(random.Random(0), "train", 0)
    assert set_page("Schmetterlinge fliegen", scene, (112, 112))[1] == "Schmetterlinge fliegen"
    for text in ("Donaudampfschifffahrtsgesellschaft", ""):
        with pytest.raises(ValueError, match="112 x 112 pixels"):
            set_page(text, scene, (112, 112))


def test_a_photo_is_askew_and_still_shows_the_page() -> None:
    likeness, frames = [], 0
    for seed in range(12):
        scene = Scene(random.Random(seed), "train", seed)
        page, _, _ = set_page(TEXT, scene, (224, 112))
        data = photo(page, random.Random(seed))
        assert data == photo(page, random.Random(seed)) and data != photo(page, random.Random(99))
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.format == "JPEG" and opened.size == (224, 112) and opened.mode == "RGB"
            photo_pixels = np.asarray(opened.convert("L")).astype(float)
        flat = np.asarray(page.convert("L")).astype(float)
        assert np.abs(photo_pixels - flat).mean() > 5
        frames += (flat[0] - photo_pixels[0]).mean() > 20  # the table shows above the page
        rough = [
            np.asarray(Image.fromarray(x).resize((28, 14), Image.Resampling.BOX))
            for x in (flat, photo_pixels)
        ]
        likeness.append(
            np.corrcoef(rough[0][2:-2, 3:-3].ravel(), rough[1][2:-2, 3:-3].ravel())[0, 1]
        )
    assert frames >= 6 and np.median(likeness) > 0.4, likeness


def test_rows_have_pictures_that_decode(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("One."))
    (row,) = pdf_pages.read([tmp_path / "a.pdf"], source="m", licence="l")
    (image,) = media(row.messages, Picture)
    with Image.open(io.BytesIO(image.source)) as opened:
        assert opened.height == 1344 and opened.width in (1075, 1076)

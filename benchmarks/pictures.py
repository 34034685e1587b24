"""What pictures, pages and videos cost to curate, on one core:

    OMP_NUM_THREADS=1 python benchmarks/pictures.py

Each line is the best of three rounds over the same material, which is drawn here.
"""

import io
import random
import time
from collections.abc import Callable

import av
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from PIL import Image

from polyphi.chat import Image as Picture
from polyphi.chat import Message
from polyphi.curate import cartoons, pdf_pages
from polyphi.curate.documents import document
from polyphi.curate.photos import photo, set_page
from polyphi.curate.pictures import Shrink, Sizes, encoded
from polyphi.curate.scenes import Scene
from polyphi.data.shards import Sample
from polyphi.processing.media import decode_video


def scenery(width: int, height: int) -> Image.Image:
    """Soft blotches, which compress about as photographs do."""
    rough = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def row(data: bytes) -> Sample:
    return Sample("one", (Message.user(Picture(data)), Message.assistant("x")), "test", "MIT")


def pdf(pages: int) -> bytes:
    """A4 pages of 50 lines."""
    out = io.BytesIO()
    with PdfPages(out) as file:
        for _ in range(pages):
            figure = Figure(figsize=(8.27, 11.69))
            for i in range(50):
                figure.text(
                    0.1, 0.95 - 0.018 * i, "Open a file from the menu, or click on it. " * 2
                )
            file.savefig(figure)
    return out.getvalue()


def film(seconds: int) -> bytes:
    """H.264 of 640 x 360 at 25 frames a second, which pans over scenery."""
    out, wide = io.BytesIO(), scenery(640 + 2 * 25 * seconds, 360)
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for i in range(25 * seconds):
            frame = av.VideoFrame.from_image(wide.crop((2 * i, 0, 2 * i + 640, 360)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def best(what: str, unit: str, count: float, work: Callable[[], object]) -> None:
    took = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    print(f"{what}: {count / min(took):,.1f} {unit}/s")


def main() -> None:
    middling, large = (encoded(scenery(*size)) for size in ((1024, 768), (4000, 3000)))
    sizes, shrink = Sizes(), Shrink()
    best("Sizes, JPEG of 1024 x 768", "pictures", 20, lambda: [
        sizes.filter(document(row(middling))) for _ in range(20)])  # fmt: skip
    best("Shrink, JPEG of 4000 x 3000", "pictures", 4, lambda: list(
        shrink.run(document(row(large)) for _ in range(4))))  # fmt: skip
    file = pdf(4)
    best("PDF pages, 1344 high", "pages", 4, lambda: list(pdf_pages.pages(file)))
    (page, _), *_ = pdf_pages.pages(file)
    best(
        "photos of such pages",
        "photos",
        3,
        lambda: [photo(page, random.Random(i)) for i in range(3)],
    )
    scene = Scene(random.Random(0), "train", 0)
    small, _, _ = set_page("Open a file from the menu.", scene, (112, 112))
    best(
        "photos of 112 x 112",
        "photos",
        50,
        lambda: [photo(small, random.Random(i)) for i in range(50)],
    )
    for seconds in (10, 60):
        clip = film(seconds)
        best(
            f"16 frames of {seconds} s of 640 x 360",
            "videos",
            1,
            lambda clip=clip: decode_video(clip),
        )
    events = ("moves right", "grows", "turns blue")
    best("drawn videos", "videos", 10, lambda: [
        cartoons.draw(scene, "star", "red", events) for _ in range(10)])  # fmt: skip


if __name__ == "__main__":
    main()

"""Cost of curating images, pages and videos on one core, and recall of wrong captions by our own similarity:

OMP_NUM_THREADS=1 python -m experiments.curation.images  # the best of three rounds over drawn images
OMP_NUM_THREADS=1 python -m experiments.curation.images runs/nano # captions, every fifth one wrong; needs vision_0
"""

import io
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from PIL import Image

from polyphi.data.shards import Sample, Shards
from polyphi.media.media import decode_image
from polyphi.processing.video import decode_video
from polyphi.types.messages import Message
from polyphi.types.parts import Image as Picture
from polyphi_recipe.filters.images import DownscaleImages, ImageSizeFilter, captions, encoded
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.pipeline.documents import document
from polyphi_recipe.raw import pdf_pages
from polyphi_recipe.raw.photos import photo
from polyphi_recipe.synthetic import cartoons
from polyphi_recipe.synthetic.pages import set_page
from polyphi_recipe.synthetic.scenes import Scene


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


def planted(rows: Sequence[Sample]) -> list[tuple[Sample, bool]]:
    """Pairs of a caption and whether it is wrong: every fifth is another picture's, of the same task and language."""
    rng, pairs = random.Random(0), []
    for i, one in enumerate(rows):
        like = [
            r
            for r in rows
            if r.answer != one.answer and _task_and_language(r) == _task_and_language(one)
        ]
        if wrong := i % 5 == 0 and bool(like):
            caption = Message.assistant(rng.choice(like).answer)
            one = replace(one, messages=(*one.prompt, caption))
        pairs.append((one, wrong))
    return pairs


def _task_and_language(one: Sample) -> tuple[str, str]:
    return one.meta["task"], one.meta["language"]


def similarity(out: Path) -> None:
    """Precision and recall of `ClipScoreFilter` on planted captions of the test split, by task and threshold."""
    run = Run("nano", out)
    similarity_of = run.models.for_corpora("vision_0_encoder")
    pairs = planted(list(Shards(run.folder.data / "captions" / "test")))
    scored = [(similarity_of(decode_image(data), caption), wrong, one.meta["task"])
              for one, wrong in pairs for data, caption in captions(one)]  # fmt: skip
    for task in sorted({task for *_, task in scored}):
        right = np.array([score for score, wrong, of in scored if of == task and not wrong])
        wrong = np.array([score for score, wrong, of in scored if of == task and wrong])
        order = (right[:, None] > wrong).mean()
        print(
            f"{task}: {len(right)} right, {len(wrong)} wrong, a right one above a wrong one {order:.2f}"
        )
        for least in (-0.1, 0.0, 0.1, 0.2):
            caught, lost = (wrong < least).sum(), (right < least).sum()
            precision = caught / max(1, caught + lost)
            print(f"  below {least:g}: precision {precision:.2f}, recall {caught / len(wrong):.2f}")


def speed() -> None:
    middling, large = (encoded(scenery(*size)) for size in ((1024, 768), (4000, 3000)))
    sizes, shrink = ImageSizeFilter(), DownscaleImages()
    best("ImageSizeFilter, JPEG of 1024 x 768", "pictures", 20, lambda: [
        sizes.filter(document(row(middling))) for _ in range(20)])  # fmt: skip
    best("DownscaleImages, JPEG of 4000 x 3000", "pictures", 4, lambda: list(
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
            partial(decode_video, clip),
        )
    events = ("moves right", "grows", "turns blue")
    best("drawn videos", "videos", 10, lambda: [
        cartoons.draw(scene, "star", "red", events) for _ in range(10)])  # fmt: skip


if __name__ == "__main__":
    similarity(Path(sys.argv[1])) if len(sys.argv) == 2 else speed()

"""The built-in corpora at the report's size: images of many crops, rows of many frames, long documents."""

import io
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.types.messages import media
from polyphi.types.parts import Audio
from polyphi.types.parts import Image as Picture
from polyphi_eval.services.speech_synthesis import unavailable
from polyphi_recipe import stages
from polyphi_recipe.corpora import capacities, long_documents, multi_image, ocr
from polyphi_recipe.corpora.lookup import find_corpus
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.pipeline.image_sizes import ImageSizes
from polyphi_recipe.raw import packages, real_text
from polyphi_recipe.stages.sizes import CORPORA, FULL, NANO
from polyphi_recipe.synthetic.scenes import Scene
from tests.fixtures.variants import few


@pytest.fixture(autouse=True)
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (packages, real_text):
        monkeypatch.setattr(module, "unpack", lambda name, cache, report=print: None, raising=False)


def at_full(corpus: str, folder: Path, rows: int) -> Work:
    return Work(
        {"train": rows},
        0,
        folder,
        folder,
        report=lambda line: None,
        image_sizes=stages.image_sizes(FULL, corpus),
        document_tokens=stages.longest_document(FULL),
    )


def samples(corpus: str, work: Work) -> list[Sample]:
    return [sample for _, sample in find_corpus(corpus).build(work)]


def image_tokens(sample: Sample, sizes: ImageSizes | None) -> list[int]:
    """Return the tokens of each image of a sample."""
    assert sizes is not None
    files = [Image.open(io.BytesIO(picture.source)) for picture in media(sample.messages, Picture)]
    return [sizes.count_tokens(*file.size) for file in files]


@pytest.mark.parametrize(
    ("corpus", "most"),
    few([("image_qa", 36), ("charts", 16), ("grounding", 16), ("captions", 16), ("ocr", 16)], 3),
)
def test_images_have_one_crop_up_to_the_limit(corpus: str, most: int, tmp_path: Path) -> None:
    work = at_full(corpus, tmp_path, 20)
    sizes = work.image_sizes
    assert sizes is not None and sizes.max_crops == most
    counts = sorted(sum(image_tokens(s, sizes)) for s in samples(corpus, work))
    one_crop, half = (sizes.count_tokens(448, 448 * crops) for crops in (1, most // 2))
    assert counts[0] <= one_crop < counts[10] and counts[-1] > half


def test_a_large_page_has_many_words() -> None:
    sizes, words = stages.image_sizes(FULL, "ocr"), []
    texts = {
        language: [f"The button {n} opens a window" for n in range(200)] for language in ocr.LATIN
    }
    for pixels in ((448, 448), (1344, 1792)):
        scene = Scene(Random(0), "train", 0, image_sizes=sizes, pixels=pixels)
        page = ocr.page({"train": texts}, scene)
        assert Image.open(io.BytesIO(media(page.messages, Picture)[0].source)).size == pixels
        words.append(len(page.messages[-1].text.split()))
    assert words[0] < 70 and words[1] > 300


def test_rows_of_several_frames_have_up_to_64k_tokens(tmp_path: Path) -> None:
    work = at_full("multi_image", tmp_path, 8)
    assert work.image_sizes is not None
    rows = [image_tokens(s, work.image_sizes) for s in samples("multi_image", work)]
    assert 50_000 < max(map(sum, rows)) <= work.image_sizes.tokens < 65_536
    assert min(map(len, rows)) <= 3 and max(map(len, rows)) > 16


@pytest.mark.parametrize("task", ["which_picture", "frames", "motion", "video_event"])
def test_answers_about_many_frames_fit_them(task: str) -> None:
    sizes, most = ImageSizes(112, 4, 2000), 0
    for seed in range(12):
        drawn = multi_image.MAKERS[task][1](Scene(Random(seed), "train", seed, image_sizes=sizes))
        frames = drawn.meta["named"]
        most = max(most, len(frames))
        question, answer = drawn.messages[0].text, drawn.messages[1].text
        if task == "frames":
            shape = question.removesuffix("?").split()[-1]
            assert int(answer) == sum(frame[0][0].endswith(shape) for frame in frames)
        elif task == "which_picture":
            names = [frame[0][0] for frame in frames]
            thing = question.removesuffix("?").split()[-1]
            assert thing in names[int(answer) - 1] or not any(thing in name for name in names)
        elif task == "motion":
            axis = 1 if answer in ("left", "right") else 2
            first, last = frames[0][0][axis], frames[-1][0][axis]
            assert (last > first) == (answer in ("right", "down"))
        else:
            assert answer in drawn.meta["events"] and len(frames) > len(drawn.meta["events"])
    assert most > 4


@pytest.mark.skipif(unavailable("espeak-ng") is not None, reason="espeak-ng is not installed")
def test_speech_asks_about_several_frames_too(tmp_path: Path) -> None:
    for name in ("image_qa", "multi_image"):
        rows = samples(name, at_full(name, tmp_path, 8))
        shards.write(tmp_path / name / "train", rows, pipeline="p")
    work = at_full("vision_speech", tmp_path, 16)
    assert work.image_sizes is not None
    frames = []
    for sample in samples("vision_speech", work):
        *images, audio = sample.prompt[-1].parts
        assert isinstance(audio, Audio) and all(isinstance(part, Picture) for part in images)
        assert sum(image_tokens(sample, work.image_sizes)) <= work.image_sizes.tokens < 16_384
        assert ("multi_image" in sample.meta) == (len(images) > 1)
        frames.append(len(images))
    assert frames.count(1) >= 4 and sum(count > 1 for count in frames) >= 3


PARAGRAPH = (
    "Paragraph {} of page {} says what the button does and when one wants to choose it instead."
)
SHARED = "This paragraph, which begins all pages of the help, is once in a document."


def test_documents_have_more_than_100k_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def help_pages(language: str, work: Work) -> dict[str, real_text.Page]:
        paragraphs = {
            f"{n % 7}/{n}": (("", SHARED), *((str(k), PARAGRAPH.format(k, n)) for k in range(30)))
            for n in range(900 if language == "en" else 0)
        }
        return {path: real_text.Page(path, "", lines) for path, lines in paragraphs.items()}

    for module in (real_text, long_documents):
        monkeypatch.setattr(module, "help_pages", help_pages)
    rows = samples("long_documents", at_full("long_documents", tmp_path, 1000))
    per_token = long_documents.CHARACTERS_PER_TOKEN
    pages = [s.answer for s in rows if s.source == packages.LIBREOFFICE["en"]]
    assert max(map(len, pages)) > 100_000 * per_token["en"]
    assert all(page.count(SHARED) == 1 for page in pages)
    lines = [line for page in pages for line in page.split("\n") if line not in ("", SHARED)]
    assert len(lines) == len(set(lines)) > 20_000
    code = [len(s.answer) for s in rows if s.source == "python-stdlib"]
    least, most = (n * per_token["python"] for n in (long_documents.SHORTEST, 131_072))
    assert len(code) > 30 and min(code) >= least - 1 and 10 * least < max(code) < most


def test_capacities_are_those_of_a_size() -> None:
    """The tokens that the error of a recipe without data names: images and documents are larger at full."""
    for name in CORPORA:
        rows, tokens = capacities.of(name, FULL)
        assert 0 < rows <= capacities.DEFAULT_ROWS and tokens > 0
    mean = {name: tokens / rows for name in CORPORA for rows, tokens in [capacities.of(name, FULL)]}
    assert mean["long_documents"] > 20_000 and mean["multi_image"] > 10_000
    small = {
        name: tokens / rows for name in CORPORA for rows, tokens in [capacities.of(name, NANO)]
    }
    for name in ("captions", "interleaved", "ocr", "charts", "image_qa", "vision_speech"):
        assert mean[name] > 5 * small[name]
    assert abs(mean["instructions"] / small["instructions"] - 1) < 0.3

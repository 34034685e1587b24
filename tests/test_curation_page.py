"""The examples of docs/curation.md, from files to shards and their card, with simple classifiers."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import soundfile
from matplotlib.figure import Figure
from PIL import Image, ImageStat

from polyphi import cli
from polyphi.data.shards import Sample, Shards, document
from polyphi.types.messages import media
from polyphi.types.parts import Image as Picture
from polyphi_eval.services.speech_synthesis import TTSPool, Voice, unavailable
from polyphi_recipe.filters import quality
from polyphi_recipe.pipeline import corpus
from polyphi_recipe.pipeline.corpus import Work

PAGE = Path(__file__).parents[1] / "docs" / "curation.md"
EXAMPLE = Path(__file__).parents[1] / "examples" / "curate_pages.py"
DOGS = (
    "Dogs have lived with people for many thousands of years, and they have learned to understand much of what we say. "
    "Most of them like to run, to play with a ball, and to sleep near the fire when the evening is cold. If you have "
    "questions about number {number}, write to anna.smith@example.com, and the owner of the house will answer you. "
    "The people of the village say that a dog which barks at night has seen a fox, and that it is wise to look for it. "
    "In the morning they go out together, along the river and through the wood, and they come home hungry. "
)


def test_the_example_makes_clean_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(24):
        (raw / f"{number}.txt").write_text(DOGS.format(number=number))
    (raw / "bad.jsonl").write_text(json.dumps({"text": "x " * 200, "url": "u"}))
    monkeypatch.chdir(tmp_path)
    cli.main(["curate", str(EXAMPLE), "--out", "mine", "--size", "micro", "--workers", "2"])
    samples = list(Shards(tmp_path / "mine" / "data" / "pages" / "train"))
    assert len(samples) >= 20 and all("anna.smith" not in s.answer for s in samples)
    assert {step["step"] for step in samples[0].meta["lineage"]} >= {"language"}
    capsys.readouterr()
    cli.main(["curate", "show", "pages", "--out", "mine", "--size", "micro"])
    card = capsys.readouterr().out
    assert "my crawl" in card and "CC-BY-4.0" in card and "dropped" in card
    cli.main(["curate", "show", f"pages/{samples[0].id}", "--out", "mine", "--size", "micro"])
    assert "in train" in capsys.readouterr().out


def test_the_example_says_what_it_dropped_and_notices_changed_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of twelve pages are too short for one rule; then one of them isn't, then one more is there."""
    monkeypatch.chdir(tmp_path)
    page = "<html><body><article><p>Dogs bark at the fox of number {}.</p></article></body></html>"
    Path("raw").mkdir()
    for number in range(12):
        Path(f"raw/{number}.html").write_text(page.format(number))
    command = ["curate", str(EXAMPLE), "--out", "own", "--size", "micro"]

    def curate() -> str:
        cli.main(command)
        return " ".join(capsys.readouterr().out.split())

    def rows() -> int:
        return len(Shards(tmp_path / "own/data/pages/train"))

    first = curate()
    assert "warning: pages/train has 0 rows: of 12 samples 12 were dropped" in first
    assert "by Rules (12 for" in first and "Dogs bark at the fox" in first and rows() == 0
    assert (
        "0 train" in (second := curate()) and "are kept" in second and "12 were dropped" in second
    )
    Path("raw/3.html").write_text(page.format("3. " + DOGS.format(number=1)))
    assert "raw/3.html has another content" in curate() and rows() == 1
    Path("raw/more.txt").write_text(DOGS.format(number=3))
    assert "raw has other files" in curate() and rows() == 2
    Path("raw/3.html").touch()
    assert "2 train" in (last := curate()) and "are kept" in last


@pytest.mark.long
def test_clips_of_one_voice_are_no_copies_of_measured_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thirty calls of one template nearly all stay, and none that is measured, also encoded again."""
    if missing := unavailable("espeak-ng"):
        pytest.skip(missing)
    monkeypatch.chdir(tmp_path)
    tts_pool, voice, numbers = TTSPool(), Voice(variant="f2"), list(range(101, 136))

    def call(number: int, format_: str) -> dict[str, str]:
        name = f"{number}.{format_}"
        wave, rate = tts_pool.speak(f"Please go to room {number} and wait there.", voice)
        soundfile.write(name, wave, rate)
        return {"id": name, "audio": name, "question": "Which room?", "answer": str(number)}

    measured = [call(n, "wav") for n in numbers[30:]]
    calls = [call(n, "flac") for n in numbers[:30]] + [call(n, "ogg") for n in numbers[30:]]
    for name, rows in (("receipts", calls[:1]), ("calls", calls[1:]), ("desk_test", measured)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli.main(
        ["curate", str(EXAMPLE.with_name("curate_own.py")), "--out", "desk", "--size", "micro"]
    )
    ids = {s.id for split in ("train", "test") for s in Shards(tmp_path / "desk/data/desk" / split)}
    assert not ids & {f"{n}.ogg" for n in numbers[30:]}
    assert len(ids) >= 28


def blocks(section: str) -> list[str]:
    """The Python of a section of the page."""
    (text,) = re.findall(rf"(?ms)^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text())
    return re.findall(r"(?s)```python\n(.*?)```", text)


def run(code: str) -> None:
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})


def test_the_page_s_steps_filter_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of the page on text: other languages are dropped, addresses replaced. The classifier likes dogs."""
    monkeypatch.chdir(tmp_path)
    rows = [
        quality.Labelled(text, "en", aspect, (aspect == "educational") == ("Dogs" in text))
        for aspect in ("educational", "toxicity")
        for text in ("Dogs like to run and play.", "Buy cheap watches here now.")
    ]
    quality.save(quality.train(lambda: rows * 8, epochs=4), Path("quality"))
    (code,) = blocks("Pipeline steps")
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, str(PAGE), "exec"), names)
    texts = [
        DOGS.format(number=1),
        "Les chiens vivent avec les hommes depuis des milliers d'années. " * 8,
    ]

    def build(work: Work) -> Iterator[tuple[str, Sample]]:
        for number, text in enumerate(texts):
            yield "train", document(str(number), text, "mine", "CC0-1.0", language="en")

    work = Work({"train": 2}, 0, tmp_path / "cache", tmp_path / "data", report=print)
    corpus.build(corpus.Corpus("steps", build, steps=names["steps"]), work)
    (sample,) = Shards(tmp_path / "data" / "steps" / "train")
    assert sample.id == "0" and "anna.smith" not in sample.answer
    assert {step["step"] for step in sample.meta["lineage"]} >= {"language", "quality", "pii"}


def test_the_page_s_image_filters_make_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("Image filters")
    (tmp_path / "pairs").mkdir()
    kinds = {
        "good": ("black", 1600),
        "tiny": ("black", 20),
        "unsafe": ("white", 90),
        "other": ("#202020", 90),
    }
    for name, (colour, side) in kinds.items():
        Image.new("RGB", (side, side), colour).save(tmp_path / "pairs" / f"{name}.png")
    (tmp_path / "pairs" / "broken.png").write_bytes(b"\x89PNG")
    for split in ("train", "test"):
        lines = [
            {"id": name, "image": f"{name}.png", "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "Night."}]}
            for name in (*kinds, "broken")
        ]  # fmt: skip
        (tmp_path / "pairs" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    mine = (
        "from PIL import ImageStat\n\n"
        "def my_classifier(picture):\n    return ImageStat.Stat(picture.convert('L')).mean[0] / 255\n\n"
        "def my_similarity(picture, caption):\n    return float(my_classifier(picture) < 0.05)\n\n"
    )
    (tmp_path / "pairs.py").write_text(mine + code)
    monkeypatch.chdir(tmp_path)
    cli.main(["curate", "pairs.py", "--out", "mine", "--size", "micro"])
    (sample,) = Shards(tmp_path / "mine" / "data" / "pairs" / "train")
    assert sample.id == "good"
    with Image.open(io.BytesIO(media(sample.messages, Picture)[0].source)) as opened:
        assert opened.size == (1344, 1344)
    assert [s["step"] for s in sample.meta["lineage"]] == ["sizes", "shrink", "safe", "matching"]
    for name, reason in (
        ("tiny", "too small"),
        ("unsafe", "unsafe"),
        ("other", "caption doesn't match"),
    ):
        capsys.readouterr()
        cli.main(["curate", "show", f"pairs/{name}", "--out", "mine", "--size", "micro"])
        assert reason in capsys.readouterr().out


def test_the_page_s_pdfs_and_videos_become_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "papers").mkdir()
    figure = Figure(figsize=(4, 5))
    figure.text(0.1, 0.9, "A paper.")
    figure.savefig(tmp_path / "papers" / "a.pdf")
    (tmp_path / "clips").mkdir()
    with av.open(str(tmp_path / "clips" / "walk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(24):
            frame = Image.new("RGB", (64, 48), (10 * i, 0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    (tmp_path / "clips" / "walk.txt").write_text("It dawns.")
    monkeypatch.chdir(tmp_path)
    run(*blocks("PDF pages"))
    run(*blocks("Video"))
    (page,) = Shards(tmp_path / "read_pages" / "train")
    assert page.answer == "A paper." and page.source == "my papers"
    (watched,) = Shards(tmp_path / "watched" / "train")
    frames = [Image.open(io.BytesIO(p.source)) for p in media(watched.messages, Picture)]
    red = [ImageStat.Stat(frame).mean[0] for frame in frames]
    assert watched.answer == "It dawns." and len(red) == 16 and red == sorted(red)

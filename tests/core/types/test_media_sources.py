"""Media in memory: images become exactly their PNG files, samples arrays with a rate."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as pil

from polyphi import Audio, Image, Message, TokensPrompt, parts
from polyphi.engine.encoders import items
from polyphi.media.media import decode_image
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.media_sources import audio_source, png

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16")


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(Tokenizer.train(["the quick brown fox"], vocab_size=384), crop_size=56)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def decoded(source: Any) -> np.ndarray:
    return np.asarray(decode_image(Image(source).source))


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_is_processed_as_its_png_file(
    processor: Processor, tmp_path: Path, mode: str
) -> None:
    picture = pil.fromarray(pixels(50, 130, 3))
    picture = picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)
    stored = picture if mode not in ("CMYK", "YCbCr", "HSV") else picture.convert("RGB")
    stored.save(tmp_path / "a.png")
    rows = []
    for part in (Image(tmp_path / "a.png"), Image(picture), replace(Image(picture), max_crops=4)):
        messages = [Message.user(part, "fox")]
        row = processor.row(messages, generation_prompt=True)
        assert processor.count(messages).total == len(row)
        assert processor.tokenize(messages) == row.ids.tolist()
        rows.append(row)
    file, memory, small = rows
    assert torch.equal(file.ids, memory.ids)
    assert torch.equal(file.inputs["image"].crops, memory.inputs["image"].crops)
    assert [item.key for item in items(file)] == [item.key for item in items(memory)]
    assert len(small) <= len(memory)


def test_a_pil_image_of_a_photo_is_turned() -> None:
    out, exif = io.BytesIO(), pil.Exif()
    exif[0x0112] = 6
    pil.fromarray(pixels(20, 10, 3)).save(out, "WEBP", lossless=True, exif=exif)
    photo = pil.open(out)
    np.testing.assert_array_equal(decoded(photo), decoded(out.getvalue()))
    assert decoded(photo).shape == (10, 20, 3)
    assert photo.size == (10, 20), "the user's image stays as it is"


def test_a_pil_image_with_damaged_exif_is_refused() -> None:
    out, exif = io.BytesIO(), pil.Exif()
    exif[0x010F], exif[0x0112] = "the camera", 6
    pil.fromarray(pixels(20, 10, 3)).save(out, "JPEG", exif=exif)
    data = out.getvalue().replace(b"\x01\x0f\0\2", b"\x01\0\0\2")  # a width that is a text
    assert data != out.getvalue()
    with pytest.raises(ValueError, match="the PIL image of"):
        Image(pil.open(io.BytesIO(data)))


def test_a_png_file_in_memory_is_reproducible(tmp_path: Path) -> None:
    """Caches and fingerprints by bytes see the same image twice, also after a change of the array."""
    array = pixels(9, 12, 3)
    first = Image(array)
    again = Image(array.copy())
    assert first == again and first.source == again.source
    assert first.source == Image(pil.fromarray(array)).source
    array[:] = 0
    assert first == again != Image(array)


@given(st.integers(1, 20), st.integers(5, 20), st.sampled_from([0, 1, 3, 4]))
def test_arrays_and_tensors_keep_every_pixel(height: int, width: int, channels: int) -> None:
    array = pixels(height, width, *([channels] if channels else []))
    picture = pil.fromarray(array[:, :, 0] if channels == 1 else array)
    expected = np.asarray(picture.convert("RGB"))
    # Both orders fit an image of 3 rows; a tensor is then read as [C H W].
    forms: list[Any] = [array, (array / 255).astype(np.float32), array / 255]
    if height not in (1, 3, 4):
        forms += [torch.from_numpy(array), torch.from_numpy(array / 255).float()]
    if channels:
        forms += [torch.from_numpy(array).permute(2, 0, 1)]
        if width not in (1, 3, 4):
            forms += [array.transpose(2, 0, 1)]
    for form in forms:
        assert np.array_equal(decoded(form), expected)


def test_bfloat16_and_gradients_are_read() -> None:
    tensor = torch.ones(3, 8, 9, dtype=torch.bfloat16, requires_grad=True)
    assert (decoded(tensor) == 255).all()
    assert decoded(memoryview(png(pixels(4, 5, 3)))).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 5, 5, 3), np.uint8), "list of images"),
        (np.zeros((5, 5, 2), np.uint8), r"\[5, 5, 2\]"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5, 5), np.int64), "int64"),
        (np.full((5, 5), 200.0), "200"),
        (np.full((5, 5), np.nan), "nan"),
        (np.full((5, 5), -1.0), "-1"),
        (pil.new("F", (5, 5)), "mode F"),
        (3, "found 3"),
        (None, "found None"),
        ([1, 2], "found list"),
    ],
)
def test_other_images_are_refused_in_one_line(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Image(source)
    assert "\n" not in str(error.value)


def test_a_damaged_pil_image_is_one_line(tmp_path: Path) -> None:
    pil.fromarray(pixels(40, 40, 3)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(ValueError, match="can't be read"):
        Image(pil.open(io.BytesIO(data[: len(data) // 2])))


def test_media_in_memory_fit_wherever_media_do(processor: Processor) -> None:
    picture = pil.fromarray(pixels(30, 40, 3))
    part = {"type": "image", "image": picture}
    expected = Message.user(Image(png(picture)), "fox")
    for message in (
        Message.user(picture, "fox"),
        Message.user(part, "fox"),
        Message("user", [picture, "fox"]),
        Message.user(*parts("<|image_1|>fox", images=[picture])),
        Message.parse({"role": "user", "content": [part, {"type": "text", "text": "fox"}]}),
        Message.parse({"role": "user", "content": [part, "fox"]}),
    ):
        assert message == expected
    assert TokensPrompt([1], [np.asarray(picture)]).parts == expected.parts[:1]


SAMPLES = np.random.default_rng(0).normal(0, 0.1, 1600).astype(np.float32)


@pytest.mark.parametrize(
    "audio",
    [
        Audio(SAMPLES, 16000),
        Audio((SAMPLES, 16000)),
        Audio(torch.from_numpy(SAMPLES), 16000.0),
        Audio((torch.from_numpy(SAMPLES)[None], 16000)),
        Audio(SAMPLES.tolist(), 16000),
        Audio({"array": SAMPLES, "sampling_rate": 16000, "path": None}),
    ],
)
def test_samples_in_memory_are_one_clip(processor: Processor, audio: Audio) -> None:
    rows = [processor.row([Message.user(one)]) for one in (Audio((SAMPLES, 16000)), audio)]
    assert [item.key for item in items(rows[0])] == [item.key for item in items(rows[1])]


def test_integers_are_read_as_a_file_of_them(processor: Processor, tmp_path: Path) -> None:
    integers = (SAMPLES * 32768).clip(-32768, 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", integers, 16000)
    rows = [
        processor.row([Message.user(audio)])
        for audio in (Audio(tmp_path / "a.wav"), Audio(integers, 16000))
    ]
    assert [item.key for item in items(rows[0])] == [item.key for item in items(rows[1])]


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (SAMPLES, None, "sample_rate: .* found none"),
        ((16000, SAMPLES), None, "swap them"),
        ("a.wav", 16000, "leave it out"),
        (SAMPLES, "16000", "sample_rate: .*'16000'"),
        (SAMPLES, 0.5, "sample_rate: .*0.5"),
        (["a"], 16000, "samples as numbers"),
        (3, None, "found 3"),
        (None, None, "found None"),
    ],
)
def test_other_audio_is_refused_in_one_line(audio: Any, rate: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        audio_source(audio, rate)
    assert "\n" not in str(error.value)

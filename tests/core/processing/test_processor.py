"""Rows: as many placeholders as the model has outputs, labels only if requested, errors with both numbers."""

import base64
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyphi.media import media
from polyphi.media.media import LONGEST_AUDIO_SECONDS, Caps, MediaError
from polyphi.processing import audio
from polyphi.processing.expansion import expand
from polyphi.processing.image import ImageReader
from polyphi.processing.processor import Processor, TooLong
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.steps import result_of, run_all
from polyphi.types.batch import IGNORE, pack
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text, Video
from tests.fixtures.images import film

Make = Callable[..., bytes]


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, crop_size=56, max_crops=6)


def sound(samples: int, rate: int = 16000) -> Audio:
    return Audio((np.zeros(samples, np.float32), rate))


def test_a_picture_fills_its_placeholders(processor: Processor, png: Make) -> None:
    row = processor.row(
        [Message.user("Look", Image(png(100, 40)), "What?")], generation_prompt=True
    )
    (layout,) = row.inputs["image"].layouts
    assert layout.tokens(2) == 7 + 2 * 5 == len(row.inputs["image"].slots)
    assert (
        row.inputs["image"].slots.tolist()
        == (row.ids == processor.tokenizer.image_id).nonzero().flatten().tolist()
    )
    assert row.inputs["image"].crops.dtype == torch.uint8 and row.inputs["image"].crops.shape == (
        2,
        3,
        56,
        56,
    )
    assert row.inputs["image"].views.shape == (1, 3, 56, 56) and row.inputs[
        "image"
    ].masks.shape == (3, 4, 4)
    assert (
        row.adapters == ("vision",)
        and row.cu_seqlens == (0, len(row.ids))
        and row.seq_lens == (len(row.ids),)
    )
    assert row.labels is None and set(row.inputs) == {"image"}


@pytest.mark.parametrize(
    ("parts", "adapter", "branch"),
    [
        ("", None, None),
        ("a", "speech", "speech"),
        ("ai", "vision", "vision"),
        ("i", "vision", None),
    ],
)
def test_content_chooses_adapter_and_branch(
    processor: Processor, png: Make, parts: str, adapter: str | None, branch: str | None
) -> None:
    kinds = {"a": sound(1600), "i": Image(png(56, 56))}
    message = Message("user", (*(kinds[k] for k in parts), Text("Hi")))
    row = processor.row([message])
    forced = processor.row([message], adapter="vision")
    assert row.adapters == (adapter,) and forced.adapters == ("vision",)
    for one in (row, forced):
        clips = one.inputs["audio"].layouts if branch else ()
        assert [c.branch for c in clips] == ([branch] if branch else [])
        assert len(one.inputs) == len(parts)
    assert processor.row([message], adapter=None).adapters == (None,)


def test_the_answer_is_supervised_and_nothing_else(processor: Processor, png: Make) -> None:
    chat = [
        Message.user(Image(png(56, 56)), "What?"),
        Message.assistant("A dog."),
        Message.user("Sure?"),
    ]
    chat.append(Message.assistant("Yes."))
    row = processor.row(chat, supervise="answers")
    expected = row.labels[row.labels != IGNORE]
    assert processor.tokenizer.decode(expected.tolist()) == "A dog.<|end|>Yes.<|end|>"
    assert row.supervised.tolist() == (row.labels != IGNORE).nonzero().flatten().tolist()
    assert (row.labels[row.supervised] == row.ids[row.supervised + 1]).all()
    everything = processor.row(chat, supervise="all")
    assert processor.tokenizer.image_id not in everything.labels
    assert len(everything.supervised) == len(row.ids) - 1 - len(row.inputs["image"].slots)


def test_a_document_is_all_supervised_but_its_media(processor: Processor, png: Make) -> None:
    for supervise in ("answers", "all"):
        row = processor.row(
            [Message("document", (Text("The dog."), Image(png(56, 56))))], supervise=supervise
        )
        learnt = row.labels[row.labels != IGNORE].tolist()
        assert processor.tokenizer.decode(row.ids[:1].tolist() + learnt) == "The dog.<|endoftext|>"


def test_tool_calls_are_control_tokens_in_training_only(processor: Processor) -> None:
    chat = [Message.user("Go"), Message.assistant("<|tool_call|>[]<|/tool_call|>")]
    mark = processor.tokenizer.control("<|tool_call|>")
    assert (
        mark in processor.row(chat, supervise="answers").ids and mark not in processor.row(chat).ids
    )
    assert mark in processor.row(chat, trusted=True).ids
    assert mark not in processor.row(chat, supervise="answers", trusted=False).ids


def test_rows_that_do_not_fit(processor: Processor, png: Make) -> None:
    chat = [Message.user(Image(png(56, 56)), "What is it?")]
    length = len(processor.row(chat))
    assert len(processor.row(chat, context=length)) == length
    with pytest.raises(TooLong, match=f"{length} tokens, .* {length - 1}"):
        processor.row(chat, context=length - 1)
    document = [Message("document", (Text("dog " * 50),))]
    cut = processor.row(document, context=20, truncate=True, supervise="all")
    assert cut.ids.equal(processor.row(document).ids[:20]) and len(cut.supervised) == 19
    with pytest.raises(ValueError, match="the context holds 5"):  # would cut the picture
        processor.row(
            [Message("document", (Text("a"), Image(png(56, 56))))], context=5, truncate=True
        )


def test_text_that_is_surely_too_long_is_not_encoded(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is for all texts of a row; each medium counts as at least one token."""

    def refuse(*_: object) -> None:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(type(processor.tokenizer), "encode_slices", refuse)
    many, some = "😀" * 50_000, "😀" * 20_000
    count = processor.tokenizer.min_tokens
    chats = {
        count(many): [Message.user(many)],
        3 * count(some): [Message.user(some), Message.assistant(some), Message.user(some)],
        count(many) + count("Hi"): [Message.system("Hi", tools=many), Message.user("")],
    }
    for least, chat in chats.items():
        with pytest.raises(TooLong, match="the context holds 131072") as caught:
            processor.row(chat, context=131_072)
        assert least < int(str(caught.value).split("at least ")[1].split()[0]) < least + 10
    document = [Message("document", (Text(many),))]
    with pytest.raises(TooLong):
        processor.row(document, context=131_072)
    with pytest.raises(AssertionError, match="encoded"):  # what is cut off is counted
        processor.row(document, context=131_072, truncate=True)


def test_encoding_ends_where_the_context_does(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, slices = "the quick brown fox " * 100_000, []
    encode = Tokenizer.encode_slices

    def counting(self: Tokenizer, text: str):
        for ids in encode(self, text):
            slices.append(len(ids))
            yield ids

    monkeypatch.setattr(Tokenizer, "encode_slices", counting)
    context = processor.tokenizer.min_tokens(text) + 10
    with pytest.raises(TooLong, match=f"the context holds {context}"):
        processor.row([Message.user(text[:1000], text[1000:])], context=context)
    assert 1 < len(slices) < 100 and sum(slices[:-1]) < context < sum(slices) + 10


def test_too_many_ids_are_refused_at_once(processor: Processor) -> None:
    ids = [0] * 2_000_000
    with pytest.raises(TooLong, match=r"2000000 tokens, .*512"):
        processor.ids_row(ids, context=512)
    with pytest.raises(TooLong, match="at least 600 tokens"):
        processor.ids_row([0] * 599 + [10**9], context=512)


def test_bytes_of_media_are_known_before_they_are_decoded(
    processor: Processor, png: Make, clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [Image(png(56, 56)), Image(png(300, 200)), Image(png(300, 200), "low"), "Hi"]
    parts += [Audio(clip(16_000)), Audio(clip(9000, 44_100, 2, "FLAC")), sound(5000, 8000)]
    chats = [[Message.user(*parts)], [Message.user("Hi")], [Message.user(p) for p in parts]]
    rows = [processor.row(chat) for chat in chats]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageReader, "decoded", refuse)
    monkeypatch.setattr(media.AudioStream, "__iter__", refuse)
    media_sizes = [result_of(processor.media_size(chat)) for chat in chats]
    sizes, pixels, most_pixels = zip(*media_sizes, strict=True)
    assert list(sizes) == [row.nbytes - row.without_values().nbytes for row in rows]
    assert sizes[0] == sizes[2] > sizes[1] == 0
    assert pixels == (56 * 56 + 2 * 300 * 200, 0, 56 * 56 + 2 * 300 * 200)
    assert most_pixels == (300 * 200, 0, 300 * 200)
    with pytest.raises(MediaError) as caught:
        result_of(processor.media_size([Message.user(Image(png(56, 56)), Image(b"no image"))]))
    assert (caught.value.part, caught.value.number) == ("image", 1)


def test_an_mp3_clips_bytes_are_estimated(processor: Processor, clip: Make) -> None:
    chat = [Message.user(Audio(clip(48_000, format="MP3")))]
    true = processor.row(chat).inputs["audio"].mels.nbytes
    assert abs(result_of(processor.media_size(chat))[0] - true) < true / 4


def test_max_crops_can_be_lowered_per_row(processor: Processor, png: Make) -> None:
    chat = [Message.user(Image(png(300, 200)))]
    full, low, high = (processor.row(chat, max_crops=n) for n in (None, 1, 100))
    assert [row.inputs["image"].size for row in (full, low, high)] == [7, 2, 7]
    assert processor.count(chat, max_crops=1, generation_prompt=False).total == len(low)


def test_a_picture_asks_for_its_own_crops(processor: Processor, png: Make) -> None:
    def crops(**options: object) -> int:
        return (
            processor.row([Message.user(Image(png(300, 200), **options))])
            .inputs["image"]
            .layouts[0]
            .crops
        )

    assert crops() == crops(detail="auto") == crops(detail="high") == crops(max_crops=99) == 7
    assert crops(detail="low") == crops(max_crops=1) == 2
    assert crops(detail="low", max_crops=4) == crops(max_crops=4) < 7
    two = [Message.user(Image(png(300, 200), "low"), Image(png(300, 200)))]
    assert [i.crops for i in processor.row(two).inputs["image"].layouts] == [2, 7]
    assert [i.crops for i in processor.row(two, max_crops=1).inputs["image"].layouts] == [2, 2]


def test_openai_details_reach_the_row(processor: Processor, png: Make) -> None:
    address = "data:image/png;base64," + base64.b64encode(png(300, 200)).decode()

    def crops(**beside: object) -> int:
        part = {"type": "image_url", "image_url": {"url": address, **beside}}
        return processor.row([{"role": "user", "content": [part]}]).inputs["image"].layouts[0].crops

    assert crops() == crops(detail="high") == crops(detail=None) == 7
    assert crops(detail="low") == crops(max_crops=1) == 2


def test_a_video_is_its_frames(processor: Processor) -> None:
    walk = film(12, size=(112, 96))
    chat = [Message.user(Video(walk, frames=5), "What happens?")]
    row = processor.row(chat, generation_prompt=True)
    assert row.adapters == ("vision",) and [i.crops for i in row.inputs["image"].layouts] == [5] * 5
    assert processor.count(chat).total == len(row)
    brightness = [float(view.mean()) for view in row.inputs["image"].views]
    assert brightness == sorted(brightness) and brightness[-1] > brightness[0] + 0.5
    low = processor.row([Message.user(Video(walk, frames=2, detail="low"))])
    assert [i.crops for i in low.inputs["image"].layouts] == [2, 2]
    frames_row = processor.row(expand(chat), generation_prompt=True)
    assert frames_row.ids.equal(row.ids) and frames_row.inputs["image"].crops.equal(
        row.inputs["image"].crops
    )
    assert frames_row.inputs["image"].views.equal(row.inputs["image"].views)


def test_openai_style_messages_are_read(processor: Processor) -> None:
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]},
    ]
    assert processor.row(chat).ids.equal(
        processor.row([Message.user("Hi"), Message.assistant("Ho")]).ids
    )


def test_bad_media_stop_the_row(processor: Processor, tmp_path) -> None:
    path = tmp_path / "letter.png"
    path.write_text("Dear Sir")
    with pytest.raises(ValueError, match=r"letter\.png: .*PNG.*text"):
        processor.row([Message.user(Image(path))])
    with pytest.raises(ValueError, match="a file"):
        processor.row([Message.user(Audio(tmp_path / "none.wav"))])
    with pytest.raises(ValueError, match="28 divides it"):
        Processor(processor.tokenizer, crop_size=100)
    with pytest.raises(
        (ValueError, TypeError), match=r"supervise|Type-check"
    ):  # the latter where types are checked
        processor.row([Message.user("Hi")], supervise="some")


def test_ids_with_single_and_with_expanded_placeholders(processor: Processor, png: Make) -> None:
    parts = [
        Image(png(100, 40)),
        Image(png(56, 56, seed=1)),
        Audio((np.ones(8000, np.float32), 16000)),
    ]
    row = processor.row([Message.user(*parts, "What?")], generation_prompt=True)
    image, sound = processor.tokenizer.image_id, processor.tokenizer.audio_id
    single = [
        row.ids[0].item(),
        image,
        image,
        sound,
        *row.ids[row.inputs["audio"].slots[-1] + 1 :].tolist(),
    ]
    for ids in (single, row.ids.tolist()):
        again = processor.ids_row(ids, parts)
        assert again.ids.equal(row.ids) and again.adapters == row.adapters
        for name, inputs in row.inputs.items():
            same = again.inputs[name]
            assert same.layouts == inputs.layouts and same.tensors.keys() == inputs.tensors.keys()
            assert all(tensor.equal(same.tensors[n]) for n, tensor in inputs.tensors.items())
        assert again.inputs.keys() == row.inputs.keys() == {"image", "audio"}
    assert processor.ids_row([1, 2, 3]).adapters == (None,)
    assert processor.ids_row(single, parts, adapter="speech").adapters == ("speech",)


def test_ids_with_wrong_placeholders_are_refused(processor: Processor, png: Make) -> None:
    image = processor.tokenizer.image_id
    with pytest.raises(
        ValueError,
        match=f"1 placeholders of id {image}, or 13 .*2",
    ):
        processor.ids_row([1, image, image], [Image(png(56, 56))])
    with pytest.raises(ValueError, match="found 1"):
        processor.ids_row([1, image])
    with pytest.raises(ValueError, match="too early"):
        processor.ids_row([image] * 6 + [1] + [image] * 7, [Image(png(56, 56))])
    with pytest.raises(ValueError, match="between 0 and 511, found 512"):
        processor.ids_row([512])
    with pytest.raises(TooLong, match="the context holds 2"):
        processor.ids_row([1, 2, 3], context=2)


MEDIA = st.one_of(
    st.tuples(  # a picture of that size, and what it asks for
        st.integers(40, 200),  # thinner ones are refused where one crop is asked for
        st.integers(40, 200),
        st.sampled_from(["auto", "low", "high"]),
        st.one_of(st.none(), st.integers(1, 9)),
    ),
    st.tuples(st.integers(1, 9000), st.sampled_from(["WAV", "FLAC", "OGG", "MP3"])),  # a file
    st.tuples(st.integers(1, 9000), st.sampled_from([8000, 16000, 22050])).map(
        lambda c: (np.zeros(c[0], np.float32), c[1])
    ),
    st.sampled_from(["dog", " and <|user|> ", "\n"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(MEDIA, max_size=3), min_size=1, max_size=3),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_slots_are_as_many_as_the_model_fills(
    processor: Processor, png: Make, clip: Make, turns: list, bound: int | None
) -> None:
    def part(value: object) -> object:
        if isinstance(value, str):
            return Text(value)
        if len(value) == 4:
            return Image(png(*value[:2]), *value[2:])
        if isinstance(value[0], int):
            return Audio(clip(value[0], format=value[1]))
        return Audio(value)

    messages = [Message("user", tuple(map(part, turn))) for turn in turns]
    row = processor.row(messages, generation_prompt=True, max_crops=bound)
    cost = processor.count(messages, max_crops=bound)
    assert cost.total == len(row) == cost.text + cost.image + cost.audio
    images, audio = row.inputs.get("image"), row.inputs.get("audio")
    for inputs, id, counted in (
        (images, processor.tokenizer.image_id, cost.image),
        (audio, processor.tokenizer.audio_id, cost.audio),
    ):
        assert counted == (row.ids == id).sum() == (0 if inputs is None else len(inputs.slots))
        if inputs is not None:
            assert counted == sum(inputs.tokens) and (row.ids[inputs.slots] == id).all()
    if images is not None:
        assert len(images.ready().crops) == len(images.masks) == images.size
        assert images.size == len(images.layouts) + len(images.crops)
    if audio is not None:
        assert len(audio.mels) == audio.size
    both = pack([row, row])
    assert len(both) == 2 * len(row) and torch.equal(both.ids, row.ids.repeat(2))


def test_an_error_names_the_bad_part(processor: Processor, png: Make) -> None:
    """By its type and its index among parts of that type, in a conversation, among given ids, and in `count`."""
    good, audio = Image(png(56, 56)), sound(1600)
    cut, slow = Image(png(56, 56)[:-30]), sound(1600, 4000)
    id = processor.tokenizer.image_id
    for parts, kind, number in (
        ((good, audio, cut, good), "image", 1),
        ((cut, slow), "audio", 0),  # clips are decoded before pictures
        ((audio, good, audio, slow), "audio", 2),
        ((good, Image(b"no"), audio), "image", 1),
    ):
        talk = [Message.user(part) for part in parts]
        with pytest.raises(MediaError) as error:
            processor.row(talk)
        assert (error.value.part, error.value.number) == (kind, number)
    with pytest.raises(MediaError) as error:
        processor.ids_row([id, id], [good, cut])
    assert (error.value.part, error.value.number, error.value.reason) == ("image", 1, "content")
    with pytest.raises(MediaError) as error:
        processor.count([Message.user(good, Image(b"no"), slow)])
    assert (error.value.part, error.value.number, error.value.reason) == ("image", 1, "kind")


def test_error_messages_of_libraries_are_not_exposed(
    processor: Processor, png: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("object at 0x7f0000")

    monkeypatch.setattr(media, "decode_image", broken)
    with pytest.raises(MediaError, match=r"^image 0 of") as error:
        processor.row([Message.user(Image(png(56, 56)))])
    assert error.value.part == "image" and "0x7f" in str(error.value.__cause__)


def test_caps_can_be_set(tokenizer: Tokenizer, png: Make) -> None:
    small = Processor(tokenizer, crop_size=56, caps=Caps(image_pixels=3000, audio_seconds=1))
    assert len(small.row([Message.user(Image(png(50, 60)), sound(16000))]))
    small.caps = Caps(image_pixels=2999, audio_seconds=1)
    for part in (Image(png(50, 60)), sound(16001)):
        for ask in (small.row, small.count):
            with pytest.raises(MediaError, match=r"pixels|may last 1 s") as error:
                ask([Message.user(part)])
            assert error.value.reason == "size"


def test_media_that_cannot_fit_are_not_decoded(
    processor: Processor, png: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are counted from their headers, audio clip by clip from theirs until the limit is exceeded."""
    rates: list[int] = []
    log_mel_of = audio.log_mel_of

    def count(blocks: media.AudioStream, rate: int) -> torch.Tensor:
        rates.append(rate)
        return log_mel_of(blocks, rate)

    monkeypatch.setattr(audio, "log_mel_of", count)
    monkeypatch.setattr(media, "decode_image", None)
    with pytest.raises(TooLong, match=r"row .*tokens, .*20"):
        processor.row([Message.user(Image(png(100, 40)), sound(16000), "Hi")] * 9, context=20)
    assert rates == []
    with pytest.raises(TooLong, match=r"row .*40 tokens, .*29"):
        processor.row([Message("document", (sound(16000),) * 9)], context=29)
    assert len(rates) == 2


def test_a_header_that_promises_hours_is_enough_to_refuse_them(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the option, unless it is at its end already."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * 2100, np.int16), 8000, format="FLAC")
    clip = [Message.user(Audio(file.getvalue()))]
    monkeypatch.setattr(media, "sound_blocks", None)  # nothing is decoded
    size = run_all(processor.media_size)
    for ask in (processor.row, processor.count, size):
        with pytest.raises(MediaError, match=r"1800 s, found 2100.*max_audio_seconds.*45,000"):
            ask(clip)
    processor.caps = Caps.for_audio(2100)
    assert processor.count(clip).audio == 2100 * 100 // 8
    with pytest.raises(TooLong, match=r"26\d{3} tokens, .*8192"):
        processor.row(clip, context=8192)
    processor.caps = replace(Caps.for_audio(LONGEST_AUDIO_SECONDS), audio_bytes=10)
    with pytest.raises(MediaError, match=r"10 bytes"):
        processor.count(clip)

"""Work on token ids, embeddings and chosen positions through `Phi`: ids equal messages, and many equal one by one."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as PIL

import polyphi
from polyphi import Audio, Image, Message, SamplingParams, Text, TokensPrompt, parts
from polyphi.engine.rows import parse_prompt
from polyphi.media import media as decoders
from polyphi.model.config import ModelConfig
from polyphi.processing.tokenizer import NoTokenizer, Tokenizer
from polyphi.types.sampling import Grammar
from tests.fixtures.engines import fitted, make_engine, save
from tests.fixtures.images import film

EIGHT = SamplingParams(max_tokens=8)
# Matrix products with another number of rows may sum in another order. Measured at most 8e-6 on logits of up to 6.
ROUNDING = 5e-5


@pytest.fixture
def folder(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """A checkpoint with its tokenizer. The weights are large, so that answers don't repeat one token."""
    tokenizer = Tokenizer.train(["the quick brown fox", "jumps <sep>"], vocab_size=384)
    return save(make_engine(fitted(tiny_config, tokenizer), tokenizer), tmp_path / "model")


@pytest.fixture
def phi(folder: Path) -> polyphi.Phi:
    return polyphi.load(folder, device="cpu")


@pytest.fixture
def media(tmp_path: Path) -> tuple[Path, Path]:
    """An image and an audio clip at 48 kHz."""
    noise = np.random.default_rng(0)
    PIL.fromarray(noise.integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", noise.normal(0, 0.1, 24000).astype(np.float32), 48000)
    return tmp_path / "a.png", tmp_path / "a.wav"


def chats(media: tuple[Path, Path]) -> list[tuple[list[Message], list[Path], list[Path]]]:
    """Conversations with their images and audio clips, one for each adapter."""
    image, audio = media
    return [
        ([Message.system("be brief"), Message.user("the quick fox")], [], []),
        ([Message.user(Image(image), "what is this?")], [image], []),
        ([Message.user(Audio(audio), "say it")], [], [audio]),
        (
            [Message.user("fox", Audio(audio), Image(image)), Message.assistant("a")],
            [image],
            [audio],
        ),
    ]


# ---- generating from ids --------------------------------------------------------------------------------


def test_ids_give_the_answer_of_their_messages(phi: polyphi.Phi, media: tuple[Path, Path]) -> None:
    for messages, images, audios in chats(media):
        expected = phi.generate(messages, sampling=EIGHT)
        assert len(expected.tokens) == 8 and expected.text
        ids = phi.tokenize(messages)
        assert ids == phi.logits(messages)[0].tolist()
        assert len(ids) == expected.prompt_tokens == phi.count(messages).total
        short = torch.unique_consecutive(torch.tensor(ids))  # one placeholder for each
        for prompt in (ids, torch.tensor(ids), np.array(ids), short):
            assert phi.generate(prompt, images, audios, sampling=EIGHT) == expected
        prompt = TokensPrompt(ids, images, audios)
        assert phi.generate(prompt, sampling=EIGHT) == expected
        pieces = list(phi.stream(ids, images=images, audios=audios, sampling=EIGHT))
        assert "".join(piece.text for piece in pieces) == expected.text
        assert sum((piece.tokens for piece in pieces), ()) == expected.tokens
        assert pieces[-1].completion == expected


def test_many_prompts_of_any_form_equal_one_by_one(
    phi: polyphi.Phi, media: tuple[Path, Path]
) -> None:
    prompts = [messages for messages, _, _ in chats(media)]
    prompts += [TokensPrompt(phi.tokenize(m), i, a) for m, i, a in chats(media)]
    prompts.append(phi.tokenize([Message.user("fox")]))
    alone = [phi.generate(prompt, sampling=EIGHT) for prompt in prompts]
    assert phi.generate_many(prompts, sampling=EIGHT) == alone
    assert alone[:4] == alone[4:8]


def test_media_keep_their_settings_beside_ids(phi: polyphi.Phi, media: tuple[Path, Path]) -> None:
    small = Image(media[0], max_crops=1)
    messages = [Message.user(small, "fox")]
    ids = phi.tokenize(messages)
    assert len(ids) < len(phi.tokenize([Message.user(Image(media[0]), "fox")]))
    samples = (np.zeros(8000, np.float32), 16000)
    answer = phi.generate(ids, [small], sampling=EIGHT)
    assert answer == phi.generate(messages, sampling=EIGHT)
    answer = phi.generate([phi.tokenizer.audio_id], audios=[Audio(samples)], sampling=EIGHT)
    assert answer == phi.generate([phi.tokenizer.audio_id], audios=[samples], sampling=EIGHT)


def test_tokenize_reads_headers_only(
    phi: polyphi.Phi, media: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [Message.user(Image(media[0]), Audio(media[1]), "fox")]
    expected = phi.logits(messages)[0].tolist()
    monkeypatch.setattr(decoders, "decode_image", None)
    monkeypatch.setattr(decoders.AudioStream, "__iter__", None)
    assert phi.tokenize(messages) == expected
    monkeypatch.undo()
    whole = phi.tokenize(messages, generation_prompt=False)
    assert whole[:-1] == expected[:-1] and whole[-1] == phi.tokenizer.control("<|endoftext|>")
    seen = [Message.user(polyphi.Video(film(16), frames=2), "what?")]
    assert phi.tokenize(seen) == phi.logits(seen)[0].tolist()
    with pytest.raises(ValueError, match=r"none\.png"):
        phi.tokenize([Message.user(Image("none.png"))])


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ([], "empty list"),
        (3, r"found 3 \(int\)"),
        (None, "found None"),
        (["fox", "dog"], "generate_many"),
        ([[Message.user("fox")]], "generate_many"),
        (torch.zeros(2, 3, dtype=torch.long), r"\[2, 3\]"),
        ([1, 2.5], r"2\.5"),
        (torch.tensor([0.5]), r"0\.5"),
        ([1, Message.user("fox")], "Message"),
    ],
)
def test_prompts_that_are_none(prompt: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse_prompt(prompt)


def test_ids_and_media_must_fit(phi: polyphi.Phi, media: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="more images"):
        phi.generate([Message.user("fox")], [media[0]])
    with pytest.raises(ValueError, match="TokensPrompt"):
        phi.stream(TokensPrompt([1]), [media[0]])
    with pytest.raises(ValueError, match="placeholders"):
        phi.generate([5, 6], [media[0]])
    with pytest.raises(ValueError, match=f"found {phi.tokenizer.vocab_size}"):
        phi.generate([phi.tokenizer.vocab_size])


# ---- logits at the last positions, and of many prompts --------------------------------------------------


@pytest.mark.parametrize("last", [1, 3, 10_000])
def test_last_logits_are_the_tail(phi: polyphi.Phi, media: tuple[Path, Path], last: int) -> None:
    sizes = []
    head = phi.model.decoder.logits
    phi.model.decoder.logits = lambda hidden: sizes.append(len(hidden)) or head(hidden)
    for messages, _, _ in chats(media):
        ids, full = phi.logits(messages)
        again, tail = phi.logits(messages, last=last)
        count = min(last, len(ids))
        assert sizes[-1] == count  # the head ran for these positions alone
        assert torch.equal(ids, again) and tail.shape == (count, full.shape[1])
        assert tail.dtype == torch.float32 and tail.device.type == "cpu"
        torch.testing.assert_close(tail, full[-count:], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("last", [None, 1, 4])
def test_logits_of_many_equal_one_by_one(
    phi: polyphi.Phi, media: tuple[Path, Path], last: int | None
) -> None:
    prompts: list = [messages for messages, _, _ in chats(media)]
    prompts += [TokensPrompt(phi.tokenize(m), i, a) for m, i, a in chats(media)]
    prompts.append(torch.arange(60))
    prompts.append(
        torch.arange(300) % 60
    )  # past the switch of the LongRoPE tables: packed with short ones
    many = phi.logits_many(prompts, last=last)
    assert len(many) == len(prompts)
    for prompt, (ids, logits) in zip(prompts, many, strict=True):
        expected_ids, expected = phi.logits(prompt, last=last)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(logits, expected, rtol=0, atol=ROUNDING)
    assert phi.logits_many([]) == []


def test_logits_of_many_run_together(phi: polyphi.Phi) -> None:
    calls = []
    hidden = phi.engine.runner.hidden
    phi.engine.runner.hidden = lambda *args: calls.append(len(args[0])) or hidden(*args)
    phi.logits_many([[1, 2, 3], [4, 5]], last=1)
    assert calls == [5]
    phi.engine.prefill = 4
    phi.logits_many([[1, 2, 3], [4, 5], [6], [7] * 9], last=1)
    assert calls[1:] == [3, 3, 9]
    for last in (0, -1):
        with pytest.raises(ValueError, match=f"found {last}"):
            phi.logits([1, 2], last=last)


# ---- embeddings -----------------------------------------------------------------------------------------


def test_embeddings_are_what_the_decoder_receives(
    phi: polyphi.Phi, media: tuple[Path, Path]
) -> None:
    image, audio = media
    width = phi.config.decoder.hidden_size
    for part, projector, messages in (
        (Image(image), "speech", [Message.user(Image(image))]),
        (Image(image, "low"), "speech", [Message.user(Image(image, "low"))]),
        (Audio(audio), "speech", [Message.user(Audio(audio))]),
        (Audio(audio), "vision", [Message.user(Image(image), Audio(audio))]),
    ):
        vectors = phi.embed(part, projector=projector)
        count = phi.count(messages)
        own = count.image if isinstance(part, Image) else count.audio
        assert vectors.shape == (own, width)
        assert vectors.dtype == torch.float32 and not vectors.is_inference()
        row = phi.engine.rows.row(messages)
        slots = row.inputs["image" if isinstance(part, Image) else "audio"].slots
        with torch.no_grad():
            x = phi.model.embed(row)[slots]
        torch.testing.assert_close(vectors, x, rtol=0, atol=ROUNDING)


def test_embeddings_use_the_encoder_cache(phi: polyphi.Phi, media: tuple[Path, Path]) -> None:
    first = phi.embed(Image(media[0]))
    expected = first.clone()
    first.zero_()  # the caller's copy, not the cache
    assert torch.equal(phi.embed(Image(media[0])), expected)
    phi.generate([Message.user(Image(media[0]), "what?")], sampling=EIGHT)
    assert phi.engine.encoders.calls == 1 and phi.engine.counters().encoder_hits == 2
    with torch.no_grad():
        phi.model.vision.projector.get_parameter("global_separator").add_(1.0)
    assert not torch.equal(phi.embed(Image(media[0])), expected)  # other weights, other vectors
    assert (
        polyphi.Phi(phi.model.bfloat16(), phi.processor).embed(Audio(media[1])).dtype
        == torch.float32
    )


def test_embed_refuses_other_things(phi: polyphi.Phi, media: tuple[Path, Path]) -> None:
    for wrong in (Text("fox"), media[0], polyphi.Video(media[0])):
        with pytest.raises(ValueError, match=f"found {type(wrong).__name__}"):
            phi.embed(wrong)
    with pytest.raises(ValueError, match="'text'"):
        phi.embed(Audio(media[1]), projector="text")
    phi.model.vision = None
    with pytest.raises(ValueError, match="no encoder"):
        phi.embed(Image(media[0]))


# ---- without a tokenizer --------------------------------------------------------------------------------


def test_a_model_without_tokenizer_works_on_ids(
    folder: Path, phi: polyphi.Phi, media: tuple[Path, Path]
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="tokenizer=None"):
        polyphi.load(folder)
    bare = polyphi.load(folder, device="cpu", tokenizer=None)
    assert isinstance(bare.tokenizer, NoTokenizer)
    assert set(bare.tokenizer.eos_ids) == set(phi.tokenizer.eos_ids)
    for messages, images, audios in chats(media):
        ids = phi.tokenize(messages)
        expected = phi.generate(messages, sampling=EIGHT)
        answer = bare.generate(ids, images, audios, sampling=EIGHT)
        assert answer == replace(expected, text="")
        pieces = list(bare.stream(ids, images, audios, sampling=EIGHT))
        assert len(pieces) > 1 and sum((piece.tokens for piece in pieces), ()) == expected.tokens
        full, same = phi.logits(messages)[1], bare.logits(ids, images, audios)[1]
        torch.testing.assert_close(full, same, rtol=0, atol=0)
    assert torch.equal(bare.embed(Image(media[0])), phi.embed(Image(media[0])))
    sampled = SamplingParams(max_tokens=8, temperature=1.0, seed=3, logprobs=2, n=2)
    expected = phi.generate(ids, images, audios, sampling=sampled)
    completion = bare.generate(ids, images, audios, sampling=sampled)
    assert [c.tokens for c in (completion, *completion.others)] == [
        c.tokens for c in (expected, *expected.others)
    ]


def test_answers_without_tokenizer_end_where_the_model_ends_them(
    folder: Path, phi: polyphi.Phi
) -> None:
    expected = phi.generate([5, 6, 7], sampling=EIGHT)
    bare = polyphi.load(folder, device="cpu", tokenizer=None)
    bare.tokenizer._eos_ids = (expected.tokens[3],)
    answer = bare.generate([5, 6, 7], sampling=EIGHT)
    at = expected.tokens.index(expected.tokens[3])
    assert (answer.tokens, answer.finish_reason) == (expected.tokens[:at], "stop")


def test_what_needs_text_says_how_to_get_it(folder: Path, media: tuple[Path, Path]) -> None:
    bare = polyphi.load(folder, device="cpu", tokenizer=None)
    messages = [Message.user("fox")]
    for call in (
        lambda: bare.generate(messages),
        lambda: bare.stream([Message.user(Image(media[0]))]),
        lambda: bare.count(messages),
        lambda: bare.tokenize(messages),
        lambda: bare.logits(messages),
        lambda: bare.score([1, 2], "fox"),
        lambda: bare.transcribe((np.ones(16000, np.float32), 16000)),
        lambda: bare.tokenizer.encode("fox"),
        lambda: bare.tokenizer.decode([1]),
        lambda: bare.tokenizer.control("<|user|>"),
        lambda: bare.tokenizer.save(folder / "copy"),
        lambda: bare.generate([1, 2], sampling=SamplingParams(stop=("fox",))),
        lambda: bare.generate([1, 2], sampling=SamplingParams(stop_at_calls="f")),
        lambda: bare.generate([1, 2], sampling=SamplingParams(grammar=Grammar("regex", "a"))),
    ):
        with pytest.raises(ValueError, match="tokenizer='auto'"):
            call()
    assert bare.engine.counters().requests == 0


def test_a_tokenizer_by_path_or_object(folder: Path, tmp_path: Path, phi: polyphi.Phi) -> None:
    (tmp_path / "apart").mkdir()
    (folder / "tokenizer.json").rename(tmp_path / "apart/tokenizer.json")
    expected = phi.generate([Message.user("fox")], sampling=EIGHT)
    for tokenizer in (tmp_path / "apart", str(tmp_path / "apart/tokenizer.json"), phi.tokenizer):
        again = polyphi.load(folder, device="cpu", tokenizer=tokenizer)
        assert again.generate([Message.user("fox")], sampling=EIGHT) == expected
    with pytest.raises(ValueError, match="nothing"):
        polyphi.load(folder, tokenizer=tmp_path / "none")
    with pytest.raises(ValueError, match=r"placeholder|embedding only"):
        polyphi.load(folder, tokenizer=Tokenizer.train(["many other words " * 9], vocab_size=448))


# ---- adapters by name -----------------------------------------------------------------------------------


def test_none_is_a_name_too(phi: polyphi.Phi, media: tuple[Path, Path]) -> None:
    messages, images, audios = chats(media)[1]
    ids = phi.tokenize(messages)
    bare = phi.generate(messages, sampling=EIGHT, adapter=None)
    assert bare != phi.generate(messages, sampling=EIGHT)
    for prompt in (messages, TokensPrompt(ids, images, audios)):
        assert phi.generate(prompt, sampling=EIGHT, adapter="none") == bare
        (*_, piece) = phi.stream(prompt, sampling=EIGHT, adapter="none")
        assert piece.completion == bare and bare.adapter is None
        for call in (phi.logits, lambda p, adapter: phi.logits_many([p], adapter=adapter)[0]):
            assert torch.equal(call(prompt, adapter="none")[1], call(prompt, adapter=None)[1])
        assert phi.score(prompt, "fox", adapter="none") == phi.score(prompt, "fox", adapter=None)
    assert phi.processor.row(messages, adapter="none").adapters == (None,)
    assert phi.processor.ids_row(ids, prompt.parts, "none").adapters == (None,)
    wave = (np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32), 16000)
    transcripts = [phi.transcribe(wave, sampling=EIGHT, adapter=name) for name in ("none", None)]
    assert transcripts[0] == transcripts[1] and transcripts[0].adapter is None
    with pytest.raises(ValueError, match="'nothing'"):
        phi.generate(messages, adapter="nothing")


# ---- placeholders in text -------------------------------------------------------------------------------


def test_placeholders_become_parts() -> None:
    wave = (np.zeros(4, np.float32), 16000)
    assert parts("fox") == (Text("fox"),)
    assert parts("<|image_1|>What is it?", ["a.png"]) == (Image("a.png"), Text("What is it?"))
    low = Image("b.png", "low")
    assert parts(
        "Is <|image_2|> like <|image_1|>?<|audio_1|>", images=["a.png", low], audios=[wave]
    ) == (Text("Is "), low, Text(" like "), Image("a.png"), Text("?"), Audio(wave))
    assert parts("<|audio_1|>\n", audios=[Audio(b"x")]) == (Audio(b"x"), Text("\n"))
    assert parts("<|image|> <|user|>") == (Text("<|image|> <|user|>"),)


@pytest.mark.parametrize(
    ("text", "media", "match"),
    [
        ("<|image_1|>", {}, r"image 1, found 0 in images="),
        ("<|image_0|>", {"images": ["a"]}, r"<\|image_0\|>"),
        ("<|image_2|>", {"images": ["a"]}, r"image 2, found 1"),
        ("<|image_1|><|image_1|>", {"images": ["a"]}, "twice"),
        ("fox", {"images": ["a"]}, r"no <\|image_1\|>"),
        ("<|image_1|><|image_3|>", {"images": ["a", "b", "c"]}, r"no <\|image_2\|>"),
        ("<|image_1|>", {"audios": ["a"]}, r"image 1, found 0"),
        ("<|audio_1|>", {"audios": ["a", "b"]}, r"no <\|audio_2\|>"),
        ("<|image_1|>", {"images": "a.png"}, "found 'a.png'"),
    ],
)
def test_placeholders_and_media_must_match(text: str, media: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parts(text, **media)


def test_parts_are_answered(phi: polyphi.Phi, media: tuple[Path, Path]) -> None:
    content = parts("<|image_1|><|audio_1|>what?", images=[media[0]], audios=[media[1]])
    expected = [Message.user(Image(media[0]), Audio(media[1]), "what?")]
    assert [Message.user(*content)] == expected
    assert phi.generate([Message.user(*content)], sampling=EIGHT).adapter == "vision"


def test_the_page_shows_what_works(
    phi: polyphi.Phi, media: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs/chat.md"
    code = "\n".join(re.findall(r"(?s)```python\n(.*?)```", page.read_text()))
    monkeypatch.chdir(media[0].parent)
    media[0].rename("cat.png")
    media[1].rename("question.wav")
    monkeypatch.setattr(polyphi, "load", lambda _: phi)
    names: dict = {}
    exec(code, names)
    assert names["answer"] == phi.generate(names["messages"])
    assert names["following"].shape == (1, phi.config.decoder.vocab_size)
    assert [len(logits) for _, logits in names["rows"]] == [1, 1, 1]

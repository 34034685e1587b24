"""The public API: load, generate, transcribe, logits."""

import base64
import json
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as PIL
from safetensors.torch import load_file

import polyphi
from polyphi import api
from polyphi.checkpoints.headers import stored_types
from polyphi.checkpoints.parts import parts
from polyphi.checkpoints.write import save_checkpoint
from polyphi.cli.inspect import write_logits
from polyphi.devices import memory, placement, precision
from polyphi.kernels import bf16
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.expansion import expand
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi.types.sampling import SamplingParams
from tests.fixtures.audio import say
from tests.fixtures.engines import fitted
from tests.fixtures.images import film


@pytest.fixture
def folder(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """A checkpoint as `reproduce` leaves it: weights and tokenizer in one folder."""
    tokenizer = Tokenizer.train(["the quick brown fox", "jumps <sep>"], vocab_size=384)
    model = PhiModel(fitted(tiny_config, tokenizer))
    model.initialise(seed=1)
    save_checkpoint(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def media(tmp_path: Path) -> tuple[Path, Path]:
    noise = np.random.default_rng(0)
    PIL.fromarray(noise.integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", noise.normal(0, 0.1, 8000).astype(np.float32), 16000)
    return tmp_path / "a.png", tmp_path / "a.wav"


def test_load_takes_sizes_from_the_folder(folder: Path) -> None:
    phi = polyphi.load(folder, device="cpu")
    assert isinstance(phi, polyphi.Phi)
    assert (phi.processor.images.crop_size, phi.processor.images.max_crops) == (56, 4)
    answer = phi.generate([polyphi.Message.user("fox")], sampling=SamplingParams(max_tokens=3))
    assert answer == phi.generate(
        [{"role": "user", "content": "fox"}], sampling=SamplingParams(max_tokens=3)
    )
    assert polyphi.load(folder, dtype="bfloat16").model.decoder.norm.weight.dtype == torch.bfloat16


def test_answers_end_at_the_ids_of_the_generation_config(folder: Path) -> None:
    """Also under a grammar, whose process has a tokenizer of its own; and the tokenizer's ids stay."""
    phi = polyphi.load(folder)
    path, own = folder / "generation_config.json", phi.tokenizer.eos_ids
    first = phi.generate("fox", max_tokens=4).tokens[0]
    path.write_text(json.dumps({"eos_token_id": [first, phi.tokenizer.vocab_size + 5]}))
    changed = polyphi.load(folder)
    answer = changed.generate("fox", max_tokens=4)
    assert answer.finish_reason == "stop" and not answer.tokens
    assert changed.tokenizer.eos_ids == (own[0], first, own[1])
    copy = Tokenizer.from_json(changed.tokenizer.to_json())
    assert copy.eos_ids == changed.tokenizer.eos_ids


def test_the_template_or_the_name_says_whether_a_model_reasons(folder: Path) -> None:
    assert not polyphi.load(folder).reasoning
    named = folder.rename(folder.with_name("phi-4-mini-Reasoning"))
    assert polyphi.load(named).reasoning
    plain = named.rename(folder)
    (plain / "chat_template.jinja").write_text("{{ messages }}<think>")
    assert polyphi.load(plain).reasoning
    (plain / "chat_template.jinja").unlink()
    config = json.loads((plain / "tokenizer_config.json").read_text())
    template = [{"name": "default", "template": "<think>"}]
    (plain / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    assert polyphi.load(plain).reasoning
    (plain / "tokenizer_config.json").unlink()
    assert not polyphi.load(plain).reasoning


def test_load_tells_its_room_and_refuses_early(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phi = polyphi.load(folder, device="cpu")
    assert phi.memory and phi.memory.tokens == phi.config.decoder.max_position_embeddings
    sizes = stored_types(folder)
    assert sum(sizes.values()) * 4 == placement.size(sizes, None) == phi.memory.weights
    monkeypatch.setattr(memory, "free_memory", lambda device: phi.memory.weights - 1)
    monkeypatch.setattr(api, "load_checkpoint", None)  # nothing is read before it is known to fit
    with pytest.raises(ValueError, match=r"weights take .* free;"):
        polyphi.load(folder)
    monkeypatch.undo()
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setattr(bf16, "needed", lambda: False)
    monkeypatch.setattr(precision, "is_fast", lambda *_: False)
    short = folder.with_name("short")
    save_checkpoint(phi.model, short, dtype=torch.bfloat16)
    phi.tokenizer.save(short)
    assert polyphi.load(short).model.decoder.norm.weight.dtype == torch.float32
    assert polyphi.load(short, dtype="bfloat16").memory.dtype.startswith("bfloat16")


@pytest.mark.parametrize("quant", [None, "int8"])
def test_load_reports_its_progress(folder: Path, quant: str | None) -> None:
    reports: list[tuple[str, float | None]] = []
    polyphi.load(folder, device="cpu", quant=quant, progress=lambda *report: reports.append(report))
    stages = list(dict.fromkeys(stage for stage, _ in reports))
    assert stages == ["checkpoint", "tokenizer", "weights", "engine"]
    shares = [share for stage, share in reports if stage == "weights"]
    assert shares == sorted(shares) and shares[0] == 0 and 0.9 < shares[-1] <= 1
    assert len(set(shares)) > 10
    assert {share for stage, share in reports if stage != "weights"} == {None}


def test_counts_before_are_counts_after(folder: Path, media: tuple[Path, Path]) -> None:
    phi = polyphi.load(folder)
    picture, clip = media
    for parts_ in (
        ["fox"],
        [polyphi.Image(picture), "fox"],
        [polyphi.Image(picture, "low"), polyphi.Audio(clip)],
    ):
        cost = phi.count([Message.user(*parts_)])
        answer = phi.generate([Message.user(*parts_)], sampling=SamplingParams(max_tokens=1))
        reported = (answer.prompt_tokens, answer.image_tokens, answer.audio_tokens)
        assert reported == (cost.total, cost.image, cost.audio)


def test_a_video_is_answered_as_its_frames(folder: Path) -> None:
    phi = polyphi.load(folder)
    two = SamplingParams(max_tokens=2)
    seen = [Message.user(polyphi.Video(film(16), frames=3), "what?")]
    answer = phi.generate(seen, sampling=two)
    assert answer.adapter == "vision"
    assert answer.image_tokens == phi.count(seen).image > 0
    assert phi.generate(expand(seen), sampling=two).tokens == answer.tokens
    url = {"url": "data:;base64," + base64.b64encode(film(16)).decode(), "frames": 3}
    parts = [{"type": "video_url", "video_url": url}, {"type": "text", "text": "what?"}]
    parsed = phi.generate([{"role": "user", "content": parts}], sampling=two)
    assert parsed.tokens == answer.tokens
    with pytest.raises(ValueError, match="found text"):
        phi.stream([Message.user(polyphi.Video(b"Dear Sir"))])
    phi.model.vision = None
    with pytest.raises(ValueError, match="no encoder"):
        phi.generate(seen)


def test_the_last_piece_of_a_stream_tells_what_it_cost(folder: Path) -> None:
    phi = polyphi.load(folder)
    messages, five = [Message.user("fox")], SamplingParams(max_tokens=5)
    *before, last = phi.stream(messages, sampling=five)
    whole = phi.generate(messages, sampling=five)
    assert all(piece.completion is None for piece in before)
    assert last.completion and last.completion.tokens == whole.tokens
    assert last.completion.prompt_tokens == whole.prompt_tokens == phi.count(messages).total


def test_who_does_not_wait_for_media_leaves_nothing_behind(
    folder: Path, media: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hit(self: Future, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    phi = polyphi.load(folder)
    for waiting in ("result", "exception"):
        monkeypatch.setattr(Future, waiting, hit)
    with pytest.raises(KeyboardInterrupt):
        phi.stream([Message.user(polyphi.Image(media[0]))])
    assert phi.engine.counters().requests == 0


def test_half_precision_answers_with_media(folder: Path, media: tuple[Path, Path]) -> None:
    phi = polyphi.load(folder, dtype="bfloat16")
    messages = [Message.user(polyphi.Image(media[0]), polyphi.Audio(media[1]), "what?")]
    assert phi.generate(messages, sampling=SamplingParams(max_tokens=3)).adapter == "vision"
    assert phi.logits(messages)[1].dtype == torch.float32


def test_load_says_what_is_wrong(folder: Path) -> None:
    for wrong, message in (
        ({"quant": "int3"}, "quant must be None"),
        ({"dtype": "int64"}, "dtype must be"),
    ):
        with pytest.raises(ValueError, match=message):
            polyphi.load(folder, **wrong)
    Tokenizer.train(["many other words " * 9], vocab_size=448).save(folder)
    with pytest.raises(ValueError, match=r"placeholder|embedding only"):
        polyphi.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        polyphi.load(folder)


def test_logits_of_messages_and_of_ids_agree(folder: Path, media: tuple[Path, Path]) -> None:
    phi = polyphi.load(folder)
    picture, clip = media
    messages = [Message.user(polyphi.Image(picture), polyphi.Audio(clip), "fox")]
    ids, logits = phi.logits(messages)
    assert logits.shape == (len(ids), phi.config.decoder.vocab_size)
    expanded, again = phi.logits(ids, [picture], [clip])
    assert torch.equal(ids, expanded) and torch.equal(logits, again)
    short = torch.unique_consecutive(ids)  # one placeholder per picture and clip
    expanded, again = phi.logits(short.tolist(), [picture], [clip])
    assert torch.equal(ids, expanded) and torch.equal(logits, again)
    with pytest.raises(ValueError, match="empty list"):
        phi.logits([])
    with pytest.raises(ValueError, match="more images"):
        phi.logits(messages, images=[picture])


def test_transcribe_uses_the_published_prompts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phi = polyphi.load(folder)
    prompts: list[str] = []
    wave = say([1], [0.1, 0.1])
    clip = tmp_path / "said.wav"
    soundfile.write(clip, wave, 16000)

    def answering(text: str, reason: str = "stop") -> None:
        def generate_many(conversations: Iterable[list[Message]], **_: object) -> list[Completion]:
            texts = [messages[0].text for messages in conversations]
            prompts.extend(texts)
            return [Completion(text, finish_reason=reason) for _ in texts]

        monkeypatch.setattr(phi.engine, "generate_many", generate_many)

    answering(" hello there ")
    transcript = phi.transcribe(clip)
    assert (transcript.text, transcript.translation, transcript.seconds, transcript.warnings) == (
        "hello there",
        None,
        0.5,
        (),
    )
    transcript = phi.transcribe(clip.read_bytes(), to="de")
    assert (transcript.text, transcript.translation) == ("", "hello there")
    answering("hello <sep> hallo")
    transcript = phi.transcribe((wave, 16000), to="French", cot=True)
    assert (transcript.text, transcript.translation, transcript.warnings) == ("hello", "hallo", ())
    assert prompts == [
        "Transcribe the audio clip into text.",
        "Translate the audio to German.",
        "Transcribe the audio to text, and then translate the audio to French. "
        "Use <sep> as a separator between the original transcript and the translation.",
    ]
    answering("hello", "length")
    transcript = phi.transcribe(clip, to="de", cot=True)
    assert transcript.translation is None
    assert len(transcript.warnings) == 2
    assert "written in Latin" in phi.transcribe(clip, to="ja").warnings[-1]
    with pytest.raises(ValueError, match="'tlh'"):
        phi.transcribe(clip, to="tlh")
    with pytest.raises(ValueError, match="to="):
        phi.transcribe(clip, cot=True)
    with pytest.raises(ValueError, match=r"may last 0\.4 s"):
        phi.transcribe(clip, max_seconds=0.4)


def test_transcribe_fits_the_context(folder: Path) -> None:
    """Half a minute doesn't fit 512 tokens together with its answer: it is heard in pieces, and nothing is silent about
    what a random model makes of them."""
    phi = polyphi.load(folder)
    wave = say(list(range(50)), [0.3] * 51)
    sampling = SamplingParams(max_tokens=20)
    transcript = phi.transcribe((wave, 16000), sampling=sampling, words="estimated")
    assert transcript.seconds == pytest.approx(len(wave) / 16000)
    assert len(transcript.warnings) >= 2 and transcript.warnings[0].startswith("0:00.0 to ")
    assert phi.transcribe_many([(wave, 16000)] * 2, sampling=sampling, words="estimated") == [
        transcript,
        transcript,
    ]


def test_longer_audio_is_an_option(folder: Path) -> None:
    """Up to a number that no context holds."""
    hour = [Message.user(Audio((np.zeros(8000 * 3600, np.int16), 8000)))]
    with pytest.raises(ValueError, match="may last 1800 s"):
        polyphi.load(folder).count(hour)
    phi = polyphi.load(folder)
    phi.max_audio_seconds = 3600
    assert phi.count(hour).audio == 45_000
    with pytest.raises(ValueError, match=r"45\d{3} tokens, .*512"):
        phi.generate(hour)
    for seconds in (0, 10_081):
        with pytest.raises(ValueError, match=f"between 1 and 10,080, found {seconds:,}"):
            phi.max_audio_seconds = seconds
    assert phi.max_audio_seconds == 3600


@pytest.mark.parametrize("minutes", [31, pytest.param(168, marks=pytest.mark.long)])
def test_audio_above_half_an_hour(folder: Path, tmp_path: Path, minutes: int) -> None:
    """Up to 2.8 hours in a context of 131,072 tokens; short clips have the same answers as within the default limit."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    phi = polyphi.load(folder)
    phi.max_audio_seconds = 60 * minutes
    file, block = tmp_path / "long.flac", np.zeros(8000 * 60, np.int16)
    with soundfile.SoundFile(file, "w", 8000, 1, "PCM_16") as recording:
        for _ in range(minutes):
            recording.write(block)
    prompt = [Message.user(Audio(file), "?")]
    row = phi.engine.rows.row(prompt)
    assert row.inputs["audio"].tokens == [750 * minutes]
    if minutes > 31:  # seconds of encoder and prefill
        answer = phi.generate(prompt, sampling=SamplingParams(max_tokens=1, ignore_eos=True))
        assert (answer.audio_tokens, len(answer.tokens)) == (750 * minutes, 1)
    short = [Message.user(Audio((block[:8000], 8000)), "?")]
    greedy = SamplingParams(max_tokens=8, ignore_eos=True)
    expected = polyphi.load(folder).generate(short, sampling=greedy)
    assert phi.generate(short, sampling=greedy) == expected


def test_logits_file(folder: Path, media: tuple[Path, Path], tmp_path: Path) -> None:
    phi = polyphi.load(folder)
    parts_ = [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "input_audio", "input_audio": {"path": "a.wav"}},
        {"type": "text", "text": "fox"},
    ]
    request = tmp_path / "request.json"
    request.write_text(json.dumps([{"role": "user", "content": parts_}]))
    shape = write_logits(phi, request, tmp_path / "out/a.safetensors")
    first = load_file(tmp_path / "out/a.safetensors")
    assert first["logits"].shape == shape and first["logits"].dtype == torch.float32
    request.write_text(
        json.dumps({"ids": first["ids"].tolist(), "images": ["a.png"], "audios": ["a.wav"]})
    )
    write_logits(phi, request, tmp_path / "b.safetensors")
    second = load_file(tmp_path / "b.safetensors")
    assert torch.equal(first["ids"], second["ids"]) and torch.equal(
        first["logits"], second["logits"]
    )
    for text, message in (("{", "not valid JSON"), ("3", "list of messages")):
        request.write_text(text)
        with pytest.raises(ValueError, match=message):
            write_logits(phi, request, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="request file"):
        write_logits(phi, tmp_path / "none.json", tmp_path / "c.safetensors")


def test_parts_add_up(tiny_config: ModelConfig) -> None:
    rows = parts(tiny_config)
    assert sum(p.parameters for p in rows[:-1]) == rows[-1].parameters
    assert rows[-1].parameters == sum(p.numel() for p in PhiModel(tiny_config).parameters())
    text = parts(ModelConfig(tiny_config.decoder, None, None, {}))
    assert [p.parameters for p in text[1:-1]] == [0, 0, 0, 0]

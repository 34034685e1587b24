"""Recognition: overfits two clips, the recognizer is equal after saving and loading, padding changes nothing."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from polyphi.data.shards import Sample
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.train.aed import AttentionDecoder, Recognizer, augment
from polyphi.types.batch import pack
from polyphi.types.inputs.audio import AudioLayout
from polyphi.types.messages import Message
from polyphi.types.parts import Audio


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(Tokenizer.train(["3 1 4 one seven two"] * 8, 512))


@pytest.fixture
def model(tiny_config: ModelConfig) -> PhiModel:
    model = PhiModel(tiny_config)
    model.initialise(0)
    return model.eval()  # in training clips are augmented


def wav(seed: int, seconds: float) -> bytes:
    """A melody of eight tones a second. In noise all frames are alike: CTC could not tell them apart."""
    n = int(16000 * seconds)
    pitch = np.repeat(np.random.default_rng(seed).uniform(200, 4000, -(-n // 2000)), 2000)[:n]
    out = io.BytesIO()
    soundfile.write(out, 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000), 16000, format="WAV")
    return out.getvalue()


def sample(text: str, seed: int = 0, seconds: float = 1.0) -> Sample:
    return Sample(
        str(seed), (Message.user(Audio(wav(seed, seconds))), Message.assistant(text)), "", ""
    )


SAMPLES = (sample("3 1 4", 1, 0.9), sample("one seven", 2, 1.6))


def test_refuses_unfit_samples(processor: Processor) -> None:
    with pytest.raises(ValueError, match="audio clip, found 0"):
        AttentionDecoder().rows(
            Sample("x", (Message.user("3"), Message.assistant("3")), "", ""), processor, 64
        )
    with pytest.raises(ValueError, match="context holds 10"):
        AttentionDecoder().rows(SAMPLES[0], processor, 10)


def test_half_of_the_clips_are_augmented_each_differently() -> None:
    clips = [AudioLayout(20, "speech")] * 400
    mels = torch.arange(80.0).repeat(20 * len(clips), 1)  # a bin's value is its number
    with torch.random.fork_rng():
        torch.manual_seed(0)
        augmented = augment(mels, clips, warp=0.1, masks=1, widest=8).view(len(clips), 20, 80)
        assert torch.equal(augment(mels, clips, warp=0.0, masks=1, widest=0), mels)
    assert (augmented == augmented[:, :1]).all()  # the same in all frames of a clip
    changed = (augmented[:, 0] != mels[0]).any(1)
    assert 0.4 < changed.float().mean() < 0.6
    masked = (augmented[:, 0] == mels.mean()).sum(1)
    assert masked.max() == 8 and masked[~changed].max() == 0
    seen = torch.where(augmented == mels.mean(), torch.nan, augmented)[changed, 0, 1:79]
    stretch = (seen / torch.arange(1.0, 79)).nanmedian(1).values
    assert stretch.min() > 0.9 - 1e-4 and stretch.max() < 1.1 + 1e-4 and stretch.std() > 0.03


def test_loss_of_a_pack_is_the_sum_of_its_rows(model: PhiModel, processor: Processor) -> None:
    objective = AttentionDecoder(layers=2, ctc=0.3)
    module = objective.build(model, processor, seed=1)
    rows = [row for s in SAMPLES for row in objective.rows(s, processor, 128)]
    alone = [objective.loss(model, module, None, row) for row in rows]
    total, count, metrics = objective.loss(model, module, None, pack(rows))
    assert count == sum(n for _, n, _ in alone) == sum(len(row.supervised) for row in rows)
    assert total.item() == pytest.approx(sum(t.item() for t, _, _ in alone), rel=1e-4)
    assert metrics["ctc"] == pytest.approx(sum(m["ctc"] for _, _, m in alone), rel=1e-4)
    assert total.item() == pytest.approx(0.7 * metrics["aed"] + 0.3 * metrics["ctc"], rel=1e-4)


def test_attention_decoder_is_causal_and_reads_all_its_targets(
    model: PhiModel, processor: Processor
) -> None:
    """Cross-entropy token by token, each predicted from the tokens before it alone."""
    objective = AttentionDecoder(ctc=0.0)
    module = objective.build(model, processor)
    (row,) = objective.rows(SAMPLES[0], processor, 128)
    labels = row.labels[row.supervised]
    frames = model.audio.encoder(row.inputs["audio"].mels, row.inputs["audio"].layouts)[None]
    padding_mask = torch.zeros(frames.shape[:2], dtype=torch.bool)
    expected = sum(
        F.cross_entropy(
            module.logits(module(labels[None, :i], frames, padding_mask)[0, -1]), labels[i]
        )
        for i in range(len(labels))
    )
    assert objective.loss(model, module, None, row)[0].item() == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_overfits_and_is_equal_after_saving_and_loading(
    model: PhiModel, processor: Processor, tmp_path: Path
) -> None:
    objective = AttentionDecoder()
    module = objective.build(model, processor)
    batch = pack([row for s in SAMPLES for row in objective.rows(s, processor, 128)])
    trainable = {**dict(model.audio.encoder.named_parameters()), **dict(module.named_parameters())}
    model.audio.encoder.global_mean.copy_(batch.inputs["audio"].mels.mean(0))
    model.audio.encoder.global_invstd.copy_(1 / batch.inputs["audio"].mels.std(0))
    optimiser = torch.optim.Adam(trainable.values(), 6e-3)
    for _ in range(400):
        with torch.autocast("cpu", torch.bfloat16):
            total, count, metrics = objective.loss(model, module, None, batch)
        if metrics["ctc"] + metrics["aed"] < 0.5:
            break
        optimiser.zero_grad()
        (total / count).backward()
        optimiser.step()
    assert not [name for name, p in trainable.items() if p.grad is None]

    trained = {f"objective.{name}": value for name, value in module.state_dict().items()}
    trained |= {
        f"audio.encoder.{name}": value for name, value in model.audio.encoder.named_parameters()
    }
    recognizer = Recognizer.from_stage(model, trained, processor)
    clips = [recognizer.mels(s.messages[0].parts[0].source) for s in SAMPLES]
    texts = [s.answer for s in SAMPLES]
    assert recognizer.transcribe(clips) == texts
    assert recognizer.transcribe(clips[::-1], decoding="aed") == texts[::-1]
    assert recognizer.transcribe([]) == []

    recognizer.save(tmp_path / "recogniser")
    own = Processor(Tokenizer.load(tmp_path / "recogniser"))
    again = Recognizer.load(tmp_path / "recogniser", own)
    assert [again.transcribe_bytes(s.messages[0].parts[0].source) for s in SAMPLES] == texts
    assert all(
        torch.equal(a, b) for a, b in zip(recognizer.parameters(), again.parameters(), strict=True)
    )
    other = Processor(Tokenizer.train([chr(i) + chr(i + 1) for i in range(200, 400)] * 4, 512))
    with pytest.raises(ValueError, match=f"vocabulary of {own.tokenizer.vocab_size}"):
        Recognizer.load(tmp_path / "recogniser", other)

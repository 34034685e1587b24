"""Speech recognition as the audio encoder's first training: an auxiliary attention decoder predicts the transcript
(speech_0_aed; report 2.2.2), and an additional CTC loss stabilises the first steps [ours].

    mels -> Conformer -> frames -+-> decoder (causal, attends to the frames) -> cross-entropy on transcript + <|end|>
                                 +-> linear over vocabulary + blank          -> CTC on transcript

Encoder and decoder together are the `Recognizer` that filters synthetic speech by word error rate.

>>> recognizer = Recognizer.load(Path("DIR/recogniser"), processor)
>>> recognizer.transcribe_bytes(Path("digits.wav").read_bytes())
'3 1 4'
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from polyphi.data.sample import Sample, Unfit
from polyphi.model.config import AudioConfig
from polyphi.model.conformer import ConformerEncoder
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.processor import Processor
from polyphi.train.stage import HasTokenizer
from polyphi.types.batch import Batch
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.messages import Message
from polyphi.types.parts import Audio

MAX_TRANSCRIPT_TOKENS = 512
"""Positions of the decoder: the most tokens of a transcript, `<|end|>` included."""

BATCH_FRAMES = 8000
"""Log-mel frames that `Recognizer.transcribe` encodes at a time (80 s)."""


class TranscriptDecoder(nn.Module):
    """Both decoders of transcripts: attention and CTC. The output of the attention decoder is tied to its embedding;
    the CTC blank is the id after the last token id."""

    def __init__(self, vocabulary: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.blank = vocabulary
        self.start = nn.Parameter(torch.empty(width))
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(MAX_TRANSCRIPT_TOKENS, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width,
                heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.ctc = nn.Linear(width, vocabulary + 1)
        for weight in (self.start, self.tokens.weight, self.positions.weight):
            nn.init.normal_(weight, std=width**-0.5)  # logits of the tied output start near 1

    def forward(
        self,
        prefix: Int[Tensor, "S n"],
        frames: Float[Tensor, "S L D"],
        padding_mask: Bool[Tensor, "S L"],
    ) -> Float[Tensor, "S n+1 D"]:
        """Hidden states that predict the next token after the first 0, 1, ... n tokens of `prefix`. `padding_mask` is
        True at frames that are padding."""
        start = self.start.expand(len(prefix), 1, -1)
        x = torch.cat([start, self.tokens(prefix)], dim=1)
        x = x + self.positions.weight[: x.shape[1]]
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(
                x, frames, tgt_mask=future, memory_key_padding_mask=padding_mask, tgt_is_causal=True
            )
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*n D"]) -> Float[Tensor, "*n V"]:
        """The decoder's logits over the vocabulary."""
        return F.linear(hidden, self.tokens.weight)

    def frame_log_probs(self, frames: Float[Tensor, "A D"]) -> Float[Tensor, "A symbols"]:
        """CTC log-probabilities of every frame, float32."""
        return self.ctc(frames).float().log_softmax(-1)


def _pad(
    frames: Float[Tensor, "A D"], clips: Sequence[AudioLayout]
) -> tuple[Float[Tensor, "S L D"], Bool[Tensor, "S L"]]:
    """The frames of each clip, padded with zeros, and a mask that is True at the padding."""
    lengths = torch.tensor([clip.tokens for clip in clips])
    padding_mask = torch.arange(int(lengths.max())) >= lengths[:, None]
    padded = pad_sequence(list(frames.split(lengths.tolist())), batch_first=True)
    return padded, padding_mask.to(frames.device, non_blocking=True)


def augment(
    mels: Float[Tensor, "F M"], clips: Sequence[AudioLayout], warp: float, masks: int, widest: int
) -> Float[Tensor, "F M"]:
    """Augmented log-mel frames, as other speakers and microphones might give them [ours]. In half of the clips,
    frequencies are stretched by up to `warp` (formants and pitch move, words stay), and `masks` bands of up to `widest`
    bins are replaced by the mean, as in SpecAugment. Random numbers come from torch's generator, new in each epoch."""
    count, bins = len(clips), mels.shape[-1]
    stretch = 1 + warp * (2 * torch.rand(count, 1) - 1)
    source = (torch.arange(bins) * stretch).clamp(max=bins - 1)
    below = source.floor().long()
    fraction = source - below
    start, width = torch.rand(2, count, masks, 1)
    width = (width * (widest + 1)).floor()
    start = (start * (bins - width)).floor()
    masked = ((start <= torch.arange(bins)) & (torch.arange(bins) < start + width)).any(1)
    unchanged = torch.rand(count, 1) < 0.5
    below = torch.where(unchanged, torch.arange(bins), below)
    fraction, masked = torch.where(unchanged, 0.0, fraction), masked & ~unchanged
    clip_index = torch.repeat_interleave(torch.tensor([clip.frames for clip in clips]))
    below, fraction, masked = (t[clip_index].to(mels.device) for t in (below, fraction, masked))
    above = mels.gather(1, (below + 1).clamp(max=bins - 1))
    return torch.where(
        masked, mels.mean(), mels.gather(1, below).lerp(above, fraction.to(mels.dtype))
    )


@dataclass(frozen=True)
class AttentionDecoder:
    """The objective of the attention encoder-decoder, with `layers` of the attention decoder; `ctc` is the share of the
    CTC loss; `warp`, `masks` and `widest` are those of `augment`."""

    layers: int = 1
    ctc: float = 0.5
    warp: float = 0.12
    masks: int = 2
    widest: int = 12

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The sample as one row with the answer, the transcript, supervised. Raises `Unfit` unless the sample has
        exactly one clip and a transcript of 1 to 512 tokens, and for rows over `context`."""
        row = processor.row(sample.messages, adapter=adapter, supervise="answers", context=context)
        audio = row.of(AudioInput)
        if audio is None or len(audio.layouts) != 1:
            clips = 0 if audio is None else len(audio.layouts)
            raise Unfit(f"sample {sample.id}: recognition needs one audio clip, found {clips}")
        assert row.supervised is not None
        if not 1 <= len(row.supervised) <= MAX_TRANSCRIPT_TOKENS:
            raise Unfit(
                f"sample {sample.id}: expected a transcript of 1 to {MAX_TRANSCRIPT_TOKENS} tokens, "
                f"found {len(row.supervised)}; cut the clip"
            )
        return [row]

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> TranscriptDecoder:
        """A fresh decoder as wide as the encoder, equal for equal seeds. Raises ValueError where the model has no audio
        encoder."""
        if model.audio is None:
            raise ValueError("recognition needs a model with an audio encoder, found none")
        config = model.audio.encoder.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vocabulary = processor.tokenizer.vocab_size
            return TranscriptDecoder(
                vocabulary, config.hidden_size, config.num_attention_heads, self.layers
            )

    def begin(self, model: PhiModel) -> None:
        """Return None: the objective has no reference."""

    def loss(
        self, model: PhiModel, head: TranscriptDecoder, reference: None, batch: Batch
    ) -> tuple[Tensor, int, dict[str, float]]:
        """(weighted sum of both losses over target tokens, target tokens, sums over them of `aed`, `ctc` and
        `accuracy` of the attention decoder's next token)."""
        audio = batch.of(AudioInput)
        assert model.audio is not None and audio is not None
        assert batch.labels is not None and batch.supervised is not None
        assert len(audio.layouts) == batch.sequences, "one clip per sequence"
        mels, clips = audio.mels, audio.layouts
        if model.training:
            mels = augment(mels, clips, self.warp, self.masks, self.widest)
        frames = model.audio.encoder(mels, clips)
        labels = batch.labels.index_select(0, batch.supervised)
        cu_seqlens = torch.tensor(batch.cu_seqlens, device=labels.device)
        edges = torch.searchsorted(batch.supervised, cu_seqlens).tolist()
        targets = labels.split([end - start for start, end in pairwise(edges)])

        # The attention decoder reads all tokens but <|end|> and predicts all tokens.
        prefix = pad_sequence([t[:-1] for t in targets], batch_first=True)
        hidden = head(prefix, *_pad(frames, clips))
        longest = hidden.shape[1]
        positions = [torch.arange(len(t)) + s * longest for s, t in enumerate(targets)]
        hidden = hidden.flatten(0, 1).index_select(
            0, torch.cat(positions).to(hidden.device, non_blocking=True)
        )
        logits = head.logits(hidden).float()
        aed = F.cross_entropy(logits, labels, reduction="sum")

        # CTC needs the blank and the ids of these transcripts: a few dozen of 200,064 columns.
        transcript_ids = torch.cat([t[:-1] for t in targets])
        used, columns = transcript_ids.unique(return_inverse=True)
        used = F.pad(used, (1, 0), value=head.blank)
        lengths = audio.tokens
        ctc = F.ctc_loss(
            pad_sequence(list(head.frame_log_probs(frames).index_select(1, used).split(lengths))),
            columns + 1,
            torch.tensor(lengths),
            torch.tensor([len(t) - 1 for t in targets]),
            blank=0,
            reduction="sum",
            zero_infinity=True,  # a transcript with more tokens than its clip has frames has no gradient
        )
        total = (1 - self.ctc) * aed + self.ctc * ctc
        correct = (logits.argmax(-1) == labels).sum()
        metrics = torch.stack([aed.detach(), ctc.detach(), correct.float()]).tolist()
        return total, len(labels), dict(zip(("aed", "ctc", "accuracy"), metrics, strict=True))


class Recognizer(nn.Module):
    """Audio encoder and transcript decoder: speech to text, without the language model."""

    def __init__(
        self, config: AudioConfig, vocabulary: int, layers: int, processor: Processor
    ) -> None:
        super().__init__()
        self.encoder = prepare(ConformerEncoder(config))
        self.decoder = TranscriptDecoder(
            vocabulary, config.hidden_size, config.num_attention_heads, layers
        )
        self.processor = processor

    @classmethod
    def from_stage(
        cls, model: PhiModel, module_state: Mapping[str, Tensor], processor: Processor
    ) -> "Recognizer":
        """The recognizer made of copies of the stage's encoder and auxiliary decoder. `module_state` is the decoder's
        state, or all trained tensors of the stage, in which the decoder's names begin with `objective.`."""
        if model.audio is None:
            raise ValueError("a recognizer needs a model with an audio encoder, found none")
        prefix = "objective." if any(name.startswith("objective.") for name in module_state) else ""
        state = {
            n.removeprefix(prefix): value
            for n, value in module_state.items()
            if n.startswith(prefix)
        }
        recognizer = cls(
            model.audio.encoder.config, len(state["tokens.weight"]), _layers(state), processor
        )
        recognizer.encoder = copy.deepcopy(model.audio.encoder).requires_grad_(True)
        recognizer.decoder.load_state_dict(state)
        return recognizer.eval()

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, `config.json` and the tokenizer's files to `folder`. Not atomic: the caller passes
        a fresh folder and renames it afterwards."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = {"model_type": "polyphi_recogniser", "audio": asdict(self.encoder.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        self.processor.tokenizer.save(folder)

    @classmethod
    def load(cls, folder: Path, processor: Processor) -> "Recognizer":
        """The recognizer that `save` wrote to `folder`. Raises ValueError where `processor` has another tokenizer than
        that folder, or the folder holds another model."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != "polyphi_recogniser":
            raise ValueError(
                f"{folder} holds {config.get('model_type')!r}, expected 'polyphi_recogniser'"
            )
        tensors = load_file(folder / "model.safetensors")
        state = {
            n.removeprefix("decoder."): t for n, t in tensors.items() if n.startswith("decoder.")
        }
        vocabulary = len(state["tokens.weight"])
        if vocabulary != processor.tokenizer.vocab_size:
            raise ValueError(
                f"the recognizer in {folder} has a vocabulary of {vocabulary} tokens, the processor's tokenizer has "
                f"{processor.tokenizer.vocab_size}; make the processor from the tokenizer in that folder"
            )
        recognizer = cls(AudioConfig(**config["audio"]), vocabulary, _layers(state), processor)
        recognizer.load_state_dict(tensors)
        return recognizer.eval()

    def mels(self, data: bytes) -> Float[Tensor, "F 80"]:
        """Log-mel frames of an encoded clip (WAV, FLAC, OGG or MP3)."""
        audio = self.processor.row([Message.user(Audio(data))]).of(AudioInput)
        assert audio is not None
        return audio.mels

    def transcribe_bytes(self, data: bytes) -> str:
        """The transcript of an encoded clip."""
        return self.transcribe([self.mels(data)])[0]

    @torch.inference_mode()
    def transcribe(
        self, clips: Sequence[Tensor], decoding: Literal["ctc", "aed"] = "ctc"
    ) -> list[str]:
        """Transcripts of clips, each given as log-mel frames [F 80], by greedy decoding in batches of similar length.
        "ctc" decodes every frame by itself, so it can't loop; "aed" uses the attention decoder."""
        if decoding not in ("ctc", "aed"):
            raise ValueError(f"expected decoding 'ctc' or 'aed', found {decoding!r}")
        texts = [""] * len(clips)
        for group in _groups([len(mels) for mels in clips]):
            layouts = tuple(AudioLayout(len(clips[i]), "speech") for i in group)
            frames = self.encoder(
                torch.cat([clips[i] for i in group]).to(self.decoder.start.device), layouts
            )
            predictions = (
                self._ctc(frames, layouts) if decoding == "ctc" else self._aed(frames, layouts)
            )
            for i, ids in zip(group, predictions, strict=True):
                texts[i] = self.processor.tokenizer.decode(ids, skip_special=True).strip()
        return texts

    def _ctc(self, frames: Float[Tensor, "A D"], clips: Sequence[AudioLayout]) -> list[list[int]]:
        """CTC greedy decoding: the most probable id of each frame, repeats merged, blanks dropped."""
        best = self.decoder.ctc(frames).argmax(-1).split([clip.tokens for clip in clips])
        return [
            [id for id, _ in groupby(line.tolist()) if id != self.decoder.blank] for line in best
        ]

    def _aed(self, frames: Float[Tensor, "A D"], clips: Sequence[AudioLayout]) -> list[list[int]]:
        """Greedy decoding token by token until `<|end|>`, at most two tokens per frame and 8 more."""
        padded, padding_mask = _pad(frames, clips)
        end = self.processor.tokenizer.eos_ids[0]
        ids = torch.empty(len(clips), 0, dtype=torch.long, device=frames.device)
        while ids.shape[1] < min(MAX_TRANSCRIPT_TOKENS, 2 * padded.shape[1] + 8):
            best = self.decoder.logits(self.decoder(ids, padded, padding_mask)[:, -1]).argmax(-1)
            ids = torch.cat([ids, best[:, None]], dim=1)
            if (ids == end).any(1).all():
                break
        return [line[: line.index(end)] if end in line else line for line in ids.tolist()]


def _layers(state: Mapping[str, Tensor]) -> int:
    """Number of layers of a transcript decoder with these tensors."""
    return len({name.split(".")[1] for name in state if name.startswith("layers.")})


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Batches of clip indices in order of length, at most `BATCH_FRAMES` frames in each."""
    groups: list[list[int]] = []
    capacity = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[i] > capacity:
            groups.append([])
            capacity = BATCH_FRAMES
        groups[-1].append(i)
        capacity -= lengths[i]
    return groups

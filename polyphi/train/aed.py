"""Speech recognition as the audio encoder's first lesson: an attention decoder, thrown away later, writes the
transcript (speech_0_aed; report 2.2.2), and a CTC loss beside it steadies the start [ours].

    mels -> Conformer -> frames -+-> decoder (causal, attends to the frames) -> cross-entropy on transcript + <|end|>
                                 +-> linear over vocabulary + blank          -> CTC on transcript

The whole, encoder included, is the `Recogniser` that filters synthetic speech by word error rate.

>>> recogniser = Recogniser.load(Path("DIR/recogniser"), processor)
>>> recogniser.transcribe_bytes(Path("digits.wav").read_bytes())
'3 1 4'
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from polyphi.batch import Batch, Clip
from polyphi.data.draws import Unfit
from polyphi.data.shards import Sample
from polyphi.messages import Audio, Message
from polyphi.model.config import AudioConfig
from polyphi.model.conformer import ConformerEncoder
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.train.objective import HasTokenizer

LONGEST = 512
"""Positions of the decoder: tokens of a transcript, `<|end|>` included."""

BATCH_FRAMES = 8000
"""Log-mel frames that `Recogniser.transcribe` hears at a time (80 s)."""


class TranscriptDecoder(nn.Module):
    """Writes transcripts from frames in both ways. The output of the attention decoder is tied to its embedding; the
    blank of CTC is the id after the last."""

    def __init__(self, vocabulary: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.blank = vocabulary
        self.start = nn.Parameter(torch.empty(width))
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(LONGEST, width)
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
            nn.init.normal_(weight, std=width**-0.5)  # scores of the tied output start near 1

    def forward(
        self,
        written: Int[Tensor, "S n"],
        frames: Float[Tensor, "S L D"],
        blind: Bool[Tensor, "S L"],
    ) -> Float[Tensor, "S n+1 D"]:
        """Hidden states that predict the next token after nothing, one, two ... tokens `written`. `blind` is True at
        frames that are padding."""
        start = self.start.expand(len(written), 1, -1)
        x = torch.cat([start, self.tokens(written)], dim=1)
        x = x + self.positions.weight[: x.shape[1]]
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(x, frames, tgt_mask=future, memory_key_padding_mask=blind, tgt_is_causal=True)
        return self.norm(x)

    def scores(self, hidden: Float[Tensor, "*n D"]) -> Float[Tensor, "*n V"]:
        """Logits over the vocabulary."""
        return F.linear(hidden, self.tokens.weight)

    def frame_scores(self, frames: Float[Tensor, "A D"]) -> Float[Tensor, "A symbols"]:
        """CTC log-probabilities of every frame, float32."""
        return self.ctc(frames).float().log_softmax(-1)


def _padded(
    frames: Float[Tensor, "A D"], clips: Sequence[Clip]
) -> tuple[Float[Tensor, "S L D"], Bool[Tensor, "S L"]]:
    """Frames clip by clip, padded with zeros, and where the padding is."""
    lengths = torch.tensor([clip.tokens for clip in clips])
    blind = torch.arange(int(lengths.max())) >= lengths[:, None]
    padded = pad_sequence(list(frames.split(lengths.tolist())), batch_first=True)
    return padded, blind.to(frames.device, non_blocking=True)


def disturbed(
    mels: Float[Tensor, "F M"], clips: Sequence[Clip], warp: float, masks: int, widest: int
) -> Float[Tensor, "F M"]:
    """Clips as other throats and lines would give them [ours]. Half of them have their frequencies stretched by up to
    `warp` (formants and pitch move, words stay), and `masks` bands of up to `widest` bins replaced by the mean, as in
    SpecAugment. Anew in each epoch, from torch's generator."""
    count, bins = len(clips), mels.shape[-1]
    stretch = 1 + warp * (2 * torch.rand(count, 1) - 1)
    source = (torch.arange(bins) * stretch).clamp(max=bins - 1)
    below = source.floor().long()
    part = source - below
    start, width = torch.rand(2, count, masks, 1)
    width = (width * (widest + 1)).floor()
    start = (start * (bins - width)).floor()
    hidden = ((start <= torch.arange(bins)) & (torch.arange(bins) < start + width)).any(1)
    alone = torch.rand(count, 1) < 0.5
    below = torch.where(alone, torch.arange(bins), below)
    part, hidden = torch.where(alone, 0.0, part), hidden & ~alone
    owner = torch.repeat_interleave(torch.tensor([clip.frames for clip in clips]))
    below, part, hidden = (t[owner].to(mels.device) for t in (below, part, hidden))
    above = mels.gather(1, (below + 1).clamp(max=bins - 1))
    return torch.where(hidden, mels.mean(), mels.gather(1, below).lerp(above, part.to(mels.dtype)))


@dataclass(frozen=True)
class AttentionDecoder:
    """`layers` of the attention decoder; `ctc` is the share of the CTC loss; `warp`, `masks` and `widest` as in
    `disturbed`."""

    layers: int = 1
    ctc: float = 0.5
    warp: float = 0.12
    masks: int = 2
    widest: int = 12
    whole_step: ClassVar[bool] = False

    def rows(
        self, sample: Sample, processor: Processor, context: int, adapter: str | None = "auto"
    ) -> list[Batch]:
        """The conversation as the language model will see it; the answer is the transcript. Raises `Unfit` unless
        there is exactly one clip, and for transcripts over 512 tokens and rows over `context`."""
        row = processor.row(sample.messages, adapter=adapter, supervise="answers", context=context)
        if len(row.clips) != 1:
            raise Unfit(
                f"sample {sample.id}: recognition needs one audio clip, found {len(row.clips)}"
            )
        assert row.supervised is not None
        if not 1 <= len(row.supervised) <= LONGEST:
            raise Unfit(
                f"sample {sample.id}: a transcript has 1 to {LONGEST} tokens, found {len(row.supervised)}; cut the clip"
            )
        return [row]

    def build(self, model: PhiModel, processor: HasTokenizer, seed: int = 0) -> TranscriptDecoder:
        """A fresh decoder as wide as the encoder, the same for the same seed. Raises ValueError where the model has no
        audio encoder."""
        if model.audio is None:
            raise ValueError("recognition needs an audio encoder, this model has none")
        config = model.audio.encoder.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vocabulary = processor.tokenizer.vocab_size
            return TranscriptDecoder(
                vocabulary, config.hidden_size, config.num_attention_heads, self.layers
            )

    def begin(self, model: PhiModel) -> None:
        """No reference."""

    def loss(
        self, model: PhiModel, module: TranscriptDecoder, state: None, batch: Batch
    ) -> tuple[Tensor, int, dict[str, float]]:
        """(weighted sum of both losses over target tokens, target tokens, sums over them of `aed`, `ctc` and
        `accuracy` of the attention decoder's next token)."""
        assert model.audio is not None and batch.mels is not None
        assert batch.labels is not None and batch.supervised is not None
        assert len(batch.clips) == batch.sequences, "one clip per sequence"
        mels = batch.mels
        if model.training:
            mels = disturbed(mels, batch.clips, self.warp, self.masks, self.widest)
        frames = model.audio.encoder(mels, batch.clips)
        wanted = batch.labels.index_select(0, batch.supervised)
        bounds = torch.tensor(batch.bounds, device=wanted.device)
        edges = torch.searchsorted(batch.supervised, bounds).tolist()
        targets = wanted.split([end - start for start, end in pairwise(edges)])

        # The decoder: all tokens but <|end|> go in, all tokens must come out.
        written = pad_sequence([t[:-1] for t in targets], batch_first=True)
        hidden = module(written, *_padded(frames, batch.clips))
        longest = hidden.shape[1]
        real = [torch.arange(len(t)) + s * longest for s, t in enumerate(targets)]
        hidden = hidden.flatten(0, 1).index_select(
            0, torch.cat(real).to(hidden.device, non_blocking=True)
        )
        scores = module.scores(hidden).float()
        aed = F.cross_entropy(scores, wanted, reduction="sum")

        # CTC looks at the blank and at the ids that these transcripts have: of 200,064 columns a few dozen.
        written_ids = torch.cat([t[:-1] for t in targets])
        used, columns = written_ids.unique(return_inverse=True)
        used = F.pad(used, (1, 0), value=module.blank)
        lengths = [clip.tokens for clip in batch.clips]
        ctc = F.ctc_loss(
            pad_sequence(list(module.frame_scores(frames).index_select(1, used).split(lengths))),
            columns + 1,
            torch.tensor(lengths),
            torch.tensor([len(t) - 1 for t in targets]),
            blank=0,
            reduction="sum",
            zero_infinity=True,  # a transcript that is longer than its clip has frames teaches nothing
        )
        total = (1 - self.ctc) * aed + self.ctc * ctc
        right = (scores.argmax(-1) == wanted).sum()
        metrics = torch.stack([aed.detach(), ctc.detach(), right.float()]).tolist()
        return total, len(wanted), dict(zip(("aed", "ctc", "accuracy"), metrics, strict=True))


class Recogniser(nn.Module):
    """Encoder and transcript decoder together: speech to text, without the language model."""

    def __init__(
        self, config: AudioConfig, vocabulary: int, layers: int, processor: Processor
    ) -> None:
        super().__init__()
        self.encoder = ConformerEncoder(config)
        self.decoder = TranscriptDecoder(
            vocabulary, config.hidden_size, config.num_attention_heads, layers
        )
        self.processor = processor

    @classmethod
    def from_stage(
        cls, model: PhiModel, module_state: Mapping[str, Tensor], processor: Processor
    ) -> "Recogniser":
        """From the stage's model and its throw-away module's tensors, both copied. `module_state` is the module's own
        state, or all that the stage trained, where the module's names begin with `objective.`."""
        if model.audio is None:
            raise ValueError("a recogniser needs an audio encoder, this model has none")
        prefix = "objective." if any(name.startswith("objective.") for name in module_state) else ""
        state = {
            n.removeprefix(prefix): value
            for n, value in module_state.items()
            if n.startswith(prefix)
        }
        made = cls(
            model.audio.encoder.config, len(state["tokens.weight"]), _layers(state), processor
        )
        made.encoder = copy.deepcopy(model.audio.encoder).requires_grad_(True)
        made.decoder.load_state_dict(state)
        return made.eval()

    def save(self, folder: Path) -> None:
        """`model.safetensors`, `config.json` and the tokenizer's files into `folder`. Not atomic: the caller gives a
        fresh folder and renames it."""
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
    def load(cls, folder: Path, processor: Processor) -> "Recogniser":
        """What `save` wrote. `processor` must have the tokenizer of that folder; ValueError where it has another."""
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
                f"the recogniser in {folder} has a vocabulary of {vocabulary} tokens, the processor's tokenizer "
                f"{processor.tokenizer.vocab_size}; make the processor from the tokenizer in that folder"
            )
        made = cls(AudioConfig(**config["audio"]), vocabulary, _layers(state), processor)
        made.load_state_dict(tensors)
        return made.eval()

    def mels(self, data: bytes) -> Float[Tensor, "F 80"]:
        """Log-mel frames of an encoded clip (WAV, FLAC, OGG or MP3)."""
        return self.processor.row([Message.user(Audio(data))]).audio_input.mels

    def transcribe_bytes(self, data: bytes) -> str:
        """The transcript of an encoded clip."""
        return self.transcribe([self.mels(data)])[0]

    @torch.inference_mode()
    def transcribe(
        self, clips: Sequence[Tensor], decoding: Literal["ctc", "aed"] = "ctc"
    ) -> list[str]:
        """Transcripts of clips given as log-mel frames [F 80], by greedy choice, clips of similar length together.
        "ctc" reads every frame by itself and can't run away; "aed" lets the attention decoder write."""
        if decoding not in ("ctc", "aed"):
            raise ValueError(f"decoding is 'ctc' or 'aed', found {decoding!r}")
        texts = [""] * len(clips)
        for group in _groups([len(mels) for mels in clips]):
            spans = tuple(Clip(len(clips[i]), "speech") for i in group)
            frames = self.encoder(
                torch.cat([clips[i] for i in group]).to(self.decoder.start.device), spans
            )
            made = self._ctc(frames, spans) if decoding == "ctc" else self._aed(frames, spans)
            for i, ids in zip(group, made, strict=True):
                texts[i] = self.processor.tokenizer.decode(ids, skip_special=True).strip()
        return texts

    def _ctc(self, frames: Float[Tensor, "A D"], clips: Sequence[Clip]) -> list[list[int]]:
        """Each frame's likeliest id; repeats are one, blanks none."""
        best = self.decoder.ctc(frames).argmax(-1).split([clip.tokens for clip in clips])
        return [
            [id for id, _ in groupby(line.tolist()) if id != self.decoder.blank] for line in best
        ]

    def _aed(self, frames: Float[Tensor, "A D"], clips: Sequence[Clip]) -> list[list[int]]:
        """Token after token until `<|end|>`, at most two per frame."""
        padded, blind = _padded(frames, clips)
        end = self.processor.tokenizer.control("<|end|>")
        written = torch.empty(len(clips), 0, dtype=torch.long, device=frames.device)
        while written.shape[1] < min(LONGEST, 2 * padded.shape[1] + 8):
            best = self.decoder.scores(self.decoder(written, padded, blind)[:, -1]).argmax(-1)
            written = torch.cat([written, best[:, None]], dim=1)
            if (written == end).any(1).all():
                break
        return [line[: line.index(end)] if end in line else line for line in written.tolist()]


def _layers(state: Mapping[str, Tensor]) -> int:
    """Layers of a transcript decoder with these tensors."""
    return len({name.split(".")[1] for name in state if name.startswith("layers.")})


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the clips in order of length, so many together as `BATCH_FRAMES` allows."""
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[i] > room:
            groups.append([])
            room = BATCH_FRAMES
        groups[-1].append(i)
        room -= lengths[i]
    return groups

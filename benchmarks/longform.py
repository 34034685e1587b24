"""Long recordings: is memory flat, is the time of a minute of audio constant, how large are the errors of word times?

    python benchmarks/longform.py encoder [--minutes 5 10 20 30]     # full-size Conformer, bfloat16, random weights
    python benchmarks/longform.py encoder --minutes 60 168 --blocks 2  # of 24 blocks: the same memory, sooner
    python benchmarks/longform.py model [--minutes 5 10 20 30]       # nano-size model, the whole path from file to text
    python benchmarks/longform.py pieces [--minutes 60 180]          # the same in pieces of 10 minutes
    python benchmarks/longform.py words [--model runs/nano/model]    # error of word times where they are known

The recording is made of Tux Paint's spoken captions, real people at home in many languages, joined with pauses of half
a second (hours before the first comes again); if that package isn't available, of sentences by espeak-ng or flite. Each
measurement has its own process: "more memory" is its peak (Linux: `VmHWM`) less its memory before the recording
was opened. Answers of random weights mean nothing and are limited to 64 tokens a piece.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from sidebyside import peak_bytes

import polyphi
from polyphi.api import Phi
from polyphi.checkpoints.processor import make_processor
from polyphi.media.media import AudioStream, MediaError, decode_audio
from polyphi.model.config import AudioConfig
from polyphi.model.multimodal import Audio as AudioTower
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare
from polyphi.processing.audio import log_mel_of, resample
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.files import cache_folder
from polyphi.transcription import vad
from polyphi.transcription.align import align
from polyphi.transcription.transcript import Piece, estimated
from polyphi.transcription.words import token_spans, word_spans
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi.types.sampling import SamplingParams
from polyphi_eval.services.speech_synthesis import Voice, speak, unavailable
from polyphi_recipe.raw.packages import unpack
from polyphi_recipe.stages import sizes
from polyphi_recipe.synthetic.stamps import STAMP_FOLDER, STAMPS

MINUTES = {"encoder": (5, 10, 20, 30), "model": (5, 10, 20, 30), "pieces": (60, 180)}
RATE = 16_000
CACHE = cache_folder()
SENTENCES = (
    "The committee met on Thursday to discuss the budget for the coming year.",
    "After a long debate members agreed that repairs could not be put off again.",
    "Nobody knew where the money would come from, and the meeting was adjourned.",
    "In the end they wrote a letter, signed by everybody, and sent it by post.",
)


def voice(engine: str | None = None) -> Voice:
    engine = engine or ("flite" if unavailable("espeak-ng") else "espeak-ng")
    return Voice(engine, "en", "slt" if engine == "flite" else "f2")


def clips() -> Iterator[np.ndarray]:
    """Spoken captions at 16 kHz, one after the other, in an order that mixes speakers; endless."""
    root = unpack(STAMPS, CACHE)
    files = sorted((root / STAMP_FOLDER).rglob("*_desc*.ogg")) if root else []
    random.Random(0).shuffle(files)
    while True:
        for file in files:
            try:
                yield resample(*decode_audio(file))[0]
            except MediaError:  # some of them are damaged
                continue
        if not files:
            yield from [resample(*speak(sentence, voice()))[0] for sentence in SENTENCES]


def record(path: Path, minutes: float) -> None:
    """Clips and pauses of half a second as 16-bit WAV."""
    left, pause = round(minutes * 60 * RATE), np.zeros(RATE // 2, np.float32)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for clip in clips():
            for part in (clip, pause):
                file.write(part[:left])
                left -= len(part[:left])
            if not left:
                return


def nano(context: int = 65_536) -> Phi:
    """A nano-size model of random weights, with a context that holds half an hour."""
    from polyphi_recipe.stages.lineage import BUILT_IN

    tokenizer = Tokenizer.train([" ".join(SENTENCES)] * 4, 512)
    parts = BUILT_IN.after("joint_1_vision_speech")
    config = BUILT_IN.configuration(parts, sizes.NANO.model, tokenizer)
    config = replace(config, decoder=replace(config.decoder, max_position_embeddings=context))
    model = PhiModel(config)
    model.initialise(0)
    return Phi(model, make_processor(config, tokenizer))


def tower(blocks: int) -> AudioTower:
    """Encoder and projectors of the published size with so many blocks, random weights."""
    with torch.device("meta"):
        empty = AudioTower(AudioConfig(num_blocks=blocks), 3072).to(torch.bfloat16)
    audio = prepare(empty.to_empty(device="cpu")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in audio.state_dict().values():
            tensor.copy_(0.02 * torch.randn(tensor.shape, generator=generator))
    return audio


def child(part: str, path: Path, blocks: int) -> dict[str, float]:
    """One measurement: bytes more than before the recording was opened, seconds, audio tokens."""
    torch.set_grad_enabled(False)
    if part == "encoder":
        audio = tower(blocks)
        before, start = peak_bytes(), time.perf_counter()
        stream = AudioStream(path, max_seconds=7 * 3600.0)
        mels = log_mel_of(stream, stream.rate)
        tokens = len(audio(AudioInput(layouts=(AudioLayout(len(mels), "speech"),), mels=mels)))
    else:
        phi = nano()
        before, start = peak_bytes(), time.perf_counter()
        transcript = phi.transcribe(
            path,
            sampling=SamplingParams(max_tokens=64),
            window=600.0 if part == "pieces" else None,
        )
        tokens = round(transcript.seconds * 12.5)
    seconds = time.perf_counter() - start
    return {"bytes": peak_bytes() - before, "before": before, "seconds": seconds, "tokens": tokens}


def measure(part: str, minutes: list[float], blocks: int) -> list[dict[str, float]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            path = Path(folder) / "long.wav"
            record(path, length)
            command = [sys.executable, __file__, part, "--child", str(path)]
            command += ["--blocks", str(blocks)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows.append({"minutes": length, **json.loads(output.splitlines()[-1])})
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def show(part: str, rows: list[dict[str, float]]) -> None:
    table = Table("minutes", "tokens", "before", "more memory", "a minute takes", title=part)
    for row in rows:
        table.add_row(
            f"{row['minutes']:g}",
            f"{row['tokens']:,.0f}",
            f"{row['before'] / 1e6:,.0f} MB",
            f"{row['bytes'] / 1e6:,.0f} MB",
            f"{row['seconds'] / row['minutes']:.2f} s",
        )
    Console(width=100).print(table)


def spoken_words(engine: str) -> Iterator[tuple[np.ndarray, list[str], np.ndarray]]:
    """(samples, words, their starts and ends) of sentences put together word by word, with a breath now and then."""
    rng = np.random.default_rng(0)
    for sentence in SENTENCES:
        words, parts, times, at = sentence.split(), [], [], 0.0
        for word in words:
            wave = resample(*speak(word, voice(engine)))[0]
            loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
            wave = wave[loud[0] : loud[-1] + 1]
            gap = rng.choice([0.02, 0.05, 0.6], p=[0.5, 0.3, 0.2])
            parts += [np.zeros(round(gap * RATE), np.float32), wave]
            times.append((at + gap, at + gap + len(wave) / RATE))
            at += gap + len(wave) / RATE
        yield np.concatenate([*parts, np.zeros(RATE // 4, np.float32)]), words, np.array(times)


def words(model: str | None) -> None:
    """Print the mean and the 90th percentile of the errors of word starts and ends, for known words."""
    phi = polyphi.load(model) if model else None
    table = Table("voice", "way", "mean error", "90 % within", "evenly spread words")
    for engine in (e for e in ("espeak-ng", "flite") if not unavailable(e)):
        errors: dict[str, list[float]] = {"estimated": [], "aligned": [], "even": []}
        for wave, spoken, truth in spoken_words(engine):
            sound = vad.measure(AudioStream((wave, RATE)))
            times_ = np.array(estimated(sound, Piece(0.0, sound.seconds), spoken))
            errors["estimated"] += np.abs(times_ - truth).ravel().tolist()
            borders = np.linspace(0, sound.seconds, len(spoken) + 1)
            even = np.stack([borders[:-1], borders[1:]], axis=1)
            errors["even"] += np.abs(even - truth).ravel().tolist()
            if phi is None:
                continue
            prompt = "Transcribe the audio clip into text."
            row = phi.engine.rows.row([Message.user(Audio((wave, RATE)), prompt)])
            text = " ".join(spoken)
            tokens = phi.tokenizer.encode(text)
            times, spans = align(phi.model, row, tokens), token_spans(phi.tokenizer, tokens)
            for (a, b), right in zip(word_spans(text), truth, strict=True):
                mine = [t for t, (x, y) in zip(times, spans, strict=True) if x < b and y > a]
                errors["aligned"] += np.abs(np.array([mine[0][0], mine[-1][1]]) - right).tolist()
        for way in ("estimated", "aligned"):
            if differences := errors[way]:
                table.add_row(
                    engine,
                    way,
                    f"{np.mean(differences):.2f} s",
                    f"{np.percentile(differences, 90):.2f} s",
                    f"{np.mean(errors['even']):.2f} s",
                )
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=(*MINUTES, "words"))
    parser.add_argument("--minutes", type=float, nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--blocks", type=int, default=AudioConfig().num_blocks)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.part, args.child, args.blocks)))
    elif args.part == "words":
        words(args.model)
    else:
        show(args.part, measure(args.part, args.minutes or list(MINUTES[args.part]), args.blocks))


if __name__ == "__main__":
    main()

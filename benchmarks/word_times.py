"""The error of word times where they are known, in seconds.

    python benchmarks/word_times.py [--model runs/nano/model]     # with a model also those by its attention

Sentences are put together from words that espeak-ng and flite say one at a time, with a breath now and then. Times are
`estimated` without a model (characters over voiced time), `aligned` by the decoder's attention to the audio, or those
of words that are spread evenly.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

import polyphi
from polyphi.api import Phi
from polyphi.media.media import AudioStream
from polyphi.processing.audio import resample
from polyphi.transcription import vad
from polyphi.transcription.align import align
from polyphi.transcription.transcript import Piece, estimated
from polyphi.transcription.words import token_spans, word_spans
from polyphi.types.messages import Message
from polyphi.types.parts import Audio
from polyphi_eval.services.speech_synthesis import Voice, speak, unavailable

RATE = 16_000
VOICES = {"espeak-ng": Voice("espeak-ng", "en", "f2"), "flite": Voice("flite", "en", "slt")}
SENTENCES = (
    "The committee met on Thursday to discuss the budget for the coming year.",
    "After a long debate members agreed that repairs could not be put off again.",
    "Nobody knew where the money would come from, and the meeting was adjourned.",
    "In the end they wrote a letter, signed by everybody, and sent it by post.",
)


def spoken_words(voice: Voice) -> Iterator[tuple[np.ndarray, list[str], np.ndarray]]:
    """(samples, words, their starts and ends) of each sentence."""
    rng = np.random.default_rng(0)
    for sentence in SENTENCES:
        words, parts, times, at = sentence.split(), [], [], 0.0
        for word in words:
            wave = resample(*speak(word, voice))[0]
            loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
            wave = wave[loud[0] : loud[-1] + 1]
            gap = rng.choice([0.02, 0.05, 0.6], p=[0.5, 0.3, 0.2])
            parts += [np.zeros(round(gap * RATE), np.float32), wave]
            times.append((at + gap, at + gap + len(wave) / RATE))
            at += gap + len(wave) / RATE
        yield np.concatenate([*parts, np.zeros(RATE // 4, np.float32)]), words, np.array(times)


def aligned(phi: Phi, wave: np.ndarray, text: str) -> np.ndarray:
    """The starts and ends of the words of `text` by the model's attention."""
    prompt = "Transcribe the audio clip into text."
    row = phi.engine.rows.row([Message.user(Audio((wave, RATE)), prompt)])
    tokens = phi.tokenizer.encode(text)
    times, spans = align(phi.model, row, tokens), token_spans(phi.tokenizer, tokens)
    words = []
    for start, end in word_spans(text):
        mine = [t for t, (a, b) in zip(times, spans, strict=True) if a < end and b > start]
        words.append((mine[0][0], mine[-1][1]))
    return np.array(words)


def errors(voice: Voice, phi: Phi | None) -> dict[str, np.ndarray]:
    """The errors of all starts and ends by each way."""
    results: dict[str, list[np.ndarray]] = {}
    for wave, words, truth in spoken_words(voice):
        sound = vad.measure(AudioStream((wave, RATE)))
        borders = np.linspace(0, sound.seconds, len(words) + 1)
        ways = {
            "estimated": np.array(estimated(sound, Piece(0.0, sound.seconds), words)),
            "spread evenly": np.stack([borders[:-1], borders[1:]], axis=1),
        }
        if phi is not None:
            ways["aligned"] = aligned(phi, wave, " ".join(words))
        for way, times in ways.items():
            results.setdefault(way, []).append(np.abs(times - truth).ravel())
    return {way: np.concatenate(differences) for way, differences in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    args = parser.parse_args()
    phi = polyphi.load(args.model) if args.model else None
    table = Table("voice", "way", "mean error", "90 % within")
    for name, voice in VOICES.items():
        if unavailable(name):
            continue
        for way, differences in errors(voice, phi).items():
            mean, most = np.mean(differences), np.percentile(differences, 90)
            table.add_row(name, way, f"{mean:.2f} s", f"{most:.2f} s")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

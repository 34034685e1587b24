"""Waveform -> log-mel frames, one every 10 ms (report 2.2.1; numbers from the published processor).

>>> log_mel(np.zeros(16000, np.float32), 16000).shape        # one second
torch.Size([98, 80])

Frames are neither centred nor padded; pre-emphasis is applied per frame; energy is on the scale of 16-bit samples and
floored at 1, so that silence is exactly 0. Audio at 8 kHz fills the lower half of the same spectrum.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.media import media
from polyphi.media.media import LONGEST_AUDIO_SECONDS, MIN_RATE, MediaError, check_rate
from polyphi.processing.reader import Decoding, Placeholder, Reader, positions
from polyphi.runtime.steps import Steps
from polyphi.types.inputs.audio import AudioInput, AudioLayout
from polyphi.types.inputs.image import ImageInput
from polyphi.types.parts import Audio

RATE = 16_000  # Hz, input of the encoder
HALF_RATE = MIN_RATE  # Hz, telephone speech: same frames, upper half of the spectrum empty
WINDOW = 400  # samples at 16 kHz: 25 ms
HOP = 160  # samples at 16 kHz: 10 ms
SAMPLES = 8 * HOP  # at 16 kHz, of one token
FFT = 512  # samples at 16 kHz
BINS = FFT // 2 + 1  # 257
MELS = 80
TOP = 7690.0  # Hz, upper edge of the last filter
PRE_EMPHASIS = 0.97
FULL_SCALE = 32768.0  # of 16-bit samples
FLOOR = 1.0  # of mel energy, on that scale
CHUNK_FRAMES = 4096  # frames at a time: limits memory to about 50 MB for audio of any length
ZERO_CROSSINGS = 10  # of the low-pass filter's sinc on each side, as in scipy's resample_poly
KAISER_BETA = 5.0  # of its window, as in resample_poly
DECIMATION_BLOCK = 8192  # samples computed at a time: 32 KB, so that sums stay in a core's cache


def resample(wave: Float[np.ndarray, " n"], rate: int) -> tuple[Float[np.ndarray, " m"], int]:
    """Return the audio at 16 or 8 kHz, and that rate in Hz. Rates from 16 kHz on become 16 kHz, lower ones 8 kHz.

    Multiples of 16 kHz are decimated as in the published processor, by
    `scipy.signal.resample_poly(wave, 1, rate // 16000)` (`_decimated`). Other rates go through soxr: the published
    processor takes 24 kHz for 16, 22.05 for 16 and 11.025 for 8 kHz. Raises `MediaError` below 8 kHz.
    """
    target = _target(rate)
    if rate == target:
        return wave, target
    if rate % RATE == 0:
        return np.concatenate(list(_decimated([wave], rate // RATE))), target
    result = soxr.resample(wave, rate, target, quality="HQ")
    # One sample at 44.1 kHz rounds to zero samples at 16 kHz; the result must not be empty.
    return (result if len(result) else np.zeros(1, np.float32)), target


def resampled_length(samples: int, rate: int) -> tuple[int, int]:
    """Return the number of samples that `resample` returns for `samples` >= 1 at `rate`, and their rate in Hz. Raises
    `MediaError` below 8 kHz."""
    target = _target(rate)
    if rate % RATE == 0:
        return -(-samples // (rate // RATE)), target  # resample_poly rounds up
    return max(1, int(samples * target / rate + 0.5)), target  # soxr rounds to the nearest


def _target(rate: int) -> int:
    check_rate(rate)
    return RATE if rate >= RATE else HALF_RATE


@cache
def _low_pass(factor: int) -> Float[np.ndarray, " taps"]:
    """Return the filter of `resample_poly(x, 1, factor)` for float32 input: a sinc of cutoff 1 / factor (of the Nyquist
    frequency) times a Kaiser window, unit gain at 0 Hz, rounded from float64. It is symmetric and has
    2 * `ZERO_CROSSINGS` * factor + 1 taps."""
    half = ZERO_CROSSINGS * factor
    ideal = np.sinc(np.arange(-half, half + 1) / factor)
    taps = ideal * np.kaiser(2 * half + 1, KAISER_BETA)
    rounded = (taps / taps.sum()).astype(np.float32)
    rounded.setflags(write=False)
    return rounded


def _decimated(blocks: Iterable[np.ndarray], factor: int) -> Iterator[Float[np.ndarray, " m"]]:
    """Yield `resample_poly(x, 1, factor)` of audio in blocks: ceil(n / factor) samples in all.

    The signal is zero before its beginning and after its end. Only output samples are computed, at most
    `DECIMATION_BLOCK` at a time; the buffer holds only the filter's length of input besides the caller's block. The
    result doesn't depend on the sizes of the blocks (`_filtered`).
    """
    taps = _low_pass(factor)
    half = len(taps) // 2
    buffer = np.zeros(half, np.float32)
    for block in blocks:
        samples = np.asarray(block, np.float32)
        for start in range(0, len(samples), DECIMATION_BLOCK * factor):
            buffer = np.concatenate([buffer, samples[start : start + DECIMATION_BLOCK * factor]])
            out = _filtered(buffer, taps, factor)
            buffer = buffer[len(out) * factor :]
            yield out
    yield _filtered(np.concatenate([buffer, np.zeros(half, np.float32)]), taps, factor)


def _filtered(
    x: Float[np.ndarray, " n"], taps: Float[np.ndarray, " taps"], factor: int
) -> Float[np.ndarray, " m"]:
    """Return the sums of taps times neighbouring samples at every `factor`-th position with all of them in `x`.

    The products of a sum are rounded to float32 and added in order, from the earliest sample to the latest.
    Where scipy's loop is compiled without fused multiply-add (x86-64), that is its order and the bits are the same.
    A matrix product would be faster, but its order of summation depends on the number of rows.
    """
    count = max(0, (len(x) - len(taps)) // factor + 1)
    out, product = np.zeros(count, np.float32), np.empty(count, np.float32)
    # One contiguous row for each phase: strided reads of the signal would cost more than the arithmetic.
    rows = count + (len(taps) - 1) // factor
    phases = np.zeros((factor, rows), np.float32)
    for phase in range(factor if count else 0):
        row = x[phase::factor][:rows]
        phases[phase, : len(row)] = row
    for number, tap in enumerate(taps if count else ()):
        first = number // factor
        np.multiply(phases[number % factor, first : first + count], tap, out=product)
        np.add(out, product, out=out)
    return out


def frames(samples: int, rate: int) -> int:
    """Return the number of log-mel frames of audio at 16 or 8 kHz: floor((N - 400) / 160) + 1 at 16 kHz, at least 1."""
    assert rate in (RATE, HALF_RATE), rate
    window, hop = WINDOW * rate // RATE, HOP * rate // RATE
    return max(0, samples - window) // hop + 1


def nbytes(samples: int, rate: int) -> int:
    """Return the bytes of the log-mel frames of audio, float32. Raises `MediaError` below 8 kHz."""
    return 4 * MELS * frames(*resampled_length(max(1, samples), rate))


def log_mel(wave: Float[np.ndarray, " n"], rate: int) -> Float[Tensor, "F M"]:
    """Return the natural log of the mel energies of mono audio in [-1, 1], float32. Audio shorter than one window of
    25 ms is zero-padded to it (the published processor crashes). Raises `ValueError` for empty audio or a rate below
    8 kHz."""
    if wave.ndim != 1 or len(wave) == 0:
        raise ValueError(f"log_mel needs samples of shape [n] with n > 0, found {list(wave.shape)}")
    return log_mel_of([np.ascontiguousarray(wave, np.float32)], rate)


def log_mel_of(blocks: Iterable[np.ndarray], rate: int) -> Float[Tensor, "F M"]:
    """Return the bit-identical result for audio in blocks; at most 41 s of samples are buffered."""
    return torch.cat([torch.from_numpy(mel) for mel in _mels(*resampled(blocks, rate))])


def resampled(blocks: Iterable[np.ndarray], rate: int) -> tuple[Iterable[np.ndarray], int]:
    """Return audio in blocks at 16 or 8 kHz, and that rate in Hz. The joined blocks are bit-identical to the result of
    `resample`. Raises `MediaError` below 8 kHz."""
    target = _target(rate)
    if rate == target:
        return blocks, target
    if rate % RATE == 0:
        return _decimated(blocks, rate // RATE), target
    return _resampled(blocks, rate, target), target


def _resampled(
    blocks: Iterable[np.ndarray], rate: int, target: int
) -> Iterator[Float[np.ndarray, " m"]]:
    stream, count = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ"), 0
    for block in blocks:
        out = stream.resample_chunk(np.ascontiguousarray(block, np.float32))
        count += len(out)
        yield out
    out = stream.resample_chunk(np.empty(0, np.float32), last=True)
    # One sample at 44.1 kHz rounds to zero samples at 16 kHz; the result must not be empty.
    yield out if count + len(out) else np.zeros(1, np.float32)


def _mels(blocks: Iterable[np.ndarray], rate: int) -> Iterator[Float[np.ndarray, "F M"]]:
    """Yield frames of audio at 16 or 8 kHz, the same number at a time for any sizes of blocks: sums over another number
    of rows may be rounded differently."""
    window, hop, fft = (size * rate // RATE for size in (WINDOW, HOP, FFT))
    full = (CHUNK_FRAMES - 1) * hop + window
    buffer, emitted = np.empty(0, np.float32), False
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) >= full:
            yield _frames(buffer[:full], window, hop, fft)
            buffer, emitted = buffer[CHUNK_FRAMES * hop :], True
    if len(buffer) < window and not emitted:
        buffer = np.pad(buffer, (0, window - len(buffer)))
    if len(buffer) >= window:
        yield _frames(buffer, window, hop, fft)


def _frames(
    wave: Float[np.ndarray, " n"], window: int, hop: int, fft: int
) -> Float[np.ndarray, "F M"]:
    x = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    # At 8 kHz the 128 bins below 4 kHz are the same bins; the Nyquist bin is dropped and the upper ones stay empty.
    used = BINS if fft == FFT else fft // 2
    emphasised = np.empty(x.shape, np.float32)
    np.subtract(x[:, 1:], np.float32(PRE_EMPHASIS) * x[:, :-1], out=emphasised[:, 1:])
    # The sample before the first of a frame is assumed to be equal to it, not the previous one of the audio.
    emphasised[:, 0] = x[:, 0] - np.float32(PRE_EMPHASIS) * x[:, 0]
    emphasised *= np.float32(FULL_SCALE)
    spectrum = np.fft.rfft(emphasised * np.hamming(window), fft)[:, :used].astype(np.complex64)
    power = np.abs(spectrum) ** 2
    # Without BLAS: its idle threads occupied the encoder's cores for about 60 ms per clip.
    mels = [np.einsum("fb,b->f", power[:, bins], filter_) for bins, filter_ in _triangles(used)]
    return np.log(np.maximum(np.stack(mels, 1), np.float32(FLOOR)))


@cache
def _triangles(used: int) -> list[tuple[slice, Float[np.ndarray, " b"]]]:
    """Return the filters over the first `used` bins: the nonzero range of each, and its values."""
    filters = []
    for column in mel_filters()[:used].T:
        nonzero = np.flatnonzero(column)
        bins = slice(nonzero[0], nonzero[-1] + 1) if len(nonzero) else slice(0, 0)
        filters.append((bins, np.ascontiguousarray(column[bins])))
    return filters


@cache
def mel_filters() -> Float[np.ndarray, "bins M"]:
    """[257, 80] triangles of peak 1, evenly spaced in mel = 1127 ln(1 + Hz / 700) from 0 to 7690 Hz, bins 1 to 245."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hertz / 700.0)

    edges = np.linspace(0.0, mel(np.array([TOP]))[0], MELS + 2)
    spacing = edges[1]
    # 246, exclusive: newer versions of transformers include it in the last filter.
    last = int(TOP * FFT / RATE + 0.5)
    bins = np.arange(BINS)
    height = 1.0 - np.abs(edges[None, 1:-1] - mel(bins * RATE / FFT)[:, None]) / spacing
    height[(bins < 1) | (bins >= last)] = 0.0
    filters = np.maximum(height, 0.0).astype(np.float32)
    filters.setflags(write=False)
    return filters


class AudioReader(Reader):
    """Reads audio clips."""

    modality = AudioInput.NAME

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding

    def placeholder(self, part: Audio, number: int, max_crops: int | None) -> Placeholder:
        """Return the tokens of a clip. Its content are log-mel frames: they are half the size of samples at 16 kHz and
        a tenth of those at 44.1 kHz in stereo, so a clip becomes frames as it is read."""
        with self._option_in_errors():
            stream = self._stream(part)
            mels = log_mel_of(stream, stream.rate)
        return Placeholder(part, number, AudioLayout(len(mels), "").tokens, mels)

    def tokens(self, part: Audio, max_crops: int | None) -> int:
        caps = self._decoding.caps
        with self._option_in_errors():
            size = media.audio_size(
                part.source,
                max_bytes=caps.audio_bytes,
                max_seconds=caps.audio_seconds,
                decoders=self._decoding.decoders,
            )
        return AudioLayout(frames(*resampled_length(*size)), "").tokens

    def least_tokens(self, part: Audio, available: int) -> int:
        if self._decoding.caps.audio_seconds * RATE < available * SAMPLES:
            return 0
        with self._option_in_errors():
            stream = self._stream(part)
        if not stream.has_exact_header or stream.announced >= 2**60:
            return 0
        samples = max(1, stream.announced)
        return AudioLayout(frames(*resampled_length(samples, stream.rate)), "").tokens

    def size(self, part: Audio, max_crops: int | None) -> tuple[int, int]:
        """Return (bytes of the log-mel frames, no pixels); for MP3 the bytes are approximate."""
        with self._option_in_errors():
            stream = self._stream(part)
        samples = min(stream.announced, round(self._decoding.caps.audio_seconds * stream.rate))
        return nbytes(samples, stream.rate), 0

    def inputs(
        self, items: Sequence[Placeholder], slots: Sequence[int], modalities: Collection[str]
    ) -> Steps[AudioInput]:
        yield from ()
        # Audio with an image uses the projector trained with images, for any adapter.
        branch = "vision" if ImageInput.NAME in modalities else "speech"
        clips = tuple(AudioLayout(len(item.content), branch) for item in items)
        assert [clip.tokens for clip in clips] == [item.tokens for item in items]
        # One clip isn't copied: an hour has 115 MB of frames.
        mels = torch.cat([item.content for item in items]) if len(items) > 1 else items[0].content
        return AudioInput(layouts=clips, slots=positions(slots), mels=mels)

    @contextmanager
    def _option_in_errors(self) -> Iterator[None]:
        """Add to the error about a clip that is too large the option that raises the limit, and what it costs."""
        try:
            yield
        except MediaError as error:
            if error.reason != "size":
                raise
            remedy = (
                "; chat, transcribe and serve take --max-audio-seconds (Phi.max_audio_seconds) up to "
                f"{LONGEST_AUDIO_SECONDS:,.0f}; an hour takes 45,000 tokens of the context, with their keys and values"
            )
            is_raisable = self._decoding.caps.audio_seconds < LONGEST_AUDIO_SECONDS
            raise MediaError(f"{error}{remedy if is_raisable else ''}", "size") from None

    def _stream(self, part: Audio) -> media.AudioStream:
        caps = self._decoding.caps
        stream = media.AudioStream(
            part.source,
            max_bytes=caps.audio_bytes,
            max_seconds=caps.audio_seconds,
            decoders=self._decoding.decoders,
        )
        stream.check_announced()
        return stream

"""Audio of messages -> `AudioInput`."""

from collections.abc import Collection, Sequence

import torch

from polyphi.audio_input import AudioInput, AudioLayout
from polyphi.image_input import ImageInput
from polyphi.messages import Audio
from polyphi.processing import audio, media
from polyphi.processing.reader import Decoding, Placeholder, Reader, positions
from polyphi.steps import Steps


class AudioReader(Reader):
    """Reads audio clips."""

    modality = AudioInput.NAME

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding

    def placeholder(self, part: Audio, number: int, max_crops: int | None) -> Placeholder:
        """Return the tokens of a clip. Its content are log-mel frames: they are half the size of samples at 16 kHz and
        a tenth of those at 44.1 kHz in stereo, so a clip becomes frames as it is read."""
        stream = self._stream(part)
        mels = audio.log_mel_of(stream, stream.rate)
        return Placeholder(part, number, AudioLayout(len(mels), "").tokens, mels)

    def tokens(self, part: Audio, max_crops: int | None) -> int:
        caps = self._decoding.caps
        size = media.audio_size(
            part.source,
            max_bytes=caps.audio_bytes,
            max_seconds=caps.audio_seconds,
            decoders=self._decoding.decoders,
        )
        return AudioLayout(audio.frames(*audio.resampled_length(*size)), "").tokens

    def size(self, part: Audio, max_crops: int | None) -> tuple[int, int]:
        """Return (bytes of the log-mel frames, no pixels); for MP3 the bytes are approximate."""
        stream = self._stream(part)
        samples = min(stream.announced, round(self._decoding.caps.audio_seconds * stream.rate))
        return audio.nbytes(samples, stream.rate), 0

    def inputs(
        self, items: Sequence[Placeholder], slots: Sequence[int], modalities: Collection[str]
    ) -> Steps[AudioInput]:
        yield from ()
        # Audio with an image uses the projector trained with images, for any adapter.
        branch = "vision" if ImageInput.NAME in modalities else "speech"
        clips = tuple(AudioLayout(len(item.content), branch) for item in items)
        assert [clip.tokens for clip in clips] == [item.tokens for item in items]
        mels = torch.cat([item.content for item in items])
        return AudioInput(layouts=clips, slots=positions(slots), mels=mels)

    def _stream(self, part: Audio) -> media.AudioStream:
        caps = self._decoding.caps
        return media.AudioStream(
            part.source,
            max_bytes=caps.audio_bytes,
            max_seconds=caps.audio_seconds,
            decoders=self._decoding.decoders,
        )

"""Audio clips as the audio encoder reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from polyphi.types.inputs.encoder import Inputs


@dataclass(frozen=True)
class AudioLayout:
    """One audio clip: `frames` log-mel frames of 10 ms, projected by the audio projector `branch` ("speech", or
    "vision" if the sequence also has an image)."""

    frames: int
    branch: str

    @property
    def tokens(self) -> int:
        """The number of tokens, of 80 ms each: ceil(frames / 8)."""
        return -(-self.frames // 8)


@dataclass(frozen=True, kw_only=True)
class AudioInput(Inputs):
    """The audio clips of a batch. `mels` are the log-mel frames of all, `label_ids` (clip, token id) in the order of
    speech."""

    NAME: ClassVar[str] = "audio"
    SIZE_UNIT: ClassVar[str] = "frames"
    MAX_SIZE: ClassVar[int] = 12_000

    layouts: tuple[AudioLayout, ...]
    label_ids: Int[Tensor, "_ 2"] | None = None
    mels: Float[Tensor, "F M"]

    @property
    def tokens(self) -> list[int]:
        """The number of tokens of each clip."""
        return [clip.tokens for clip in self.layouts]

    @property
    def size(self) -> int:
        """Log-mel frames of 10 ms."""
        return sum(clip.frames for clip in self.layouts)

    def split(self) -> Iterator["AudioInput"]:
        """Each clip as its own inputs, without copying frames."""
        at = 0
        for clip in self.layouts:
            yield AudioInput(layouts=(clip,), mels=self.mels[at : at + clip.frames])
            at += clip.frames

"""Options of `polyphi transcribe` that transcripts depend on."""

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from polyphi.types.transcript import language


@Parameter(name="*")
@dataclass(frozen=True)
class TranscriptOptions:
    """Options that determine transcripts, together with their recordings; all but `form` and `model` as in
    `Phi.transcribe`."""

    form: Annotated[
        Literal["text", "json", "verbose_json", "srt", "vtt"], Parameter(name="--format")
    ] = "text"
    """Format of the transcripts."""
    to: str | None = None
    """Translate into this language, such as German."""
    cot: bool = False
    """Transcribe first, then translate (chain of thought)."""
    adapter: str | None = "auto"
    """auto (the speech adapter), none, or another adapter of the model."""
    words: Annotated[Literal["estimated", "aligned"] | None, Parameter(parse=False)] = None
    window: float | None = None
    """Maximum length of a chunk in seconds, such as 30; default: as long as fits."""
    max_audio_seconds: float = field(default=1800.0, repr=False)
    """Longest chunk that is transcribed at once, in seconds: up to 10080 (2.8 hours), if it fits the context. An hour
    takes 73,800 tokens with its text, at the published size 9.7 GB of keys and values."""
    model: Annotated[str, Parameter(parse=False)] = ""
    """Identifies the model and its precision."""

    def __post_init__(self) -> None:
        if self.cot and self.to is None:
            raise ValueError("--cot needs a translation: add --to LANGUAGE")
        if self.to is not None:
            language(self.to)

    def digest(self) -> str:
        """A hash of all options. Transcripts of versions without `max_audio_seconds` stay those of its default."""
        longer = self.max_audio_seconds != TranscriptOptions.max_audio_seconds
        text = f"{self!r} {self.max_audio_seconds:g}" if longer else repr(self)
        return hashlib.sha256(text.encode()).hexdigest()

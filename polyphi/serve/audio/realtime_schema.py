"""The events that a client sends to a session of live transcription, and the session's settings, in OpenAI's format.

>>> settings = SessionSettings.default("phi").updated({"audio": {"input": {"turn_detection": None}}})
>>> settings.audio.input.turn_detection is None
True
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.fields import Fields, validation_error
from polyphi.transcription.live import TurnDetection
from polyphi.types.transcript import language

RATES = {"audio/pcm": 24000, "audio/pcmu": 8000, "audio/pcma": 8000}
"""Hz of each format: 16-bit little-endian PCM, and G.711 with the mu-law and the A-law. All are mono."""


def _misplaced(field: str, message: str) -> PydanticCustomError:
    """The error for a field whose value can't be used."""
    return PydanticCustomError("misplaced_field", "{message}", {"field": field, "message": message})


class ClientEvent(Fields):
    """An event; `event_id` is returned in the error that it causes."""

    type: str
    event_id: str | None = Field(None, max_length=512)


class Append(ClientEvent):
    audio: str
    """The appended audio in base64."""


class Update(ClientEvent):
    session: dict[str, Any]


class Command(ClientEvent):
    """A client's event that commits or clears the audio buffer."""


EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": Update,
    "input_audio_buffer.append": Append,
    "input_audio_buffer.commit": Command,
    "input_audio_buffer.clear": Command,
}


def parse_event(value: Any) -> ClientEvent:
    """The event of a JSON value. Raises ApiError for one that isn't valid."""
    name = value.get("type") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in EVENTS:
        expected = ", ".join(EVENTS)
        raise ApiError(
            400,
            f"type: expected one of {expected}, found {name!r:.80}; this session only transcribes",
            param="type",
            code="invalid_event",
        )
    return _validated(EVENTS[name], value)


class Format(Fields):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None

    @model_validator(mode="after")
    def _set_rate(self) -> Self:
        if self.rate not in (None, RATES[self.type]):
            raise _misplaced(
                "rate", f"expected {RATES[self.type]} for {self.type}, found {self.rate}"
            )
        self.rate = RATES[self.type]
        return self


class Transcription(Fields):
    """The model that transcribes; it detects the language itself."""

    ignored: ClassVar[frozenset[str]] = frozenset({"delay"})

    model: str | None = None
    language: str | None = None
    prompt: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prompt:
            message = "this model uses its own prompts for audio and accepts no other; leave it out"
            raise _misplaced("prompt", message)
        try:
            if (self.language or "auto").lower() != "auto":
                language(str(self.language))
        except ValueError as error:
            raise _misplaced("language", str(error)) from None
        return self


SILENCES = {"low": 1000, "medium": 500, "high": 300, "auto": 500}
"""[ours] Milliseconds of silence after which a turn ends, by the `eagerness` of `semantic_vad`."""


class ServerVad(Fields):
    ignored: ClassVar[frozenset[str]] = frozenset({"create_response", "interrupt_response"})

    @model_validator(mode="before")
    @classmethod
    def _from_semantic(cls, value: Any) -> Any:
        """Turns by the meaning of words, the default of some clients, become turns by silence."""
        if not isinstance(value, dict) or value.get("type") != "semantic_vad":
            return value
        eagerness = value.get("eagerness") or "auto"
        if eagerness not in SILENCES:
            raise _misplaced(
                "eagerness", f"expected one of {', '.join(SILENCES)}, found {eagerness!r:.80}"
            )
        others = {name: inner for name, inner in value.items() if name != "eagerness"}
        return {**others, "type": "server_vad", "silence_duration_ms": SILENCES[eagerness]}

    type: Literal["server_vad"]
    threshold: float = Field(0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(300, ge=0, le=5000)
    silence_duration_ms: int = Field(500, ge=0, le=10_000)
    idle_timeout_ms: None = None


class Input(Fields):
    ignored: ClassVar[frozenset[str]] = frozenset({"noise_reduction"})

    format: Format
    transcription: Transcription
    turn_detection: ServerVad | None

    @property
    def turns(self) -> TurnDetection | None:
        """The settings of voice activity detection, None without it."""
        if (vad := self.turn_detection) is None:
            return None
        padding, silence = vad.prefix_padding_ms / 1000, vad.silence_duration_ms / 1000
        return TurnDetection(vad.threshold, padding, silence)


class AudioSettings(Fields):
    input: Input


class SessionSettings(Fields):
    """The settings of a session."""

    type: Literal["transcription"]
    audio: AudioSettings
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None

    @classmethod
    def default(cls, model: str) -> Self:
        audio = {
            "format": {"type": "audio/pcm"},
            "transcription": {"model": model},
            "turn_detection": {"type": "server_vad"},
        }
        return cls.model_validate({"type": "transcription", "audio": {"input": audio}})

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """The settings with some fields replaced. Raises ApiError for unknown fields and wrong values."""
        session = self.model_dump(exclude_none=True)
        session["audio"]["input"].setdefault("turn_detection", None)
        for name, value in changes.items():
            if name == "audio" and isinstance(value, dict):
                own = value.get("input")
                if isinstance(own, dict) and value.keys() == {"input"}:
                    value = {"input": {**session["audio"]["input"], **own}}
            session[name] = value
        return _validated(type(self), session, "session")

    def body(self, id: str, expires_at: int) -> dict[str, Any]:
        """The settings as `session.created` and `session.updated` return them."""
        fields = self.model_dump()
        fields["audio"]["input"]["noise_reduction"] = None
        head = {"id": id, "object": "realtime.transcription_session", "expires_at": expires_at}
        return {**head, **fields}


def _validated(model: type[Any], value: Any, *path: str) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = [{**e, "loc": ("body", *path, *e["loc"])} for e in error.errors()]
        raise validation_error(RequestValidationError(errors)) from None
